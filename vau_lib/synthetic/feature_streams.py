"""Long feature streams with exact truth: spliced from short videos, or sampled from drifting Gaussian features.

The drifting features were designed so that recent memory is needed. They show what LSHMA's memory is for, not how good a model is
on real video. Features are (T, D), `row_s` seconds each; event spans are half-open.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.signal import lfilter

from vau_lib.data.records import ROW_S, LongStream

Rng = np.random.Generator


def splice(
    normals: Sequence[np.ndarray], anomalies: Sequence[np.ndarray], *, rows: int, events: int, rng: Rng, id: str,
    row_s: float = ROW_S, spans: Sequence[Sequence[tuple[int, int]]] | None = None,
) -> LongStream:  # fmt: skip
    """Return a stream of `rows` rows: normal videos (T, D) one after another, with `events` whole anomalous ones inserted.

    Videos come in random order, and in another when they run out. Anomalous ones are spread, one in each of `events`
    equal parts of the normal time, with normal rows before, between and after: the video that one interrupts goes on
    behind it. `spans` gives, for each of `anomalies`, the spans of its rows that are events; all of it by default.
    """
    spans = [[(0, len(clip))] for clip in anomalies] if spans is None else spans
    _check_videos(normals, anomalies, spans, events)
    chosen = list(itertools.islice(_in_turn(len(anomalies), rng), events))
    starts = _spread([len(anomalies[place]) for place in chosen], rows, rng)
    spliced, normal, event_rows = np.empty((rows, normals[0].shape[1]), np.float32), np.ones(rows, bool), []
    for start, place in zip(starts, chosen, strict=True):
        inserted = slice(start, start + len(anomalies[place]))
        spliced[inserted], normal[inserted] = anomalies[place], False
        event_rows += [(start + first, start + end) for first, end in spans[place]]
    ordered = itertools.chain.from_iterable(normals[place] for place in _in_turn(len(normals), rng))
    spliced[normal] = list(itertools.islice(ordered, int(normal.sum())))
    return _labelled(id, spliced, event_rows, row_s)


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
    """Return a camera's stream in which a level says little and a change against the recent past says much.

        x_t = base + z_t W + noise_t + a_t u,   z_(t+1) = r z_t + sqrt(1 - r^2) drift e_t,   r = exp(-row_s / drift_s)

    base (D,) ~ N(0, camera^2) is the stream's own, noise_t (D,) ~ N(0, noise^2), z_t (K,) is an Ornstein-Uhlenbeck process
    of deviation `drift` that forgets in `drift_s` seconds, e_t ~ N(0, 1); W and u are `world_directions`. In an event a_t
    is `offset`, on half of them only half of it in the first row, else 0; lengths are log-uniform in `event_rows`, both
    included, places as in `splice`. Along u the drift alone is as large as an event: the sizes were tuned to make recent
    memory necessary.
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
    lifted = np.zeros(rows)
    for start, end in spans:
        lifted[start:end] = offset
        lifted[start] *= rng.choice([0.5, 1.0])  # up in one row or in two
    still = camera * rng.standard_normal(width) + noise * rng.standard_normal((rows, width))
    return _labelled(id, (still + level @ along + np.outer(lifted, towards)).astype(np.float32), spans, row_s)


def drifting_world(count: int, *, prefix: str = "drift", **stream: object) -> list[LongStream]:
    """Return `count` cameras of one world, each a `drifting_stream` with these arguments; events 0 makes normal ones."""
    return [drifting_stream(id=f"{prefix}-{place:03d}", **stream) for place in range(count)]


def _check_videos(normals: Sequence, anomalies: Sequence, spans: Sequence, events: int) -> None:
    if not len(normals) or (events and not len(anomalies)):
        raise ValueError(f"{events} events need videos, got {len(normals)} normal and {len(anomalies)} anomalous")
    width = np.shape(normals[0])[-1]
    for video in (*normals, *anomalies):
        if np.ndim(video) != 2 or not len(video) or np.shape(video)[1] != width:
            raise ValueError(f"videos must be (T, {width}) with T >= 1, got {np.shape(video)}")
    if len(spans) != len(anomalies):
        raise ValueError(f"{len(anomalies)} anomalous videos have spans for {len(spans)}")
    for place, (clip, inside) in enumerate(zip(anomalies, spans, strict=True)):
        if odd := [span for span in inside if not 0 <= span[0] < span[1] <= len(clip)]:
            raise ValueError(f"anomalous video {place} of {len(clip)} rows has the span {tuple(odd[0])}")


def _spread(lengths: Sequence[int], rows: int, rng: Rng) -> list[int]:
    """Return where spans of these lengths start in `rows` rows: apart, one in each equal part of what they leave free."""
    count, free = len(lengths), rows - int(np.sum(lengths))
    if free < max(1, 4 * count):
        raise ValueError(f"{rows} rows leave {free} normal ones for {count} events, fewer than 4 each")
    at = (np.arange(count) + rng.uniform(0.25, 0.75, count)) * free / max(1, count)
    return (at.astype(int) + np.cumsum([0, *lengths])[:count]).tolist()


def _in_turn(count: int, rng: Rng) -> Iterator[int]:
    """Yield positions below `count` for ever, all of them before any again; only at the seams may one follow itself."""
    while count:
        yield from rng.permutation(count).tolist()


def _labelled(id: str, rows: np.ndarray, events: Sequence[tuple[int, int]], row_s: float) -> LongStream:
    labels = np.zeros(len(rows), np.uint8)
    for start, end in events:
        labels[start:end] = 1
    return LongStream(id, rows, labels, tuple(sorted(events)), row_s)
