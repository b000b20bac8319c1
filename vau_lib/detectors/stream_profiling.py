"""Ask a stream what it costs, what it still remembers, and how deep it looked.

- a stream is anything with `step(clip, state) -> (scores, state)`; nothing here knows which
- time is wall-clock of one call on this machine: compare within one run
- memory is probed by changing the past: what the first rows still do to a score an hour later is what is remembered
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from vau_lib.data import records
from vau_lib.evaluation import online_metrics

Step = Callable[[Tensor, object], tuple[Tensor, object]]

POINTS = 40  # rows of an endurance table


@torch.inference_mode()
def latency(step: Step, shape: tuple[int, int, int], *, calls: int = 60) -> dict[str, float]:
    """Return p50, p95, p99 and mean ms per stream of `step` on random clips of `shape` (B, N, D), and a stream's state in bytes."""
    state, taken = None, []
    for _ in range(calls):
        clip, start = torch.randn(shape), time.perf_counter()
        _, state = step(clip, state)
        taken.append(time.perf_counter() - start)
    return {
        "streams": shape[0], **online_metrics.latency(np.array(taken) / shape[0]), "state_bytes": state.num_bytes() // shape[0]
    }  # fmt: skip


@torch.inference_mode()
def endure(step: Step, shape: tuple[int, int, int], *, clips: int, clip_s: float) -> tuple[pd.DataFrame, float]:
    """Run one stream for so many random clips; return a table and the growth of this process in bytes per hour of video.

    Columns: clips, ms (median since the row before), state_bytes, resident_bytes. Growth is fitted to the second half.
    """
    state, taken, rows = None, [], []
    for number in tqdm(range(1, clips + 1), desc="clips", mininterval=5):
        clip, start = torch.randn(shape), time.perf_counter()
        _, state = step(clip, state)
        taken.append(1000 * (time.perf_counter() - start))
        if number in (10, 100, 1000) or number % max(1, clips // POINTS) == 0:
            rows.append([number, float(np.median(taken)), state.num_bytes(), online_metrics.resident_bytes()])
            taken = []
    table = pd.DataFrame(rows, columns=["clips", "ms", "state_bytes", "resident_bytes"])
    late = table[table["clips"] >= clips / 2]
    return table, online_metrics.slope_per_hour(late["resident_bytes"].to_numpy(), late["clips"].to_numpy() * clip_s)


def changed(trained: object, **sizes: object) -> torch.nn.Module:
    """Return a trained stream's model with the same weights and other choices (memory, key_clips, exit_threshold), in eval mode."""
    model = type(trained.model)(replace(trained.model.settings, **sizes)).eval()
    model.load_state_dict(trained.model.state_dict())
    return model


@torch.inference_mode()
def scores(trained: object, streams: Sequence[records.LongStream], **sizes: object) -> dict[str, np.ndarray]:
    """Return {stream: (T,) in [0, 1]} of streams of one length, all in one call; `sizes` as in `changed`."""
    model = changed(trained, **sizes)
    logits, state = model.push(torch.stack([trained.preprocessing(s.rows).mT for s in streams]))
    logits = torch.cat([logits, model.flush(state)], dim=1)
    return {s.id: values.sigmoid().numpy() for s, values in zip(streams, logits, strict=True)}


def head_effect(
    trained: object,
    stream: records.LongStream,
    other: records.LongStream,
    *,
    first: int,
    block: int = 8,
) -> pd.DataFrame:
    """Return how much every score changes when the first `first` rows are another camera's: minute, change (largest of a block)."""
    swapped = replace(stream, rows=np.concatenate([other.rows[:first], stream.rows[first:]]))
    one, two = (scores(trained, [s])[s.id] for s in (stream, swapped))
    change = np.abs(one - two)[: len(one) // block * block].reshape(-1, block).max(1)
    minute = np.arange(len(change)) * block * stream.row_s / 60
    return pd.DataFrame({"minute": minute, "change": change + 1e-9})  # a logarithmic axis wants more than 0


@torch.inference_mode()
def exit_depths(
    trained: object, streams: Sequence[records.LongStream], thresholds: Sequence[float], *, rows: int = 2000
) -> pd.DataFrame:
    """Return the share of clips that leave after each block, one line per exit threshold."""
    x = torch.stack([trained.preprocessing(s.rows[:rows]).mT for s in streams])
    found = []
    for threshold in thresholds:
        model, state = changed(trained, exit_threshold=threshold), None
        for clip in x.split(model.settings.window, dim=1):
            if clip.shape[1] == model.settings.window:
                _, state = model.step(clip, state)
                found += [{"threshold": threshold, "depth": int(depth)} for depth in state.depth]
    table = pd.DataFrame(found)
    return pd.crosstab(table["threshold"], table["depth"], normalize="index")
