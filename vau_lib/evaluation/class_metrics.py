"""Metrics by class of anomaly: frame AUC and AP of each class, and the mean AP of segments at tIoU .1 to .5 (VadCLIP).

- most detectors have one score for all classes: its rows say "class-agnostic", and it has no segment mAP
- segment mAP is VadCLIP's (Wu et al., AAAI 2024; their utils/*_detectionMAP.py was read for facts): scores (T, C) per frame,
  a proposal is a run above max - .6 (max - min), its score the run's maximum + .7 of the video's, NMS at .6, greedy matching
- VadCLIP's UCF ground truth calls normal videos "A" and its class list "Normal": that class gets AP 0 and the mean cannot pass
  13/14 = .9286. `released=True` gives this number; the default takes both names for one class
- torchmetrics has mean AP of boxes only, with COCO's interpolation at 101 recalls: another number, hence this module
"""

import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vau_lib.data import datasets
from vau_lib.data.records import SNIPPET_FRAMES, VideoRecord, frame_labels
from vau_lib.evaluation import metrics
from vau_lib.workspace import artifacts

UCF_CLASSES = (
    "Normal", "Abuse", "Arrest", "Arson", "Assault", "Burglary", "Explosion", "Fighting", "RoadAccidents", "Robbery",
    "Shooting", "Shoplifting", "Stealing", "Vandalism",
)  # fmt: skip
XD_CLASSES = ("A", "B1", "B2", "B4", "B5", "B6", "G")  # normal, fighting, shooting, riot, abuse, car accident, explosion
NORMAL = ("Normal", "A")  # two names of one class
RECORD_NAMES = datasets.UCF_CLASSES | datasets.XD_CLASSES  # RoadAccidents -> road accident
IOUS = (0.1, 0.2, 0.3, 0.4, 0.5)
VIDEO_SHARE, BEST_SHARE = 0.7, 16  # a proposal's score takes .7 of its video's, the mean of the highest 1/16 of all frames
Arrays = Mapping[str, np.ndarray]
Segments = Mapping[str, Sequence[tuple[str, int, int]]]


def by_class(
    scores: Arrays, labels: Arrays, classes: Mapping[str, Sequence[str]], *, columns: Sequence[str] | None = None
) -> list[dict]:
    """Return a row per class of the anomalous videos: frame AUC and AP of its videos alone and beside all normal ones.

    `scores` are {video: (T,)}, or (T, C) with the names of the C `columns`: then each class is ranked by its own. `labels`
    are {video: (T,)}, `classes` {video: its classes}; a video of several counts for each, with all its anomalous frames.
    `frame_auc_anomalous_only` and `frame_ap_anomalous_only` are of the class's videos, nan where all their frames are
    anomalous; `frame_auc` and `frame_ap` add the normal videos; `chance_ap` belongs to `frame_ap`. ValueError: an anomalous
    video without a class, or a class without a column.
    """
    normal = [name for name, truth in labels.items() if not np.any(truth)]
    members: dict[str, list[str]] = {}
    for name in (name for name in labels if np.any(labels[name])):
        found = [one for one in classes.get(name, ()) if one not in NORMAL]
        if not found:
            raise ValueError(f"video {name} is anomalous and has no class")
        for one in found:
            members.setdefault(one, []).append(name)
    rows = []
    for one, names in sorted(members.items()):
        if columns is not None and one not in columns:
            raise ValueError(f"class {one} has no column among {', '.join(columns)}")
        place = ... if columns is None else (..., list(columns).index(one))
        alone, beside = (
            ({n: np.asarray(scores[n])[place] for n in chosen}, {n: labels[n] for n in chosen})
            for chosen in (names, names + normal)
        )
        truth = np.concatenate(list(beside[1].values()))
        rows.append({
            "class": one, "videos": len(names), "scores": "class-agnostic" if columns is None else "own class",
            "frame_auc_anomalous_only": metrics.or_nan(metrics.frame_auc, *alone),
            "frame_ap_anomalous_only": metrics.or_nan(metrics.frame_ap, *alone),
            "frame_auc": metrics.or_nan(metrics.frame_auc, *beside), "frame_ap": metrics.or_nan(metrics.frame_ap, *beside),
            "normal_videos": len(normal), "chance_ap": float(truth.mean()),
        })  # fmt: skip
    return rows


def segment_map(
    class_scores: Arrays, segments: Segments, *, classes: Sequence[str], ious: Sequence[float] = IOUS, released: bool = False,
    ratios: Sequence[float] = (0.6,),
) -> dict[str, float]:  # fmt: skip
    """Return {"segment_map_0.1": ..., "segment_map": their mean} in [0, 1]; papers print percent.

    Args:
        class_scores: {video: (T, C)} a probability per frame and class, columns in the order of `classes`.
        segments: {video: [(class, start, end), ...]} half-open, in frames; a normal video is one segment "A" or "Normal".
        classes: names of the columns, `UCF_CLASSES` or `XD_CLASSES`.
        ious: temporal IoU from which a proposal matches.
        released: the released code's number. Class names are compared letter by letter, so UCF's "A" is no class; a class
            without a proposal makes the whole mAP 0; one without a segment counts as AP 0; an even score has no proposal.
            The default leaves out classes without a segment, and takes an even positive score for one proposal.
        ratios: thresholds max - ratio (max - min); proposals of several go through NMS at IoU .6.

    Raises:
        ValueError: names differ, a video's scores are not (T, C) finite numbers, or a segment is empty.
    """
    table = segment_ap(class_scores, segments, classes=classes, ious=ious, released=released, ratios=ratios)
    each = {f"segment_map_{iou:g}": float(np.nanmean([ap[iou] for ap in table.values()])) for iou in ious}
    return each | {"segment_map": float(np.mean(list(each.values())))}


def segment_ap(
    class_scores: Arrays, segments: Segments, *, classes: Sequence[str], ious: Sequence[float] = IOUS, released: bool = False,
    ratios: Sequence[float] = (0.6,),
) -> dict[str, dict[float, float]]:  # fmt: skip
    """Return {class: {iou: AP}}, nan for a class without a segment; arguments as in `segment_map`.

    AP is the sum of the precisions at each right proposal over the number of segments, proposals taken from the highest
    score down, each matched to the segment of its video it overlaps most, a segment once.
    """
    _check(class_scores, segments, classes)
    names = list(segments)
    known = {one: [s for s in _segments(names, segments, one, released)] for one in classes}
    found = {
        one: _proposals([np.asarray(class_scores[n], float)[:, column] for n in names], ratios, released)
        for column, one in enumerate(classes)
    }
    if released and not all(map(len, found.values())):  # its loop returns 0 at the first class without a proposal
        return {one: dict.fromkeys(ious, 0.0) for one in classes}
    lost = 0.0 if released else np.nan
    return {one: {iou: _ap(found[one], known[one], iou) if known[one] else lost for iou in ious} for one in classes}


def released_segments(segments_file: str | Path, labels_file: str | Path, names: Sequence[str]) -> dict[str, list[tuple]]:
    """Return {video: [(class, start, end), ...]} of VadCLIP's gt_segment*.npy and gt_label*.npy, by a list's video names.

    The files hold Python lists of strings and ints; anything else in them is refused (StoreError), as is another number of
    videos than `names`.
    """
    spans, labels = (_plain_lists(Path(path)) for path in (segments_file, labels_file))
    if not len(spans) == len(labels) == len(names):
        raise artifacts.StoreError(f"{Path(segments_file).name}: {len(spans)} videos, {len(labels)} labels, {len(names)} names")
    found = {}
    for name, places, kinds in zip(names, spans, labels, strict=True):
        if len(places) != len(kinds):
            raise artifacts.StoreError(f"{Path(segments_file).name}: {name} has {len(places)} segments, {len(kinds)} labels")
        found[name] = [(str(kind), int(start), int(end)) for kind, (start, end) in zip(kinds, places, strict=True)]
    return found


def record_segments(found: Sequence[VideoRecord]) -> dict[str, list[tuple[str, int, int]]]:
    """Return {video: [(class, start, end), ...]} in frames from records; a normal video is one segment "Normal".

    An event's own label is its class, else the video's only one; ValueError names an event that has neither.
    """
    segments = {}
    for record in found:
        if not record.label:
            segments[record.id] = [("Normal", 0, record.num_frames)]
            continue
        segments[record.id] = []
        for event in record.events:
            kind = event.label or (record.classes[0] if len(record.classes) == 1 else "")
            if not kind:
                raise ValueError(f"video {record.id}: the event at {event.start_s:g} s has no class")
            segments[record.id].append((kind, round(event.start_s * record.fps), round(event.end_s * record.fps)))
    return segments


def write_class_scores(path: str | Path, class_scores: Arrays, classes: Sequence[str]) -> None:
    """Write {video: (n, C)} and the names of the C classes as one .npz, whole or not at all."""
    for name, values in class_scores.items():
        if np.ndim(values) != 2 or np.shape(values)[1] != len(classes):
            raise ValueError(f"video {name}: class scores must be (n, {len(classes)}), got {np.shape(values)}")
    with artifacts.replacing(Path(path)) as temporary, temporary.open("wb") as file:
        arrays = {f"video {name}": np.asarray(values, np.float32) for name, values in class_scores.items()}
        np.savez_compressed(file, classes=np.array(classes, str), **arrays)


@artifacts.reader()
def read_class_scores(path: str | Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return ({video: (n, C)}, names of the classes) of a file of `write_class_scores`; names as the records have them."""
    try:
        file = artifacts.load_arrays(path)
        with artifacts.reading(path):
            names = [RECORD_NAMES.get(str(name), str(name)) for name in file["classes"]]
        return {key.removeprefix("video "): scores for key, scores in file.items() if key.startswith("video ")}, names
    except artifacts.StoreError as error:
        raise artifacts.StoreError(f"{Path(path).name} holds no class scores: {artifacts.one_line(error)}") from error


def class_report(
    path: str | Path, found: Sequence[VideoRecord], *, snippet_frames: int = SNIPPET_FRAMES
) -> tuple[list[dict], dict[str, float]]:
    """Return (`by_class` rows, `segment_map` as intended and, its names ending in _released, as released) of a model's file.

    `path` holds scores per snippet and class, see `write_class_scores`; `found` are the test records, whose frames they get.
    """
    snippets, columns = read_class_scores(path)
    labels = {record.id: frame_labels(record) for record in found}
    if odd := sorted(set(snippets) ^ set(labels)):
        raise ValueError(f"{Path(path).name}: video {odd[0]} {'is no test video' if odd[0] in snippets else 'has no scores'}")
    scores = {}
    for name, truth in labels.items():
        by_column = [metrics.expand(snippets[name][:, k], len(truth), snippet_frames) for k in range(len(columns))]
        scores[name] = np.stack(by_column, axis=1)
    segments = record_segments(found)
    mean = segment_map(scores, segments, classes=columns)
    mean |= {f"{k}_released": v for k, v in segment_map(scores, segments, classes=columns, released=True).items()}
    return by_class(scores, labels, {r.id: r.classes for r in found}, columns=columns), mean


# Proposals, matching.


def _proposals(columns: Sequence[np.ndarray], ratios: Sequence[float], released: bool) -> np.ndarray:
    """Return (P, 4) video, start, end, score of one class, from the highest score down; columns are (T,) per video."""
    kept = []
    for video, scores in enumerate(columns):
        whole = np.sort(scores)[::-1][: max(1, len(scores) // BEST_SHARE)].mean()
        if not whole > 0:
            continue
        low, high, runs = scores.min(), scores.max(), []
        for ratio in ratios:
            hot = scores > high - (high - low) * ratio
            if low == high:
                hot = np.full(len(scores), not released)
            edges = np.flatnonzero(np.diff(hot.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
            runs += [(video, s, e, scores[s:e].max() + VIDEO_SHARE * whole) for s, e in edges if e - s >= 2]
        kept += _suppressed(sorted(runs, key=lambda run: -run[3]))
    return np.array(sorted(kept, key=lambda run: -run[3]), float).reshape(-1, 4)


def _suppressed(runs: list[tuple], overlap: float = 0.6) -> list[tuple]:
    """Return the runs, best first, without those that overlap a better one by more than `overlap` (NMS in one dimension)."""
    kept: list[tuple] = []
    for run in runs:
        if not any(_iou(run[1:3], np.array([other[1:3]]))[0] > overlap for other in kept):
            kept.append(run)
    return kept


def _iou(span: Sequence[float], others: np.ndarray) -> np.ndarray:
    """Return the temporal IoU of (start, end) with each of (N, 2)."""
    shared = np.maximum(0, np.minimum(span[1], others[:, 1]) - np.maximum(span[0], others[:, 0]))
    return shared / (span[1] - span[0] + others[:, 1] - others[:, 0] - shared)


def _ap(proposals: np.ndarray, segments: Sequence[tuple[int, int, int]], iou: float) -> float:
    left = {}
    for video, start, end in segments:
        left.setdefault(video, []).append((start, end))
    right = np.zeros(len(proposals))
    for place, (video, start, end, _) in enumerate(proposals):
        open_ = left.get(int(video), [])
        if open_:
            overlaps = _iou((start, end), np.array(open_, float))
            if overlaps.max() >= iou:
                right[place] = 1
                del open_[int(overlaps.argmax())]
    precision = right.cumsum() / np.arange(1, len(right) + 1)
    return float((precision * right).sum() / len(segments))


# Input, refused by name.


def _check(class_scores: Arrays, segments: Segments, classes: Sequence[str]) -> None:
    if odd := sorted(set(class_scores) ^ set(segments)):
        raise ValueError(f"video {odd[0]} has {'scores but no segments' if odd[0] in class_scores else 'segments but no scores'}")
    if not segments:
        raise ValueError("no videos to evaluate")
    for name, values in class_scores.items():
        values = np.asarray(values)
        if values.ndim != 2 or values.shape[1] != len(classes) or not len(values) or not np.isfinite(values).all():
            raise ValueError(f"video {name}: class scores must be (T, {len(classes)}) finite numbers, got {values.shape}")
        if odd := [row for row in segments[name] if not 0 <= row[1] < row[2]]:
            raise ValueError(f"video {name}: a segment starts at 0 or later and ends after that, got {tuple(odd[0])}")


def _segments(names: Sequence[str], segments: Segments, one: str, released: bool) -> list[tuple[int, int, int]]:
    alias = (one,) if released or one not in NORMAL else NORMAL
    return [(video, row[1], row[2]) for video, name in enumerate(names) for row in segments[name] if row[0] in alias]


class _PlainUnpickler(pickle.Unpickler):
    """Arrays, lists, strings and numbers; no other name of a pickle is looked up."""

    def find_class(self, module: str, name: str) -> object:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np._core.multiarray._reconstruct
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise artifacts.StoreError(f"a list of segments holds {module}.{name}, which is not read")


def _plain_lists(path: Path) -> np.ndarray:
    """Return an object array (V,) of lists of strings and ints."""
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, kind = read(file)
            if not kind.hasobject:
                raise artifacts.StoreError(f"{path.name}: an array of lists is needed, got {shape} of {kind}")
            found = _PlainUnpickler(io.BytesIO(file.read())).load()
    except Exception as error:  # a damaged pickle can fail in any way
        if isinstance(error, artifacts.StoreError):
            raise artifacts.StoreError(f"{path.name}: {error}") from error
        raise artifacts.StoreError(f"{path.name} is no array of lists: {error}") from error
    return found
