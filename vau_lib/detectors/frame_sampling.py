"""Frame sampling by anomaly scores: Holmes-VAU's density-aware sampler (ATS) as intended and as released, uniform, top-k.

- a snippet's mass is its score plus tau: quiet stretches keep a share, flat scores mean even frames; the mass is cut into N
  equal parts, so that every part of a video can be reached, its head too, and each gives one frame
- which one, the paper leaves open: the part's highest score by default (it hits more, see LAB.md), or the middle of its mass
- a frame shown twice is a frame wasted: a snippet's mass is capped at one frame's share, and what it had above goes to the
  mass that comes next; the cap is the one number for which nothing is left over
- `released=True` is the published sampler on any curve, in float64 (in float32 NumPy 2 gives other frames), with whole
  numbers where the published one crashes: it starts at mass 1, not 0, and falls back to even frames when scores are low
- choices are ints, sorted and in range for any T >= 1; where fewer snippets exist than frames are asked, some repeat
Scores are (T,) in [0, 1], one per snippet; an index is a snippet's place. Nothing here knows of files or models.
Source: Zhang et al., Holmes-VAU, CVPR 2025, section 4.2, Eq. 2, and its repository (MIT; read for facts).
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist

import numpy as np
import pandas as pd

TAU = 0.1  # mass every snippet has before its score; section 5.1
LOW_MASS = 1.0  # as released: scores that sum to less are not looked at
Spans = Sequence[tuple[float, float]]
Sampler = Callable[[np.ndarray, int], np.ndarray]


def density_aware_sample(
    scores: np.ndarray, num_frames: int, *, tau: float = TAU, released: bool = False, middle: bool = False
) -> np.ndarray:
    """Return the snippets to look at, int (num_frames,), sorted, of scores (T,) in [0, 1].

    One of each of num_frames equal parts of the mass: its highest (of equals, the nearest to its middle), or with `middle`
    the one in its middle. Distinct for T >= num_frames; below, all snippets are taken and some repeat evenly, with a
    warning. `tau` 0 gives snippets of score 0 nothing while others are left. All-zero scores are flat scores: even frames.
    ValueError for NaN, scores outside [0, 1] and wrong shapes.
    """
    scores, num_frames = _scores(scores), _count(num_frames)
    if not 0 <= tau < math.inf:
        raise ValueError(f"tau must be 0 or more, got {tau}")
    if released:
        return _released(scores, num_frames, tau)
    if len(scores) <= num_frames:
        return _all_and_more(len(scores), num_frames)
    mass = scores + tau
    if (mass > 0).sum() <= num_frames:  # only with tau 0: take what has mass, then even frames of the rest
        first, rest = np.flatnonzero(mass > 0), np.flatnonzero(mass == 0)
        spare = num_frames - len(first)
        return np.sort(np.append(first, rest[_middles(np.ones(len(rest)), spare)] if spare else rest[:0]))
    mass = np.minimum(mass, one_share(mass, num_frames))
    found = _middles(mass, num_frames)
    return found if middle else _highest(scores, mass, found)


def _highest(scores: np.ndarray, mass: np.ndarray, middles: np.ndarray) -> np.ndarray:
    """Return the highest of each part's scores (T,), strictly rising; a snippet is in the part its own middle lies in.

    No mass (T,) may exceed a part's, so every part has a snippet.
    """
    total, count = np.cumsum(mass), len(middles)
    part = ((total - mass / 2) / total[-1] * count * (1 + 1e-12)).astype(int).clip(0, count - 1)
    order = np.lexsort((abs(np.arange(len(mass)) - middles[part]), -scores, part))
    firsts = np.unique(part[order], return_index=True)[1]
    return order[firsts] if len(firsts) == count else middles  # rounding alone can empty a part


def one_share(mass: np.ndarray, num_frames: int) -> float:
    """Return the cap c with sum(min(mass, c)) = num_frames * c: as much mass as one frame stands for, of mass (T,).

    With it no snippet holds two of the middles of num_frames equal parts. More than num_frames entries must be positive.
    """
    rising = np.sort(mass)
    below = np.append(0.0, np.cumsum(rising))  # below[k]: mass of the k smallest
    kept = np.arange(len(mass), len(mass) - num_frames, -1)  # how many are not capped: from all down
    caps = below[kept] / (num_frames - len(mass) + kept)
    fits = rising[kept - 1] <= caps * (1 + 1e-12)
    return float(caps[np.argmax(fits)])


def _middles(mass: np.ndarray, count: int) -> np.ndarray:
    """Return which entry of mass (T,) holds the middle of each of `count` <= T equal parts, strictly rising."""
    total = np.cumsum(mass)
    wanted = (np.arange(count) + 0.5) / count * total[-1]
    found = np.searchsorted(total, wanted * (1 + 1e-9), side="right")  # a middle on a border belongs to what begins there
    step = np.arange(count)  # rounding alone can put two middles in one entry, or the last beyond the end
    found = np.minimum(found, len(mass) - count + step)
    return np.maximum.accumulate(found - step) + step


def _released(scores: np.ndarray, num_frames: int, tau: float) -> np.ndarray:
    last = len(scores) - 1
    if len(scores) <= num_frames or scores.sum() < LOW_MASS:
        return np.rint(np.linspace(0, last, num_frames)).astype(int)  # floats as released, which then index a list
    total = np.append(0.0, np.cumsum(scores + tau))  # (T + 1,)
    wanted = np.linspace(1, np.round(total[-1]), num_frames)  # from mass 1 to a whole number; ties go to even
    return _extrapolated(wanted, total).astype(int).clip(0, last)


def _extrapolated(wanted: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Return where the line through (total[i], i) reaches each wanted mass, going on straight beyond its ends."""
    right = np.searchsorted(total, wanted).clip(1, len(total) - 1)
    rise = total[right] - total[right - 1]
    with np.errstate(divide="ignore", invalid="ignore"):  # tau 0: ties, where the released code divides by 0 too
        place = (1 / rise) * (wanted - total[right - 1]) + (right - 1)  # in this order the bits are SciPy's
    return np.where(rise > 0, place, right - 1)


def uniform_sample(num_total: int, num_frames: int) -> np.ndarray:
    """Return even places, int (num_frames,), of num_total frames or snippets, as InternVL takes them.

    With g = (num_total - 1) / num_frames, place k is floor(g / 2 + round(g k)); the last frames are never reached, and
    with hardly more frames than are asked one can repeat. With fewer they do, with a warning.
    """
    num_total, num_frames = _count(num_total, "num_total"), _count(num_frames)
    _few(num_total, num_frames)
    gap = (num_total - 1) / num_frames
    return (gap / 2 + np.round(gap * np.arange(num_frames))).astype(int)


def top_k_sample(scores: np.ndarray, num_frames: int) -> np.ndarray:
    """Return the places of the highest scores (T,), sorted, int (num_frames,); the earlier of equals. All must exist."""
    scores, num_frames = _scores(scores), _count(num_frames)
    if num_frames > len(scores):
        raise ValueError(f"{num_frames} frames are more than the {len(scores)} snippets that exist")
    return np.sort(np.argsort(-scores, kind="stable")[:num_frames])


def choose_frames(
    scores: np.ndarray, num_total: int, num_frames: int, *, stride: int = 16, tau: float = TAU, released: bool = False
) -> np.ndarray:
    """Return which frames of a video of `num_total` to read, int (num_frames,), by the scores (T,) of every stride-th.

    A video of at most stride * num_frames frames has no choice of glances: even frames of all of it, scores unread, each once
    where there are enough (as released, InternVL's). ValueError where the scores are not one per stride.
    """
    scores, num_total, stride = _scores(scores), _count(num_total, "num_total"), _count(stride, "stride")
    if len(scores) != -(-num_total // stride):
        raise ValueError(f"{num_total} frames at stride {stride} have {-(-num_total // stride)} scores, got {len(scores)}")
    if num_total <= stride * _count(num_frames):
        return uniform_sample(num_total, num_frames) if released else density_aware_sample(np.zeros(num_total), num_frames)
    return stride * density_aware_sample(scores, num_frames, tau=tau, released=released)


def coarse_to_fine(
    score_at: Callable[[np.ndarray], np.ndarray], num_total: int, *, stride: int = 4, refine: float = 0.25
) -> tuple[np.ndarray, np.ndarray]:
    """Return scores (T,) of a long video and which snippets were looked at, bool (T,): not all of them.

    `score_at(index (n,))` scores snippets, rising. Every `stride`-th is scored first; then, run by run, all those in the
    `refine` share of the gaps whose ends score highest; the rest is the line in between. Looked at are about
    1 / stride + refine (1 - 1 / stride) of all. An event inside a gap that raises neither end is missed.
    """
    num_total, stride = _count(num_total, "num_total"), _count(stride, "stride")
    if not 0 <= refine <= 1:
        raise ValueError(f"refine must lie in [0, 1], got {refine}")
    coarse = np.unique(np.append(np.arange(0, num_total, stride), num_total - 1))
    found = _scores(score_at(coarse), len(coarse))
    scores, looked = np.interp(np.arange(num_total), coarse, found), np.isin(np.arange(num_total), coarse)
    cells = np.argsort(-(found[:-1] + found[1:]), kind="stable")[: math.ceil(refine * (len(coarse) - 1))]
    near = np.zeros(num_total, bool)
    for cell in cells if stride > 1 else ():
        near[coarse[cell] : coarse[cell + 1] + 1] = True  # with both ends: they are its scorer's context
    edges = np.flatnonzero(np.diff(near, prepend=False, append=False)).reshape(-1, 2)
    for run in (np.arange(start, end) for start, end in edges):
        scores[run] = _scores(score_at(run), len(run))
    return scores, looked | near


# How good a choice is, against events: half-open spans in snippets, floats allowed; snippet i stands at i.

SAMPLERS: dict[str, Sampler] = {
    "uniform": lambda scores, count: uniform_sample(len(scores), count),
    "top-k": lambda scores, count: top_k_sample(scores, min(count, len(scores))),
    "released": lambda scores, count: density_aware_sample(scores, count, released=True),
    "middle": lambda scores, count: density_aware_sample(scores, count, middle=True),
    "intended": density_aware_sample,
}


def judge(index: np.ndarray, events: Spans) -> dict[str, float]:
    """Return how a choice (N,) meets events: hit_rate, coverage, event_recall, duplicates, each in [0, 1].

    hit_rate: share of the frames that lie in an event. coverage: the same with a frame seen twice counted once, the share
    of frames that show something new of an event. event_recall: share of events with a frame (nan without events).
    duplicates: share of frames that show again what another shows.
    """
    index = np.asarray(index)
    inside = np.zeros((len(events), len(index)), bool)
    for row, (start, end) in zip(inside, events, strict=True):
        row[:] = (index >= start) & (index < end)
    hit = inside.any(0) if len(events) else np.zeros(len(index), bool)
    return {
        "hit_rate": float(hit.mean()),
        "coverage": len(np.unique(index[hit])) / len(index),
        "event_recall": float(inside.any(1).mean()) if len(events) else math.nan,
        "duplicates": 1 - len(np.unique(index)) / len(index),
    }


def study(
    scores: Mapping[str, np.ndarray], events: Mapping[str, Spans], counts: Sequence[int], samplers: Mapping[str, Sampler] = SAMPLERS
) -> pd.DataFrame:
    """Return one row per video, sampler and number of frames: what `judge` says, and how many events the video has."""
    if odd := sorted(set(scores) ^ set(events)):
        raise ValueError(f"video {odd[0]} has no {'events' if odd[0] in scores else 'scores'}")
    rows = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*some repeat")  # short videos are part of the data
        for name, values in scores.items():
            for count in counts:
                for sampler, choose in samplers.items():
                    found = judge(choose(values, count), events[name])
                    rows.append({"video": name, "num_frames": count, "sampler": sampler, "events": len(events[name]), **found})
    return pd.DataFrame(rows)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return a study's means: of shares over videos, of event_recall over all events; one row per number and sampler."""
    weighed = table.assign(seen=table["event_recall"] * table["events"])
    grouped = weighed.groupby(["num_frames", "sampler"], sort=False)
    means = grouped[["hit_rate", "coverage", "duplicates"]].mean()
    means.insert(2, "event_recall", grouped["seen"].sum() / grouped["events"].sum())
    return means.assign(videos=grouped["video"].nunique()).reset_index()


def noisy_oracle(labels: np.ndarray, auc: float, rng: np.random.Generator, *, prior: float = 0.2) -> np.ndarray:
    """Return scores (T,) that know labels (T,) in {0, 1} as well as an AUC in [0.5, 1) says, and no better.

    z ~ N(d y, 1) with d = sqrt(2) Phi^-1(auc); the score is P(y = 1 | z) at `prior`: calibrated, independent per snippet.
    """
    if not 0.5 <= auc < 1:
        raise ValueError(f"auc must lie in [0.5, 1), got {auc}")
    apart = math.sqrt(2) * NormalDist().inv_cdf(auc)
    z = rng.standard_normal(len(labels)) + apart * np.asarray(labels)
    return 1 / (1 + np.exp(-(apart * z - apart**2 / 2 + math.log(prior / (1 - prior)))))


# Input, refused in one line.


def _scores(values: object, wanted: int | None = None) -> np.ndarray:
    """Return scores as float64 (T,), T as `wanted` where given."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not values.size or wanted not in (None, len(values)):
        raise ValueError(f"scores must be ({wanted or 'T'},) with T at least 1, got shape {values.shape}")
    if not ((values >= 0) & (values <= 1)).all():  # NaN fails both
        place = int(np.argmin((values >= 0) & (values <= 1)))
        raise ValueError(f"scores must lie in [0, 1], got {values[place]} at place {place}")
    return values


def _count(value: int, name: str = "num_frames") -> int:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number, 1 or more, got {value!r}")
    return int(value)


def _few(existing: int, num_frames: int) -> None:
    if existing < num_frames:
        warnings.warn(f"{num_frames} frames asked of {existing}, some repeat", stacklevel=3)


def _all_and_more(existing: int, num_frames: int) -> np.ndarray:
    _few(existing, num_frames)
    return np.arange(num_frames) * existing // num_frames  # every snippet, as evenly repeated as it goes
