"""Preprocessing of features for the detectors: temporal difference, standardisation, sequences of one length.

- what is measured (mean and standard deviation of every channel) comes from the training videos only
- one class does it in training, in scoring whole videos and on streams, and it is saved with the model
- a long video is scored by windows as long as those the statistics were measured on: steps of another length have another
  noise, which the fitted standard deviation does not fit
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def to_steps(features: np.ndarray, steps: int) -> np.ndarray:
    """Return features (T, D) as (steps, D): means of equal parts when T is larger, linear interpolation when smaller."""
    if features.ndim != 2 or not len(features):
        raise ValueError(f"features must be (T, D) with T at least 1, got shape {features.shape}")
    time_last = torch.from_numpy(np.ascontiguousarray(features.T, dtype=np.float32))[None]
    if len(features) >= steps:
        return F.adaptive_avg_pool1d(time_last, steps)[0].T.numpy()
    return F.interpolate(time_last, steps, mode="linear", align_corners=True)[0].T.numpy()


def targets_to_steps(targets: np.ndarray, steps: int) -> np.ndarray:
    """Return targets (T,) in {0, 1} as (steps,) float32, for the parts `to_steps` makes; a part is 1 where any of its rows is."""
    targets = np.asarray(targets, np.float32)
    if len(targets) < steps:
        return targets[np.rint(np.linspace(0, len(targets) - 1, steps)).astype(int)]
    return F.adaptive_max_pool1d(torch.from_numpy(targets)[None], steps)[0].numpy()


def step_of_row(rows: int, steps: int) -> np.ndarray:
    """Return for each of `rows` rows the step of `to_steps` that holds it, (rows,) ints in [0, steps)."""
    if rows < steps:
        return np.rint(np.linspace(0, steps - 1, rows)).astype(int)
    return (2 * np.arange(rows) + 1) * steps // (2 * rows)


def temporal_difference(features: np.ndarray) -> np.ndarray:
    """Return |x[t] - x[t - 1]| of features (T, D), float32, the same shape; the first step repeats the second's."""
    features = np.asarray(features, np.float32)
    if len(features) < 2:
        return np.zeros_like(features)
    steps = np.abs(np.diff(features, axis=0))
    return np.concatenate([steps[:1], steps])


def _mean_and_std(parts: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation (D,) over all rows of parts (T, D), float64; one part is in memory at a time.

    Chan, Golub and LeVeque's update of the sum of squared deviations, which loses no digits.
    """
    count, mean, squares = 0, 0.0, 0.0
    for part in parts:
        own = part.mean(0, dtype=np.float64)
        gap, total = own - mean, count + len(part)
        squares = squares + np.square(part - own).sum(0) + np.square(gap) * count * len(part) / total
        count, mean = total, mean + gap * len(part) / total
    return mean, np.sqrt(squares / count)


@dataclass(frozen=True)
class Preprocessing:
    """What is done to features before a model reads them; fitted on training videos, saved with the model.

    `steps` is the length of a training sequence, None leaves videos whole. `temporal_difference` replaces x[t] by
    |x[t] - x[t - 1]|: XFeat describes places, and a fight changes how they move. `mean` and `std` (D,) standardise channels.
    `window` is how many rows `steps` steps stand for when rows are scored: half the median training video, but no fewer than
    `steps` where training videos have as many (benchmarks/long_videos.py); None is `steps`. `farthest` is the largest `distance` of
    a training video from all of them; None where a detector was saved before it was kept.
    """

    steps: int | None
    temporal_difference: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    window: int | None = None
    farthest: float | None = None

    @classmethod
    def fit(
        cls, features: Mapping[str, np.ndarray], *, steps: int | None, temporal_difference: bool, standardise: bool = True
    ) -> "Preprocessing":
        """Measure the channels of the TRAINING videos, {id: (T, D)}; without `standardise`, mean 0 and std 1 are taken."""
        raw = cls(steps, temporal_difference, (0.0,), (1.0,))
        mean, std = _mean_and_std(raw._finite_steps(name, x) for name, x in features.items())
        typical = int(np.median([len(x) for x in features.values()]))
        window = max(typical // 2, min(steps, typical)) if steps else None
        mean, std = (mean, np.maximum(std, 1e-6)) if standardise else (np.zeros_like(std), np.ones_like(std))
        fitted = cls(steps, temporal_difference, tuple(map(float, mean)), tuple(map(float, std)), window)
        return replace(fitted, farthest=max(fitted.distance(fitted._steps(x, None).mean(0)) for x in features.values()))

    def __call__(self, features: np.ndarray, steps: int | None = None) -> Tensor:
        """Return features (T, D) as a model reads them: (D, steps), or (D, T) when `steps` is None."""
        standard = self._standard(self._steps(features, steps))
        if not np.isfinite(standard).all():
            raise ValueError(f"features hold NaN or infinity, first in row {np.isfinite(features).all(1).argmin()}")
        return torch.from_numpy(np.ascontiguousarray(standard.T))

    def distance(self, mean: np.ndarray) -> float:
        """Return how far a video's mean row (D,), after the temporal difference if one is taken, is from the training videos'.

        The root mean square over channels, in standard deviations of a training row.
        """
        return float(np.sqrt(np.square(self._standard(np.asarray(mean, np.float32))).mean()))

    def windows(self, features: np.ndarray, ends: Sequence[int]) -> Tensor:
        """Return windows of features (T, D) as a model reads them, (N, D, steps): the rows before each of N `ends`, no later one.

        A window has `window` rows; one that would begin before the video has those there are, brought to `steps` as well.
        """
        parts = []
        for end in ends:
            first = max(0, end - (self.window or self.steps))
            rows = features[max(0, first - 1) : end]  # the temporal difference of row `first` needs the row before it
            parts.append(to_steps(self._steps(rows, None)[first - max(0, first - 1) :], self.steps))
        return torch.from_numpy(self._standard(np.stack(parts))).mT.contiguous()

    def _standard(self, features: np.ndarray) -> np.ndarray:
        return (features - np.float32(self.mean)) / np.float32(self.std)

    def parts(self, features: np.ndarray, rows: int) -> Iterator[Tensor]:
        """Yield features (T, D), which may be a memory map, as a stream reads them: (n, D), n at most `rows`, at least 2.

        Together they are the transpose of `self(features)`: a part reads one feature of the part before.
        """
        if rows < 2 or not len(features):
            raise ValueError(f"need features (T, D) with T at least 1 and parts of 2 or more, got {features.shape}, {rows}")
        for start in range(0, len(features), rows):
            before = min(start, int(self.temporal_difference))
            yield self(np.asarray(features[start - before : start + rows])).mT[before:]

    def _finite_steps(self, name: str, features: np.ndarray) -> np.ndarray:
        steps = self._steps(features, self.steps)
        if not np.isfinite(steps).all():
            raise ValueError(f"{name}: its features hold NaN or infinity, first in row {np.isfinite(features).all(1).argmin()}")
        return steps

    def _steps(self, features: np.ndarray, steps: int | None) -> np.ndarray:
        features = temporal_difference(features) if self.temporal_difference else np.asarray(features, np.float32)
        return features if steps is None else to_steps(features, steps)


class Sequences(torch.utils.data.Dataset):
    """Preprocessed videos in the order of `names`: item {"x": (D, steps or T), "labels"}; whole videos have "lengths" too.

    `targets` are {id: 0 or 1}, or {id: (T,) in {0, 1}}: then an item's "labels" are (steps,), one per part.
    `labels` (N,) are those of the videos: 1 where any target is.
    """

    def __init__(self, features: Mapping[str, np.ndarray], targets: Mapping[str, int | np.ndarray], preprocessing: Preprocessing):
        if set(features) != set(targets):
            odd = sorted(set(features) ^ set(targets))[0]
            raise ValueError(f"features and labels must name the same videos, {odd!r} is in one only")
        self.names = sorted(features)
        self.lengths = [len(features[name]) for name in self.names]
        self.preprocessing = preprocessing
        self.features = [features[name] for name in self.names]
        whole = preprocessing.steps is None  # whole videos are many times as large: preprocessed when their turn comes
        self.x = None if whole else [preprocessing(x, preprocessing.steps) for x in self.features]  # (D, steps) each
        self.labels = torch.tensor([float(np.max(targets[name])) for name in self.names])
        self.targets = self.labels
        if any(np.ndim(targets[name]) for name in self.names):
            for name, count in zip(self.names, self.lengths, strict=True):
                if np.shape(targets[name]) != (count,):
                    raise ValueError(f"video {name}: {count} rows for targets of shape {np.shape(targets[name])}")
            parts = [targets_to_steps(targets[name], preprocessing.steps) for name in self.names]
            self.targets = [torch.from_numpy(part) for part in parts]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        x = self.preprocessing(self.features[place]) if self.x is None else self.x[place]
        item = {"x": x, "labels": self.targets[place]}
        return item if self.preprocessing.steps else item | {"lengths": torch.tensor(self.lengths[place])}


def pad_collate(items: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return whole videos as a batch: x (B, D, T) padded with zeros, lengths (B,), labels (B,)."""
    x = torch.nn.utils.rnn.pad_sequence([item["x"].T for item in items], batch_first=True).mT
    return {"x": x, **{name: torch.stack([item[name] for item in items]) for name in ("labels", "lengths")}}


def preprocess_splits(
    features: Mapping[str, np.ndarray],
    targets: Mapping[str, int | np.ndarray],
    val: Collection[str] | None,
    *,
    steps: int | None,
    temporal_difference: bool,
    standardise: bool = True,
) -> tuple[Preprocessing, Sequences, Sequences | None]:
    """Return the preprocessing fitted on the training videos, the training set, and the set of the videos in `val` (None: none)."""
    chosen = set(val or ())
    sides = [[n for n in features if n not in chosen], [n for n in features if n in chosen]]
    if not sides[0] or (val is not None and not sides[1]):
        raise ValueError(f"need videos on both sides, got {len(sides[0])} to train on and {len(sides[1])} to choose by")
    fitted = Preprocessing.fit(
        {name: features[name] for name in sides[0]}, steps=steps, temporal_difference=temporal_difference, standardise=standardise
    )
    sets = [
        Sequences({n: features[n] for n in names}, {n: targets[n] for n in names}, fitted) if names else None for names in sides
    ]
    return fitted, *sets
