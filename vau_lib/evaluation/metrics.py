"""Detection metrics: frame and video AUC and AP, thresholds, bootstrap intervals over videos, sanity rows.

- `scores` and `labels` are {video id: array}, refused where names or lengths differ, never cut to fit: two lists in
  another order with the same total length take XD-Violence from .666 to .511 and look like a bad model
- micro is the default, one ROC over all frames of all videos; macro and anomalous-only say so
- average precision is the step sum; the trapezoid is another number and has another name
- frames of one video are not independent: every interval resamples videos (percentiles, Efron 1979)
- a number without its chance level means nothing: `sanity_rows` belongs beside every table
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from sklearn import metrics as reference

from vau_lib.data.records import SNIPPET_FRAMES, VideoRecord, frame_labels

CHUNK = 4_000_000  # numbers held at once by a bootstrap, 32 MB each array
GRID = np.linspace(0, 1, 201)  # where the band of a curve is drawn
REDUCE = {"max": np.max, "mean": np.mean}
Arrays = Mapping[str, np.ndarray]
Rng = np.random.Generator
Metric = Callable[[Arrays, Arrays], float]


class OneClassError(ValueError):
    """AUC and AP are undefined: every label is the same."""


class Interval(NamedTuple):
    """A value, its percentile interval, how many resamples had both classes, and the two-sided p of its being zero."""

    value: float
    low: float
    high: float
    resamples: int
    p_value: float = float("nan")  # of differences only


class Curve(NamedTuple):
    """Points x, y (N,) and, where asked for, (x, low, high) of the band over videos."""

    x: np.ndarray
    y: np.ndarray
    band: tuple[np.ndarray, np.ndarray, np.ndarray] | None


def expand(scores: np.ndarray, num_frames: int, snippet_frames: int = SNIPPET_FRAMES) -> np.ndarray:
    """Return a score per frame (num_frames,) from one per snippet (n,): S[t] = s[min(t // snippet_frames, n - 1)].

    The last score is repeated where the last snippet was dropped, cut where it was kept half full.
    """
    scores = _vector("expand", scores)
    return scores[np.minimum(np.arange(num_frames) // snippet_frames, len(scores) - 1)]


def expand_evenly(scores: np.ndarray, num_frames: int) -> np.ndarray:
    """Return a score per frame from n equal parts (32-segment models), bounds round(linspace(0, num_frames, n + 1))."""
    scores = _vector("expand_evenly", scores)
    return np.repeat(scores, np.diff(np.round(np.linspace(0, num_frames, len(scores) + 1)).astype(int)))


def rescaled_per_video(scores: Arrays) -> dict[str, np.ndarray]:
    """Return each video's scores brought to [0, 1] by its own extremes: the pitfall, to show, never to report.

    It has seen the whole test video, and says every video has an anomaly; flat scores become 0.
    """
    low = {name: values - np.min(values) for name, values in scores.items()}
    return {name: values / (np.max(values) or 1) for name, values in low.items()}


def frame_auc(scores: Arrays, labels: Arrays) -> float:
    """Return micro AUC: one ROC over all frames; P(S+ > S-) + P(S+ = S-) / 2. ValueError with one class only."""
    joined, truth = _joined(scores, labels)
    return float(reference.roc_auc_score(_both_classes(truth), joined))


def frame_ap(scores: Arrays, labels: Arrays) -> float:
    """Return average precision over all frames, sum_k (R_k - R_(k-1)) P_k; chance is the share of positive frames."""
    joined, truth = _joined(scores, labels)
    return float(reference.average_precision_score(_both_classes(truth), joined))


def frame_trapezoid_pr(scores: Arrays, labels: Arrays) -> float:
    """Return the area under the PR curve by trapezoids, the protocol of C2FPL: it joins points no threshold reaches."""
    joined, truth = _joined(scores, labels)
    precision, recall, _ = reference.precision_recall_curve(_both_classes(truth), joined)
    return float(reference.auc(recall, precision))


def frame_auc_anomalous_only(scores: Arrays, labels: Arrays) -> float:
    """Return micro AUC over the videos that hold an anomaly: localisation, which a video's label does not give.

    Published as Ano-AUC (XD-Violence's and VadCLIP's users) and AUC_sub (UR-DMU, BN-WVAD).
    """
    return frame_auc(*_anomalous(scores, labels))


def frame_ap_anomalous_only(scores: Arrays, labels: Arrays) -> float:
    """Return average precision over the videos that hold an anomaly (AP_sub of UR-DMU and BN-WVAD)."""
    return frame_ap(*_anomalous(scores, labels))


def frame_auc_macro(scores: Arrays, labels: Arrays) -> tuple[float, int]:
    """Return the mean of each video's own AUC over the K videos with both classes, and K; no padding of the others."""
    each = [row["frame_auc"] for row in per_video(scores, labels) if not np.isnan(row["frame_auc"])]
    if not each:
        raise OneClassError(f"macro AUC needs a video with both classes: none of {len(labels)} has")
    return float(np.mean(each)), len(each)


def per_video(scores: Arrays, labels: Arrays) -> list[dict]:
    """Return one row per video: frames, share of positive ones, its own frame AUC (nan with one class)."""
    rows = []
    for name, values, truth in _matched(scores, labels):
        auc = float(reference.roc_auc_score(truth, values)) if 0 < truth.mean() < 1 else np.nan
        rows.append({"video": name, "frames": len(truth), "positive_share": float(truth.mean()), "frame_auc": auc})
    return rows


def video_auc(scores: Arrays, labels: Arrays, reduce: str = "max") -> float:
    """Return AUC with one score per video, its scores (n,) or () reduced; a video is anomalous when any label is 1.

    Lengths need not agree: labels may be one number per video, or one per frame.
    """
    return frame_auc(*_per_video(scores, labels, reduce))


def video_ap(scores: Arrays, labels: Arrays, reduce: str = "max") -> float:
    """Return average precision with one score per video, reduced as in `video_auc`."""
    return frame_ap(*_per_video(scores, labels, reduce))


def binary_report(labels: Arrays | Sequence[int], predictions: Arrays | Sequence[int]) -> dict[str, float]:
    """Return accuracy, precision, recall, f1 (in [0, 1], 0 where undefined) and the counts tn, fp, fn, tp.

    Both are arrays of 0 and 1 in the same order, or both {video id: array}; an answer nobody can read counts as wrong.
    """
    if not isinstance(labels, Mapping):
        labels, predictions = {"all": labels}, {"all": predictions}
    decided, truth = _joined(predictions, labels)
    if not np.isin(decided, (0, 1)).all():
        raise ValueError(f"predictions must be 0 or 1, got {decided[~np.isin(decided, (0, 1))][0]}")
    tn, fp, fn, tp = reference.confusion_matrix(truth, decided, labels=[0, 1]).ravel().tolist()
    found = reference.precision_recall_fscore_support(truth, decided, average="binary", zero_division=0)
    rates = dict(zip(("precision", "recall", "f1"), map(float, found[:3]), strict=True))
    return {"accuracy": (tn + tp) / len(truth), **rates, "tn": tn, "fp": fp, "fn": fn, "tp": tp}


def youden_threshold(val_scores: Arrays, val_labels: Arrays) -> float:
    """Return the threshold (positive is score >= it) of the highest recall minus false alarm rate on validation."""
    joined, truth = _joined(val_scores, val_labels)
    false, hit, thresholds = reference.roc_curve(_both_classes(truth), joined)
    return float(thresholds[1:][np.argmax((hit - false)[1:])])  # the first is infinite: nothing is positive


def f1_threshold(val_scores: Arrays, val_labels: Arrays) -> float:
    """Return the threshold (positive is score >= it) of the highest F1 on validation."""
    joined, truth = _joined(val_scores, val_labels)
    precision, recall, thresholds = reference.precision_recall_curve(_both_classes(truth), joined)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return float(thresholds[np.argmax(f1[:-1])])


def false_alarm_rate(scores: Arrays, labels: Arrays, *, threshold: float) -> float:
    """Return the share of frames of normal videos with a score >= threshold; needs a threshold that means something."""
    normal = [values for _, values, truth in _matched(scores, labels) if not truth.any()]
    if not normal:
        raise ValueError(f"a false alarm rate needs normal videos, all {len(labels)} are anomalous")
    return float((np.concatenate(normal) >= threshold).mean())


def bootstrap_ci(
    metric: Metric, scores: Arrays, labels: Arrays, *, rng: Rng, resamples: int = 2000, level: float = 0.95
) -> Interval:
    """Return the metric with its percentile interval over resampled videos; resamples with one class are skipped.

    Fast for frame_auc, frame_ap, both over anomalous videos only, video_auc and video_ap; others are called per resample.
    """
    weights = _weights(len(labels), resamples, rng)
    return _interval(float(metric(scores, labels)), _resampled(metric, scores, labels, weights), level)


def paired_bootstrap(
    metric: Metric, scores_a: Arrays, scores_b: Arrays, labels: Arrays, *, rng: Rng, resamples: int = 2000, level: float = 0.95
) -> Interval:
    """Return metric(a) - metric(b) with its interval and p, both on the same resampled videos."""
    weights = _weights(len(labels), resamples, rng)
    drawn = _resampled(metric, scores_a, labels, weights) - _resampled(metric, scores_b, labels, weights)
    interval = _interval(float(metric(scores_a, labels)) - float(metric(scores_b, labels)), drawn, level)
    beyond = min((drawn <= 0).sum(), (drawn >= 0).sum()) / interval.resamples
    return interval._replace(p_value=min(1.0, 2 * float(beyond)))


def grouped_mean(
    values: Sequence[float], groups: Sequence[str], *, rng: Rng, resamples: int = 4000, level: float = 0.95
) -> Interval:
    """Return the mean over groups of the mean inside each, with its percentile interval over resampled groups.

    values (N,), groups (N,): a group is what belongs together, the questions of one video or the videos of one world.
    """
    values, groups = np.asarray(values, float), np.asarray(groups)
    if not len(values) or values.shape != groups.shape:
        raise ValueError(f"need as many values as groups and one at least, got {values.shape} and {groups.shape}")
    each = np.array([values[groups == group].mean() for group in np.unique(groups)])
    drawn = each[rng.integers(0, len(each), (resamples, len(each)))].mean(1)
    return _interval(float(each.mean()), drawn, level)


def sanity_rows(
    scores: Arrays, labels: Arrays, *, rng: Rng, energy: Arrays | None = None,
    metrics: Sequence[Metric] = (frame_auc, frame_ap, frame_auc_anomalous_only, frame_ap_anomalous_only), shuffles: int = 5,
) -> list[dict]:  # fmt: skip
    """Return a row for the scores and one for each thing that needs no model, a column per metric, nan if undefined.

    They are: a constant; the scores against shuffled labels (mean of `shuffles`); an oracle that knows each video's
    label and nothing else; `energy`, the size of the features. For video metrics pass one label per video.
    """
    _matched_names(scores, labels)
    known = {name: float(np.any(truth)) for name, truth in labels.items()}
    rows = {
        "scores": scores,
        "constant": {name: np.zeros(np.shape(values)) for name, values in scores.items()},
        "video-label oracle": {name: np.full(np.shape(values), known[name]) for name, values in scores.items()},
        **({"feature energy": energy} if energy is not None else {}),
    }
    table = [{"row": name, **{m.__name__: or_nan(m, of, labels) for m in metrics}} for name, of in rows.items()]
    shuffled = [_shuffled(labels, rng) for _ in range(shuffles)]
    means = {m.__name__: float(np.mean([or_nan(m, scores, truth) for truth in shuffled])) for m in metrics}
    return [*table[:2], {"row": "shuffled labels", **means}, *table[2:]]


def roc_curve(scores: Arrays, labels: Arrays, **band: object) -> Curve:
    """Return false alarm rate and hit rate; `rng=` (and `resamples=`, `level=`) adds the band over videos."""
    joined, truth = _joined(scores, labels)
    x, y, _ = reference.roc_curve(_both_classes(truth), joined)
    return Curve(*_thinned(x, y), _band(scores, labels, _hit_rate, **band) if band else None)


def pr_curve(scores: Arrays, labels: Arrays, **band: object) -> Curve:
    """Return recall, rising, and precision; the band as in `roc_curve`."""
    joined, truth = _joined(scores, labels)
    y, x, _ = reference.precision_recall_curve(_both_classes(truth), joined, drop_intermediate=True)
    return Curve(*_thinned(x[::-1], y[::-1]), _band(scores, labels, _precision, **band) if band else None)


def snippet_report(
    scores: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray] | Sequence[VideoRecord], *,
    snippet_frames: int = SNIPPET_FRAMES, last: str = "kept",
) -> tuple[dict[str, float], list[dict]]:  # fmt: skip
    """Return (summary, a row per video) of snippet scores {id: (n,)} against frame labels, or records with events.

    A video of F frames needs ceil(F / snippet_frames) scores; with `last="dropped"` (I3D features) the floor. The
    summary has frame_auc, frame_ap, frame_auc_anomalous_only and chance_ap. ValueError names the video that does not fit.
    """
    if last not in ("kept", "dropped"):
        raise ValueError(f"last must be kept or dropped, got {last!r}")
    labels = dict(truth) if isinstance(truth, Mapping) else {record.id: frame_labels(record) for record in truth}
    frames = {}
    for name in labels:
        if name not in scores:
            raise ValueError(f"video {name} has labels but no scores")
        found, length = np.shape(scores[name]), len(labels[name])
        wanted = -(-length // snippet_frames) if last == "kept" else max(1, length // snippet_frames)
        if found != (wanted,):
            raise ValueError(f"video {name}: {length} frames need {wanted} scores (last snippet {last}), got shape {found}")
        frames[name] = expand(scores[name], length, snippet_frames)
    frames |= {name: scores[name] for name in scores if name not in labels}  # refused by name below
    kinds = (frame_auc, frame_ap, frame_auc_anomalous_only)
    summary = {kind.__name__: kind(frames, labels) for kind in kinds}
    return summary | {"chance_ap": float(np.concatenate(list(labels.values())).mean())}, per_video(frames, labels)


def or_nan(metric: Metric, scores: Arrays, labels: Arrays) -> float:
    """Return the metric, nan where one class makes it undefined."""
    try:
        return float(metric(scores, labels))
    except OneClassError:
        return float("nan")


# Matching: by name, then by length, then by value. The order is that of the labels.


def _vector(name: str, values: object, kind: str = "scores") -> np.ndarray:
    values = np.atleast_1d(np.asarray(values, dtype=float))
    if values.ndim != 1 or not values.size:
        raise ValueError(f"{name}: {kind} must be one number per place, got shape {values.shape}")
    if not np.isfinite(values).all():
        place = int(np.argmin(np.isfinite(values)))
        raise ValueError(f"{name}: {kind} hold {values[place]} at place {place}")
    return values


def _matched_names(scores: Arrays, labels: Arrays) -> None:
    if not labels:
        raise OneClassError("no videos to evaluate")
    for found, other, lacks in ((labels, scores, "labels but no scores"), (scores, labels, "scores but no labels")):
        if odd := [name for name in found if name not in other]:
            raise ValueError(f"video {odd[0]} has {lacks}; {len(scores)} videos scored, {len(labels)} labelled")


def _matched(scores: Arrays, labels: Arrays) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Return (name, scores (T,), labels (T,)) per video; ValueError names the first video that does not fit."""
    _matched_names(scores, labels)
    found = []
    for name, truth in labels.items():
        values, truth = _vector(f"video {name}", scores[name]), _vector(f"video {name}", truth, "labels")
        if len(values) != len(truth):
            raise ValueError(f"video {name} has {len(values)} scores for {len(truth)} labels")
        if not ((truth == 0) | (truth == 1)).all():
            raise ValueError(f"video {name}: labels must be 0 or 1, got {truth[(truth != 0) & (truth != 1)][0]}")
        found.append((name, values, truth.astype(np.uint8)))
    return found


def _joined(scores: Arrays, labels: Arrays) -> tuple[np.ndarray, np.ndarray]:
    _, values, truth = zip(*_matched(scores, labels), strict=True)
    return np.concatenate(values), np.concatenate(truth)


def _both_classes(truth: np.ndarray) -> np.ndarray:
    if truth.min() == truth.max():
        raise OneClassError(f"AUC and AP need both classes: all {len(truth)} labels are {truth[0]}")
    return truth


def _per_video(scores: Arrays, labels: Arrays, reduce: str = "max") -> tuple[Arrays, Arrays]:
    _matched_names(scores, labels)
    if reduce not in REDUCE:
        raise ValueError(f"reduce must be one of {', '.join(REDUCE)}, got {reduce!r}")
    truth = {name: _vector(f"video {name}", values, "labels").max(keepdims=True) for name, values in labels.items()}
    return {name: REDUCE[reduce](_vector(f"video {name}", scores[name]), keepdims=True) for name in labels}, truth


def _anomalous(scores: Arrays, labels: Arrays) -> tuple[Arrays, Arrays]:
    kept = [(name, values, truth) for name, values, truth in _matched(scores, labels) if truth.any()]
    return {name: values for name, values, _ in kept}, {name: truth for name, _, truth in kept}


def _shuffled(labels: Arrays, rng: Rng) -> dict[str, np.ndarray]:
    """Move the truth elsewhere, keeping its amount and its runs: videos in another order, then a turn of the whole."""
    parts = {name: np.atleast_1d(truth) for name, truth in labels.items()}
    mixed = np.concatenate([parts[name] for name in rng.permutation(list(parts)).tolist()])
    mixed = np.roll(mixed, rng.integers(len(mixed)))
    return dict(zip(parts, np.split(mixed, np.cumsum([len(part) for part in parts.values()])[:-1]), strict=True))


# Resampling videos: sort once, then a resample is a count per video and two running sums.


def _weights(videos: int, resamples: int, rng: Rng) -> np.ndarray:
    """Return how often each video is drawn in each resample, (R, V)."""
    return rng.multinomial(videos, np.full(videos, 1 / videos), size=resamples)


def _interval(value: float, drawn: np.ndarray, level: float) -> Interval:
    kept = drawn[~np.isnan(drawn)]
    if 2 * len(kept) < len(drawn):
        raise ValueError(f"only {len(kept)} of {len(drawn)} resamples have both classes: too few videos")
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), len(kept))


def _resampled(metric: Metric, scores: Arrays, labels: Arrays, weights: np.ndarray) -> np.ndarray:
    """Return the metric on every resample, (R,), nan where it is undefined."""
    if metric in COUNTED:
        prepare, area = COUNTED[metric]
        scores, kept = prepare(scores, labels)
        columns = [place for place, name in enumerate(labels) if name in kept]
        return np.concatenate([area(tp, fp) for tp, fp in _counts(scores, kept, weights[:, columns])])
    drawn = []
    for row in weights:
        copies = {f"{name} {k}": name for name, count in zip(labels, row, strict=True) for k in range(count)}
        both = [{copy: found[name] for copy, name in copies.items()} for found in (scores, labels)]
        drawn.append(or_nan(metric, *both))
    return np.array(drawn)


def _counts(scores: Arrays, labels: Arrays, weights: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield, for some resamples at a time, true and false positives at each threshold from the highest down, (R, K)."""
    joined, truth = _joined(scores, labels)
    owner = np.repeat(np.arange(len(labels)), [np.size(values) for values in labels.values()])
    order = np.lexsort((owner, -joined))
    joined, truth, owner = joined[order], truth[order].astype(float), owner[order]
    new_score = np.append(True, np.diff(joined) != 0)
    first = np.flatnonzero(new_score | np.append(True, np.diff(owner) != 0))  # one entry per video and score
    positive, size = np.add.reduceat(truth, first), np.diff(np.append(first, len(joined)))
    last_of_score = np.append(np.flatnonzero(new_score[first])[1:], len(first)) - 1  # tied scores share a threshold
    step = max(1, CHUNK // len(first))
    for start in range(0, len(weights), step):
        drawn = weights[start : start + step, owner[first]]
        true, false = drawn * positive, drawn * (size - positive)
        yield np.cumsum(true, axis=1)[:, last_of_score], np.cumsum(false, axis=1)[:, last_of_score]


def _area_roc(tp: np.ndarray, fp: np.ndarray) -> np.ndarray:
    tp, fp = (np.pad(count, ((0, 0), (1, 0))) for count in (tp, fp))
    total = tp[:, -1] * fp[:, -1]
    return np.where(total > 0, np.trapezoid(tp, fp, axis=1) / np.maximum(total, 1), np.nan)


def _area_pr(tp: np.ndarray, fp: np.ndarray) -> np.ndarray:
    gained = np.diff(tp, axis=1, prepend=0)
    area = (gained * tp / np.maximum(tp + fp, 1)).sum(axis=1)
    return np.where((tp[:, -1] > 0) & (fp[:, -1] > 0), area / np.maximum(tp[:, -1], 1), np.nan)


def _hit_rate(tp: np.ndarray, fp: np.ndarray) -> np.ndarray:
    return np.interp(GRID, np.append(0, fp / fp[-1]), np.append(0, tp / tp[-1]))


def _precision(tp: np.ndarray, fp: np.ndarray) -> np.ndarray:
    """Return precision at the first threshold that reaches each recall: the steps average precision sums."""
    return (tp / np.maximum(tp + fp, 1))[np.searchsorted(tp / tp[-1], GRID)]


def _band(
    scores: Arrays, labels: Arrays, at_grid: Callable, *, rng: Rng, resamples: int = 500, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    counted = _counts(scores, labels, _weights(len(labels), resamples, rng))
    rows = [at_grid(*row) for block in counted for row in zip(*block, strict=True) if row[0][-1] and row[1][-1]]
    return GRID, *np.quantile(rows, [(1 - level) / 2, (1 + level) / 2], axis=0)


def _thinned(x: np.ndarray, y: np.ndarray, points: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    kept = np.unique(np.linspace(0, len(x) - 1, min(points, len(x))).round().astype(int))
    return x[kept], y[kept]


COUNTED = {  # metrics that are sums over thresholds: how to prepare the sets, which sum
    frame_auc: (lambda scores, labels: (scores, labels), _area_roc),
    frame_ap: (lambda scores, labels: (scores, labels), _area_pr),
    frame_auc_anomalous_only: (_anomalous, _area_roc),
    frame_ap_anomalous_only: (_anomalous, _area_pr),
    video_auc: (_per_video, _area_roc),
    video_ap: (_per_video, _area_pr),
}
