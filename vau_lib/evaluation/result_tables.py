"""A method's row in the results table: mean over seeds, interval over videos, level in the name of every metric.

- a method is a list of runs (one per seed), a run is {video: (video score, row scores)}; peers have one run
- folds are scored one by one and averaged: scores of two trainings share no scale
- intervals resample videos, not frames or seeds, of the mean score of the seeds
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from vau_lib.evaluation import metrics
from vau_lib.workspace import artifacts

KINDS = ("ours", "peer", "released", "sanity")

Run = Mapping[str, tuple[float, np.ndarray]]


@dataclass(frozen=True)
class Method:
    """One line of the table before it is scored: its name, one of KINDS, and a run per seed."""

    name: str
    kind: str
    runs: Sequence[Run]

    def __post_init__(self):
        if self.kind not in KINDS or not self.runs:
            raise ValueError(
                f"{self.name}: kind must be one of {', '.join(KINDS)} with at least one run, got {self.kind!r}"
            )

    def video_scores(self) -> dict[str, float]:
        """Return {video: mean over seeds of its video score}."""
        return {name: float(np.mean([run[name][0] for run in self.runs])) for name in self.runs[0]}

    def frame_scores(self, num_frames: Mapping[str, int], snippet_frames: int) -> dict[str, np.ndarray]:
        """Return {video: (num_frames,)}, the mean over seeds of its row scores, each held for its snippet."""
        means = {name: np.mean([run[name][1] for run in self.runs], axis=0) for name in self.runs[0]}
        return {name: metrics.expand(means[name], count, snippet_frames) for name, count in num_frames.items()}


def per_row(name: str, kind: str, scores: Mapping[str, np.ndarray]) -> Method:
    """Return a method that scores rows, {video: (T,)}; its video score is its highest row."""
    rows = {video: np.asarray(values, float) for video, values in scores.items()}
    return Method(name, kind, [{video: (float(values.max()), values) for video, values in rows.items()}])


def per_video(name: str, kind: str, scores: Mapping[str, float], lengths: Mapping[str, int]) -> Method:
    """Return a method that scores whole videos, held over all `lengths[video]` rows."""
    return Method(name, kind, [{video: (score, np.full(lengths[video], score)) for video, score in scores.items()}])


def fold_mean(metric: Callable, fold_of: Mapping[str, int]) -> Callable:
    """Return `metric` taken in each test fold alone and averaged; a resampled copy is named "video copy"."""

    def averaged(scores: Mapping, labels: Mapping) -> float:
        inside: dict[int, list[str]] = {}
        for name in scores:
            fold = fold_of[name] if name in fold_of else fold_of[name.rsplit(" ", 1)[0]]
            inside.setdefault(fold, []).append(name)
        parts = [({n: scores[n] for n in names}, {n: labels[n] for n in names}) for names in inside.values()]
        return float(np.mean([metric(*part) for part in parts]))

    return averaged


def video_row(
    method: Method, labels: Mapping[str, int], fold_of: Mapping[str, int], *, seed: int, resamples: int
) -> dict:
    """Return the video-level row: AUC and AP, mean over folds and seeds; spread over seeds; 95 % interval over videos."""
    auc, ap = fold_mean(metrics.video_auc, fold_of), fold_mean(metrics.video_ap, fold_of)
    seeds = [auc({name: score for name, (score, _) in run.items()}, labels) for run in method.runs]
    precise = [ap({name: score for name, (score, _) in run.items()}, labels) for run in method.runs]
    span = metrics.bootstrap_ci(
        auc, method.video_scores(), labels, rng=np.random.default_rng(seed), resamples=resamples
    )
    return {
        "level": "video", "method": method.name, "kind": method.kind, "seeds": len(seeds), "video_auc": float(np.mean(seeds)),
        "video_auc_sd": float(np.std(seeds)), "low": span.low, "high": span.high, "seed_mean_video_auc": span.value,
        "video_ap": float(np.mean(precise)),
    }  # fmt: skip


def frame_row(
    method: Method, truth: Mapping[str, np.ndarray], snippet_frames: int, *, seed: int, resamples: int
) -> dict:
    """Return the frame-level row, raw and micro, of the mean scores of the seeds; min-max stands apart as the pitfall it is."""
    scores = method.frame_scores({name: len(labels) for name, labels in truth.items()}, snippet_frames)
    span = metrics.bootstrap_ci(metrics.frame_auc, scores, truth, rng=np.random.default_rng(seed), resamples=resamples)
    return {
        "level": "frame", "method": method.name, "kind": method.kind, "seeds": len(method.runs), "frame_auc": span.value,
        "low": span.low, "high": span.high, "frame_ap": metrics.frame_ap(scores, truth),
        "frame_auc_anomalous_only": metrics.frame_auc_anomalous_only(scores, truth),
        "frame_auc_minmax_pitfall": metrics.frame_auc(metrics.rescaled_per_video(scores), truth),
    }  # fmt: skip


def write_curve(path: Path, table: pd.DataFrame) -> None:
    """Write the points behind a figure as csv, whole or not at all; notebook 13 draws from it."""
    with artifacts.replacing(Path(path)) as temporary:
        table.to_csv(temporary, index=False)
