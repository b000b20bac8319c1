"""Latency, memory and forgetting of a streaming detector.

- latency and endurance take any `step(clip, state) -> (scores, state)`
- time is wall-clock of one call on this machine: compare within one run
- forgetting is measured by changing the past: how much the first features of a stream still move its later scores
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
from vau_lib.detectors.trained_detector import TrainedDetector
from vau_lib.evaluation import online_metrics

Step = Callable[[Tensor, object], tuple[Tensor, object]]
POINTS = 40  # rows of an endurance table


@torch.inference_mode()
def latency(step: Step, shape: tuple[int, int, int], *, calls: int = 60) -> dict[str, float]:
    """Return p50, p95, p99 and mean ms per stream of `step` on random clips of `shape` (B, N, D), and a stream's state in bytes."""
    state, times = None, []
    for _ in range(calls):
        clip, start = torch.randn(shape), time.perf_counter()
        values, state = step(clip, state)
        values.cpu()  # waits for an accelerator
        times.append(time.perf_counter() - start)
    return {"streams": shape[0], **online_metrics.latency(np.array(times) / shape[0]), "state_bytes": state.num_bytes() // shape[0]}


@torch.inference_mode()
def endure(step: Step, shape: tuple[int, int, int], *, clips: int, clip_s: float) -> tuple[pd.DataFrame, float]:
    """Run one stream for `clips` random clips; return a table and the growth of this process in bytes per hour of video.

    Columns: clips, ms (median since the row before), state_bytes, resident_bytes. Growth is fitted to the second half.
    """
    state, times, rows = None, [], []
    for number in tqdm(range(1, clips + 1), desc="clips", mininterval=5):
        clip, start = torch.randn(shape), time.perf_counter()
        values, state = step(clip, state)
        values.cpu()  # waits for an accelerator
        times.append(1000 * (time.perf_counter() - start))
        if number in (10, 100, 1000) or number % max(1, clips // POINTS) == 0:
            rows.append([number, float(np.median(times)), state.num_bytes(), online_metrics.resident_bytes()])
            times = []
    table = pd.DataFrame(rows, columns=["clips", "ms", "state_bytes", "resident_bytes"])
    late = table[table["clips"] >= clips / 2]
    return table, online_metrics.slope_per_hour(late["resident_bytes"].to_numpy(), late["clips"].to_numpy() * clip_s)


def with_settings(trained: TrainedDetector, **sizes: object) -> torch.nn.Module:
    """Return a trained LSHMA with the same weights and other settings (memory, exit_threshold, ...), in eval mode."""
    weights = trained.model.state_dict()
    model = type(trained.model)(replace(trained.model.settings, **sizes)).to(next(iter(weights.values())).device)
    model.load_state_dict(weights)
    return model.eval()


@torch.inference_mode()
def scores(trained: TrainedDetector, streams: Sequence[records.LongStream], **sizes: object) -> dict[str, np.ndarray]:
    """Return {stream: (T,) in [0, 1]} of streams of one length, all in one call; `sizes` as in `with_settings`."""
    model = with_settings(trained, **sizes)
    logits, state = model.push(torch.stack([trained.preprocessing(s.features).mT for s in streams]))
    logits = torch.cat([logits, model.flush(state)], dim=1)
    return {s.id: values.sigmoid().cpu().numpy() for s, values in zip(streams, logits, strict=True)}


def head_effect(
    trained: TrainedDetector, stream: records.LongStream, other: records.LongStream, *, first: int, block: int = 8
) -> pd.DataFrame:
    """Return minute and change: the largest change of a score per block when the first `first` features are another camera's."""
    swapped = replace(stream, features=np.concatenate([other.features[:first], stream.features[first:]]))
    before, after = (scores(trained, [s])[s.id] for s in (stream, swapped))
    change = np.abs(before - after)[: len(before) // block * block].reshape(-1, block).max(1)
    minute = np.arange(len(change)) * block * stream.row_s / 60
    return pd.DataFrame({"minute": minute, "change": change + 1e-9})  # a logarithmic axis wants more than 0


@torch.inference_mode()
def exit_depths(
    trained: TrainedDetector, streams: Sequence[records.LongStream], thresholds: Sequence[float], *, snippets: int = 2000
) -> pd.DataFrame:
    """Return the fraction of clips that leave after each block, one row per exit threshold."""
    x = torch.stack([trained.preprocessing(s.features[:snippets]).mT for s in streams])
    rows = []
    for threshold in thresholds:
        model, state = with_settings(trained, exit_threshold=threshold), None
        for clip in x.split(model.settings.window, dim=1):
            if clip.shape[1] == model.settings.window:
                _, state = model.step(clip, state)
                rows += [{"threshold": threshold, "depth": int(depth)} for depth in state.depth]
    table = pd.DataFrame(rows)
    return pd.crosstab(table["threshold"], table["depth"], normalize="index")
