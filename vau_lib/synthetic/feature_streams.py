"""Long feature streams with exact truth, sampled from a drifting Gaussian process.

The features were designed so that recent memory is needed. They show what LSHMA's memory is for, not how good a model is
on real video. Features are (T, D), `row_s` seconds each; event spans are half-open.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.signal import lfilter

from vau_lib.data.records import ROW_S, LongStream

Rng = np.random.Generator


def world_directions(width: int = 64, *, directions: int = 4, world_seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return what all cameras of a world share: directions of drift W (K, D), orthonormal, and that of events u (D,).

    u = sum_k W_k / sqrt(K): an event moves a row along the very directions in which light and crowds do.
    """
    if not 1 <= directions <= width:
        raise ValueError(f"a world of width {width} has 1 to {width} directions, got {directions}")
    along = np.linalg.qr(np.random.default_rng(world_seed).standard_normal((width, directions)))[0].T
    return along, along.sum(0) / math.sqrt(directions)


def drifting_stream(
    *, rows: int, events: int, rng: Rng, width: int = 64, row_s: float = ROW_S, id: str = "drift", world_seed: int = 0,
    directions: int = 4, drift: float = 4.0, drift_s: float = 240.0, camera: float = 3.0, noise: float = 1.0,
    offset: float = 4.0, event_rows: tuple[int, int] = (10, 30),
) -> LongStream:  # fmt: skip
    """Return one camera's stream in which a level says little and a change against the recent past says much.

        x_t = base + z_t W + noise_t + a_t u,   z_(t+1) = r z_t + sqrt(1 - r^2) drift e_t,   r = exp(-row_s / drift_s)

    base (D,) ~ N(0, camera^2) is the stream's own, noise_t (D,) ~ N(0, noise^2), z_t (K,) is an Ornstein-Uhlenbeck process,
    e_t ~ N(0, 1); W and u are `world_directions`. In an event a_t is `offset`, on half of them only half of it in the first
    row, else 0. Along u the drift alone is as large as an event: the default sizes make recent memory necessary.

    Args:
        rows: T, features of the stream.
        events: number of events; one lies in each equal part of the normal time.
        rng: of every random choice.
        width: D.
        row_s: seconds that one feature stands for.
        id: the stream's name.
        world_seed, directions: of `world_directions`, the same for all cameras of a world.
        drift, drift_s: std of z_t, and the seconds in which it forgets.
        camera, noise, offset: sizes in the formula.
        event_rows: least and greatest length of an event, log-uniform between them.
    """
    if min(drift_s, row_s) <= 0 or not 1 < event_rows[0] <= event_rows[1]:
        raise ValueError(f"times and lengths must be positive, got {drift_s} s, {row_s} s, events of {event_rows} rows")
    along, towards = world_directions(width, directions=directions, world_seed=world_seed)
    keep = math.exp(-row_s / drift_s)
    shocks = drift * rng.standard_normal((rows, directions))
    shocks[1:] *= math.sqrt(1 - keep**2)  # the first row is drawn from the stationary law
    level = lfilter([1], [1, -keep], shocks, axis=0)  # (T, K)
    low, high = np.log(event_rows[0]), np.log(event_rows[1] + 1)
    lengths = np.exp(rng.uniform(low, high, events)).astype(int)  # in [low, high], short ones are common
    spans = [(start, start + int(size)) for start, size in zip(_spread(lengths, rows, rng), lengths, strict=True)]
    lifted, labels = np.zeros(rows), np.zeros(rows, np.uint8)
    for start, end in spans:
        lifted[start:end], labels[start:end] = offset, 1
        lifted[start] *= rng.choice([0.5, 1.0])  # up in one row or in two
    still = camera * rng.standard_normal(width) + noise * rng.standard_normal((rows, width))
    features = (still + level @ along + np.outer(lifted, towards)).astype(np.float32)
    return LongStream(id, features, labels, tuple(spans), row_s)


def drifting_world(count: int, *, prefix: str = "drift", **stream: object) -> list[LongStream]:
    """Return `count` cameras of one world, each a `drifting_stream` with these arguments; events 0 makes normal ones."""
    return [drifting_stream(id=f"{prefix}-{place:03d}", **stream) for place in range(count)]


def _spread(lengths: Sequence[int], rows: int, rng: Rng) -> list[int]:
    """Return where spans of these lengths start in `rows` rows: apart, one in each equal part of what they leave free."""
    count, free = len(lengths), rows - int(np.sum(lengths))
    if free < max(1, 4 * count):
        raise ValueError(f"{rows} rows leave {free} normal ones for {count} events, fewer than 4 each")
    at = (np.arange(count) + rng.uniform(0.25, 0.75, count)) * free / max(1, count)
    return (at.astype(int) + np.cumsum([0, *lengths])[:count]).tolist()
