"""A published LSHMA checkpoint on released features: frame AUC and AP beside the published number.

- the published way is one row: the list's crop, early exit, the released smoothing of logits, each score held for 16 frames
- the others say what is in that number: raw logits, no early exit, other crops, features without a model, shuffled labels
- every number is of as many videos as its row says, and stands beside an interval of the same number over resampled videos
Source: test scripts and lists of LSHMA and StreamVAD (read for facts); their checkpoints are named 8744_ucf and 8168_xd.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from vau_lib.data import datasets, records
from vau_lib.detectors import baselines, lshma, training
from vau_lib.evaluation import metrics
from vau_lib.features import checkpoints, released
from vau_lib.workspace import artifacts

PUBLISHED = {"ucf_crime": {"published_frame_auc": 0.8744}, "xd_violence": {"published_frame_ap": 0.8168}}  # by checkpoint names
NORMAL = {"ucf_crime": "Normal", "xd_violence": "A", "long_term": "Normal"}  # a normal video's label in each list
PART_ROWS = 1024  # features of a crop read at once
CROPS = range(10)  # five places of the picture, then the same mirrored
SCRIPT_WINDOWS = {"xd_violence": 8, "ucf_crime": 4, "long_term": 4}  # whose checkpoint the test script of a list takes
Scores = dict[str, np.ndarray]


class Evaluation(NamedTuple):
    """The results table, and what has to be said beside it, a sentence each."""

    table: pd.DataFrame
    notes: list[str]


def evaluate(
    weights: str | Path, folder: str | Path, test_list: str | Path, *, annotation: str | Path | None = None,
    gt: str | Path | None = None, num_frames: str | Path | Mapping[str, int] | None = None, crops: str = "all",
    exit_threshold: float | None = None, smoothing: int = 8, partial: bool = False, resamples: int = 500, seed: int = 0,
    device: str = "cpu",
) -> Evaluation:  # fmt: skip
    """Return the table of a published checkpoint on released features; StoreError or RecordError, one line, for what lacks.

    Args:
        weights: the published file, bare or with its wrapper.
        folder: holds the `.npy` of every video and crop, at any depth.
        test_list: the official csv `path,label` of UCF-Crime, XD-Violence or the long-term set.
        annotation: the data set's temporal annotation, which the frame labels are built from.
        gt: a .npy of all frame labels in the list's order, in place of `annotation`.
        num_frames: frames of each video, where they are not 16 per feature; see `datasets.frame_counts`.
        crops: "all" takes every crop that all videos have, "list" the one that the list names.
        exit_threshold: of the early exit; by default as published, .6, and none for the long-term set.
        smoothing: scores that the released smoothing averages; StreamVAD's XD-Violence script takes 15 (and a threshold of .55).
        partial: go on with the videos that are there; the table says how many of how many.
        resamples: of the bootstrap over videos.
        seed: of the bootstrap and of shuffled labels.
        device: where the model runs.
    """
    if crops not in ("all", "list"):
        raise ValueError(f"crops must be all or list, got {crops!r}")
    if exit_threshold is not None and not 0 <= exit_threshold <= 1:
        raise ValueError(f"exit_threshold must lie between 0 and 1 (no exit), got {exit_threshold}")
    if smoothing < 1:
        raise ValueError(f"smoothing must be 1 or more scores, got {smoothing}")
    place = _device(device)
    state = checkpoints.load_weights(weights)
    config = lshma.published_config(state, weights)
    labels, listed = released.list_videos(test_list), released.released_list(test_list, folder, partial=partial)
    if not listed:
        raise artifacts.StoreError(f"none of the {len(labels)} videos of {Path(test_list).name} is below {folder}")
    dataset = dataset_of(labels, test_list)
    _check_labels(dataset, labels, Path(test_list))
    threshold = exit_threshold if exit_threshold is not None else 1.0 if dataset == "long_term" else config.exit_threshold
    notes = [f"{len(listed)} of {len(labels)} videos"] if len(listed) < len(labels) else []
    choices = _choices(listed, config.width, crops, notes)
    exits = dict.fromkeys([threshold, 1.0])
    models = {
        exit: lshma.load_released(state, replace(config, exit_threshold=exit, smoothing=smoothing)).to(place) for exit in exits
    }
    raw: dict[tuple[float, str], Scores] = {(exit, choice): {} for exit in models for choice in choices.names}
    size, baseline = {}, {"norm of features": {}, "temporal difference of features": {}}
    for name, _, files in tqdm(listed, desc="videos scored"):
        for exit, model in models.items():
            parts = (torch.from_numpy(part).to(place) for part in choices.parts(name, files))
            logits = model.raw_logits(parts).double().cpu().numpy()  # (choices, T)
            if not np.isfinite(logits).all():
                largest = max(np.abs(part).max() for part in choices.parts(name, files))
                raise artifacts.StoreError(f"{name}: a logit is not finite, its features reach {largest:g}")
            for choice, values in choices.scores(logits).items():
                raw[exit, choice][name] = values
        size[name] = logits.shape[1]
        for key, function in zip(baseline, (baselines.energy, baselines.difference), strict=True):
            own = (part[choices.listed].mean(0) for part in choices.parts(name, files))
            baseline[key][name] = _by_parts(function, own)

    counts = datasets.frame_counts(num_frames) or {name: records.SNIPPET_FRAMES * count for name, count in size.items()}
    if unknown := [name for name in size if name not in counts]:
        raise artifacts.StoreError(f"no number of frames for {unknown[0]} ({len(unknown)} of {len(size)} videos)")
    for name, count in size.items():
        if abs(counts[name] - (whole := records.SNIPPET_FRAMES * count)) > records.SNIPPET_FRAMES:
            raise artifacts.StoreError(f"{name}: {counts[name]:,} frames, its {count:,} features stand for {whole:,}")
    anomalous = {name: int(labels[name] != NORMAL[dataset]) for name in size}
    truth = _truth(dataset, {name: counts[name] for name in size}, anomalous, labels, annotation, gt, notes)
    facts = {"dataset": dataset, "weights": Path(weights).name, "input": "raw features"}
    facts |= {"videos": len(size), "expected": len(labels)}
    line = _Line(truth, anomalous, facts, resamples, seed)
    rows, whole = [], choices.names[0]
    headline = raw[threshold, whole]
    for (exit, choice), scores in tqdm(raw.items(), desc="rows measured"):
        way = {"crops": choice, "early_exit": f"at {exit:g}" if exit < 1 else "none"}
        smooth = {n: lshma.released_smoothing(torch.from_numpy(v), models[exit].settings).numpy() for n, v in scores.items()}
        for kind, values in (("as released", smooth), ("none", scores)):
            script = choice == whole and exit == threshold and kind == "as released"
            known = script and SCRIPT_WINDOWS[dataset] == config.window
            published = PUBLISHED.get(dataset, {}) if known else {}
            title = "LSHMA published weights" + (", the published way" if script else "")
            rows.append(line(title, "released", values, **way, smoothing=kind, **published))
            headline = values if script else headline  # what shuffled labels are measured on
    for title, values in baseline.items():
        rows.append(line(f"{title}, no model", "baseline", values, crops=whole))
    rows += line.sanity(headline, crops=whole)
    return Evaluation(pd.DataFrame(rows).dropna(axis=1, how="all"), notes)


def dataset_of(labels: Mapping[str, str], test_list: str | Path) -> str:
    """Return which official list this is: ucf_crime, xd_violence or long_term, by the names of its videos {name: label}."""
    if all("_label_" in name for name in labels):
        return "xd_violence"
    if all("/" in name for name in labels):  # no crop in the names: the folder says which video it is
        return "long_term"
    if all("_x264" in name for name in labels):
        return "ucf_crime"
    raise artifacts.StoreError(f"{Path(test_list).name} is none of the lists of UCF-Crime, XD-Violence and the long-term set")


def _check_labels(dataset: str, labels: Mapping[str, str], test_list: Path) -> None:
    """Refuse a label that its data set does not have, or that the video's own name contradicts."""
    for name, label in labels.items():
        if dataset == "xd_violence":
            fits = name.rpartition("_label_")[2] == label
        else:  # the long-term list has classes of its own
            fits = dataset == "long_term" or label in (datasets.UCF_CLASSES if "Normal" not in name else ("Normal",))
        if not fits:
            raise artifacts.StoreError(f"{test_list.name}: {label!r} is no label of {name}")


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # no such device, or none here
        raise ValueError(f"device {name!r} cannot be used: {artifacts.one_line(error)}") from error


class _Choices(NamedTuple):
    """The crops of every video, those the list names, and the choices among them: the list's first, then means, then each."""

    width: int  # of a feature
    crops: tuple[int, ...]  # () where names hold no crop
    listed: list[int]  # places among `crops`
    names: list[str]

    def parts(self, name: str, files: Sequence[Path]) -> Iterator[np.ndarray]:
        """Yield features (C, n, D) of every crop and, where there are several, their mean as one more; n at most PART_ROWS."""
        paths = [_beside(files, name, crop) for crop in self.crops] or files
        for part in released.feature_parts(paths, PART_ROWS, width=self.width):
            if not self.crops:
                part = part.mean(0, keepdims=True)
            yield np.concatenate([part, part.mean(0, keepdims=True)]) if len(self.crops) > 1 else part

    def scores(self, logits: np.ndarray) -> Scores:
        """Return {choice: (T,)} of logits (C, T) or (C + 1, T)."""
        found = [logits[self.listed].mean(0)]
        if len(self.crops) > 1:
            found += [logits[:-1].mean(0), logits[-1]]
            found += [logits[place] for place in range(len(self.crops)) if [place] != self.listed]
        return dict(zip(self.names, found, strict=True))


def _by_parts(function: Callable, parts: Iterator[np.ndarray]) -> np.ndarray:
    """Return function(features), (T,), of features (T, D) in parts, where a value depends on its row and the one before."""
    values, before = [], None
    for part in parts:
        whole = part if before is None else np.concatenate([before, part])
        values.append(function(whole) if before is None else function(whole)[1:])
        before = part[-1:]
    return np.concatenate(values)


def _choices(listed: Sequence[tuple[str, str, list[Path]]], width: int, crops: str, notes: list[str]) -> _Choices:
    own = [{int(path.stem[-1]) for path in files if path.stem[-3:-1] == "__"} for _, _, files in listed]
    if not own[0]:
        return _Choices(width, (), [0], ["the list's features"])
    named = set.intersection(*own)
    if named != set.union(*own):
        raise artifacts.StoreError(f"videos of one list have other crops: {sorted(own[0])} and {sorted(set.union(*own) - named)}")
    found = {crop: [_beside(files, name, crop).exists() for name, _, files in listed] for crop in CROPS if crops == "all"}
    parts = {crop: sum(there) for crop, there in found.items() if any(there) and not all(there)}
    notes += [f"crop {crop} left out: {count} of {len(listed)} videos have it" for crop, count in parts.items()]
    every = tuple(sorted(named | {crop for crop, there in found.items() if all(there)}))
    places = [every.index(crop) for crop in sorted(named)]
    names = [f"{'crop' if len(named) == 1 else 'crops'} {', '.join(map(str, sorted(named)))} (the list's)"]
    if len(every) > 1:
        names += [f"mean score of {len(every)} crops", f"mean feature of {len(every)} crops"]
        names += [f"crop {crop}" for place, crop in enumerate(every) if [place] != places]
    return _Choices(width, every, places, names)


def _beside(files: Sequence[Path], name: str, crop: int) -> Path:
    return files[0].with_name(f"{name}__{crop}.npy")


def _truth(
    dataset: str, counts: Mapping[str, int], anomalous: Mapping[str, int], labels: Mapping[str, str],
    annotation: str | Path | None, gt: str | Path | None, notes: list[str],
) -> Scores | None:  # fmt: skip
    """Return {video: labels (frames,)}; None, with a note that says why, where frames cannot be labelled."""
    if annotation is not None and gt is not None:
        raise ValueError("frame labels come from the annotation or from the array of all frames: give one of them")
    if gt is not None:
        truth = _cut(dataset, counts, labels, Path(gt), notes)
        odd = [name for name, own in (truth or {}).items() if bool(own.any()) != bool(anomalous[name])]
        if odd:  # another order or another list
            why = f"{Path(gt).name}: {len(odd)} of {len(counts)} videos have frame labels against their label, first {odd[0]}"
            if dataset != "long_term":
                raise artifacts.StoreError(why)
            notes.append(why)
        return truth
    if annotation is None:
        notes.append("no annotation and no array of frame labels: video level only")
        return None
    if dataset == "long_term":
        raise artifacts.StoreError("the long-term list has no annotation file, only an array of frame labels")
    known = {record.id: record for record in getattr(datasets, dataset)(annotation)}
    if lacking := [name for name in counts if anomalous[name] and (name not in known or not known[name].events)]:
        raise artifacts.StoreError(f"{Path(annotation).name}: no event of {lacking[0]} ({len(lacking)} videos), which is anomalous")
    truth = {name: np.zeros(count, np.uint8) for name, count in counts.items()}
    return truth | {n: _event_labels(known[n], counts[n], anomalous[n]) for n in counts if n in known}


def _event_labels(record: records.VideoRecord, count: int, anomalous: int) -> np.ndarray:
    if record.events and not anomalous:
        raise artifacts.StoreError(f"{record.id} is normal in the list and has an event in the annotation")
    return records.frame_labels(record, count)  # RecordError: an event past the end of the features


def _cut(dataset: str, counts: Mapping[str, int], labels: Mapping[str, str], gt: Path, notes: list[str]) -> Scores | None:
    """Return an array of all frame labels as {video: (frames,)}, in the list's order."""
    every, total = artifacts.load_array(gt), sum(counts.values())
    if len(counts) < len(labels):
        raise artifacts.StoreError(f"{gt.name} needs all {len(labels)} videos of the list to be cut by, got {len(counts)}")
    if not isinstance(every, np.ndarray):
        raise artifacts.StoreError(f"{gt.name} holds several arrays, the labels of all frames in one .npy are needed")
    if every.ndim != 1 or not np.isin(every, (0, 1)).all():
        raise artifacts.StoreError(f"{gt.name}: expected one 0 or 1 per frame, got {every.shape} of {every.dtype}")
    if len(every) == total:
        return dict(zip(counts, np.split(every.astype(np.uint8), np.cumsum(list(counts.values()))[:-1]), strict=True))
    why = f"{gt.name} labels {len(every):,} frames, the features stand for {total:,}"
    if dataset != "long_term":
        raise artifacts.StoreError(
            f"{why}: labels of other features (I3D's UCF-Crime has 1,109,680 frames, XD-Violence 2,330,384)?"
        )
    odd = f", and {len(every):,} is no multiple of {records.SNIPPET_FRAMES}" if len(every) % records.SNIPPET_FRAMES else ""
    notes.append(f"{why}{odd}: video level only; frames of each video (num_frames) that sum to {len(every):,} would align them")
    return None


class _Line(NamedTuple):
    """What every row of the table is measured with."""

    truth: Scores | None
    anomalous: Mapping[str, int]
    facts: Mapping[str, object]
    resamples: int
    seed: int

    def __call__(self, method: str, kind: str, scores: Scores, **way: object) -> dict:
        """Return a row: frame level with intervals where there are frame labels, video level by the mean of the highest scores."""
        highest = {name: training.top_mean(torch.from_numpy(np.asarray(values, float))) for name, values in scores.items()}
        row = {**self.facts, "method": method, "kind": kind, **way}
        row |= {name: metrics.or_nan(metric, highest, self.anomalous) for name, metric in VIDEO.items()}
        if self.truth is None:
            return row
        frames = self._frames(scores)
        row |= self._amounts()
        for name, metric in FRAME.items():
            rng = np.random.default_rng(self.seed)
            span = metrics.bootstrap_ci(metric, frames, self.truth, rng=rng, resamples=self.resamples)
            row |= {name: span.value, f"{name}_low": span.low, f"{name}_high": span.high}
        return row | {"frame_auc_anomalous_only": metrics.frame_auc_anomalous_only(frames, self.truth)}

    def sanity(self, scores: Scores, **way: object) -> list[dict]:
        """Return rows of a constant, of `scores` against shuffled labels and of an oracle of each video's label."""
        if self.truth is None:
            return []
        rows = metrics.sanity_rows(self._frames(scores), self.truth, rng=np.random.default_rng(self.seed))
        return [
            {**self.facts, **self._amounts(), "method": row.pop("row"), "kind": "sanity", **way, **row}
            for row in rows if row["row"] != "scores"
        ]  # fmt: skip

    def _frames(self, scores: Scores) -> Scores:
        return {name: metrics.expand(scores[name], len(labels)) for name, labels in self.truth.items()}

    def _amounts(self) -> dict[str, float]:
        count = sum(map(len, self.truth.values()))
        return {"frames": count, "frame_base_rate": sum(int(labels.sum()) for labels in self.truth.values()) / count}


FRAME: dict[str, Callable] = {"frame_auc": metrics.frame_auc, "frame_ap": metrics.frame_ap}
VIDEO: dict[str, Callable] = {"video_auc": metrics.video_auc, "video_ap": metrics.video_ap}
