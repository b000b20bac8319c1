"""TODO header."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def to_steps(rows: np.ndarray, steps: int) -> np.ndarray:
    """Return rows (T, D) brought to (steps, D): means of equal parts when longer, linear in between when shorter."""
    if rows.ndim != 2 or not len(rows):
        raise ValueError(f"rows must be (T, D) with T at least 1, got shape {rows.shape}")
    time_last = torch.from_numpy(np.ascontiguousarray(rows.T, dtype=np.float32))[None]
    if len(rows) >= steps:
        return F.adaptive_avg_pool1d(time_last, steps)[0].T.numpy()
    return F.interpolate(time_last, steps, mode="linear", align_corners=True)[0].T.numpy()


@dataclass(frozen=True)
class Preprocessing:
    """What is done to feature rows before a model sees them; fitted on training videos, saved with the model.

    `motion` replaces a row by |row - row before|: XFeat describes places, and what a fight changes is how they move.
    `mean` and `spread` (D,) standardise each channel; `steps` is the length a training sequence is brought to, None leaves
    videos whole.
    """

    steps: int | None
    motion: bool
    mean: tuple[float, ...]
    spread: tuple[float, ...]

    @classmethod
    def fit(cls, features: Mapping[str, np.ndarray], *, steps: int | None, motion: bool) -> "Preprocessing":
        """Measure the channels of the TRAINING videos, {id: (T, D)}."""
        seen = [temporal_difference(x) if motion else np.asarray(x, np.float32) for x in features.values()]
        rows = np.concatenate([x if steps is None else to_steps(x, steps) for x in seen])
        spread = np.maximum(rows.std(0), 1e-6)
        return cls(steps, motion, tuple(map(float, rows.mean(0))), tuple(map(float, spread)))

    def __call__(self, rows: np.ndarray, steps: int | None = None) -> Tensor:
        """Return rows (T, D) as the model wants them: (D, steps), or (D, T) when `steps` is None."""
        rows = temporal_difference(rows) if self.motion else np.asarray(rows, np.float32)
        rows = rows if steps is None else to_steps(rows, steps)
        standard = (rows - np.float32(self.mean)) / np.float32(self.spread)
        return torch.from_numpy(np.ascontiguousarray(standard.T))


def temporal_difference(rows: np.ndarray) -> np.ndarray:
    """Return |row - row before|, (T, D) float32; the first step repeats the second's."""
    rows = np.asarray(rows, np.float32)
    if len(rows) < 2:
        return np.zeros_like(rows)
    steps = np.abs(np.diff(rows, axis=0))
    return np.concatenate([steps[:1], steps])


class Sequences(torch.utils.data.Dataset):
    """Prepared videos: item {"x": (D, steps or T), "labels": 0 or 1}, in the order of `names`; whole ones have "lengths" too."""

    def __init__(self, features: Mapping[str, np.ndarray], labels: Mapping[str, int], prepare: Preprocessing):
        if set(features) != set(labels):
            odd = sorted(set(features) ^ set(labels))[0]
            raise ValueError(f"features and labels must name the same videos, {odd!r} is in one only")
        self.names = sorted(features)
        self.lengths = [len(features[name]) for name in self.names]
        self.prepare = prepare
        self.x = [prepare(features[name], prepare.steps) for name in self.names]  # (D, steps or T) each
        self.labels = torch.tensor([float(labels[name]) for name in self.names])

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        item = {"x": self.x[place], "labels": self.labels[place]}
        return item if self.prepare.steps else item | {"lengths": torch.tensor(self.lengths[place])}


def pad_collate(items: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return whole videos as a batch: x (B, D, T) filled up with zeros, lengths (B,), labels (B,)."""
    x = torch.nn.utils.rnn.pad_sequence([item["x"].T for item in items], batch_first=True).mT
    return {"x": x, **{name: torch.stack([item[name] for item in items]) for name in ("labels", "lengths")}}


def preprocess_splits(
    features: Mapping[str, np.ndarray],
    labels: Mapping[str, int],
    val: Collection[str],
    *,
    steps: int | None,
    motion: bool,
) -> tuple[Preprocessing, Sequences, Sequences]:
    """Return the preparation measured on the training videos, the training set, and that of the videos in `val`."""
    chosen = set(val)
    sides = [[n for n in features if n not in chosen], [n for n in features if n in chosen]]
    if not all(sides):
        raise ValueError(f"need videos on both sides, got {len(sides[0])} to train on and {len(sides[1])} to choose by")
    prepare = Preprocessing.fit({name: features[name] for name in sides[0]}, steps=steps, motion=motion)
    sets = [Sequences({n: features[n] for n in names}, {n: labels[n] for n in names}, prepare) for names in sides]
    return prepare, *sets
