"""Trainings over variants, folds and seeds: which labels one may see, when it is finished, which scores it leaves.

- every detector's notebook trains the same way: features and records of a fold in, `scores.json` out; finished ones are kept
- shuffled labels are permuted among training and validation videos only: a detector trained on them must score at chance
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vau_lib.data import records
from vau_lib.evaluation import metrics, online_metrics
from vau_lib.features import extraction
from vau_lib.workspace import artifacts, presets

INPUTS = {"raw": False, "difference": True}  # ending of a variant: whether it reads temporal differences
SYSTEMS = {"memtsm": "MemTSM", "lshma": "LSHMA", "ats": "Holmes-VAU's scorer"}  # folder of models: name in a table
KINDS = {
    "intended": "as intended", "report": "as intended, by the report's loss", "released": "as released, trained here",
    "recipe": "as released, by its own recipe",
    "shuffled": "as intended, shuffled labels",
}  # fmt: skip


class Variant(NamedTuple):
    """What is trained, read from a folder's name `kind[_raw|_difference][@encoder]`, like released_difference@clip."""

    kind: str  # a key of KINDS; report is intended without our loss on segments, recipe is released, trained as its code runs
    difference: bool | None  # reads temporal differences; None leaves it to the kind's default
    encoder: str  # whose features it reads; "" for the default


def parse_variant(name: str) -> Variant:
    """Return what a variant's name says; ValueError for any other name."""
    base, _, encoder = name.partition("@")
    kind, _, reads = base.partition("_")
    if kind not in KINDS or (reads and reads not in INPUTS):
        raise ValueError(f"a variant is {', '.join(KINDS)}, with _raw or _difference and @encoder, got {name!r}")
    return Variant(kind, INPUTS.get(reads), encoder)


def is_change(made_by: Mapping) -> bool:
    """Return whether features are changes already (`made_by` of local change): no temporal difference is taken of them."""
    return bool(made_by.get("local_change"))


def features_note(made_by: Mapping) -> str:
    """Return what a figure calls the features that `made_by` describes; random weights are named."""
    encoder = made_by["encoder"]
    kind = "local change" if is_change(made_by) else "features"
    random = ", RANDOM weights" if made_by.get("weights_sha256") == "random" else ""
    return f"{extraction.TITLES.get(encoder, encoder)} {kind}{random}"


@artifacts.reader()
def input_of(place: Path) -> str:
    """Return what a variant's trainings below `place` read, as they saved it.

    "on temporal differences", "on local change" (features that are changes already) or "raw features".
    """
    found = set()
    for path in place.glob("fold*_seed*/config.json"):
        made_by = path.with_name("made_by.json")
        facts = (artifacts.read_json(made_by).get("facts") or {}) if made_by.exists() else {}
        change = is_change(facts.get("features") or {})
        differs = artifacts.read_json(path)["preprocessing"]["temporal_difference"]
        found.add("on temporal differences" if differs else "on local change" if change else "raw features")
    if len(found) != 1:
        raise artifacts.StoreError(f"{place.name}: {'trainings read different inputs' if found else 'no trained detector'}")
    return found.pop()


def title(system: str, variant: str, reads: str, encoders: Mapping[str, str]) -> str:
    """Return a variant's name in a table: its system, kind, input as `input_of` says it, and encoder, named by `encoders`."""
    kind, _, encoder = parse_variant(variant)
    name = f"{SYSTEMS[system]} {KINDS[kind]}, {reads}"
    name += " (ours)" if kind == "intended" and reads != "raw features" else ""
    return name + (f", {encoders[encoder]} features" if encoder else "")


def read_fold(records_file: str, fold: int, folder: Path) -> tuple[list[records.VideoRecord], dict[str, np.ndarray]]:
    """Return the records of a fold that have features in `folder`, and {id: (T, D)}; * in the file's name is the fold."""
    fold_records = records.read_records(presets.project_path(records_file.replace("*", str(fold))))
    features = extraction.load(folder, fold_records)
    return [r for r in fold_records if r.id in features], features


def training_labels(
    fold_records: Sequence[records.VideoRecord], *, shuffled: int | None = None, one_class: bool = False
) -> dict[str, int]:
    """Return {id: label} of training and validation videos; with a seed in `shuffled`, permuted among them."""
    labels = {r.id: 0 if one_class else r.label for r in fold_records if r.split != "test"}
    return labels if shuffled is None else shuffled_labels(labels, shuffled)


def shuffled_labels(labels: Mapping[str, int], seed: int) -> dict[str, int]:
    """Return {id: label} with the labels permuted, seeded; names are sorted first, so their order does not matter."""
    names = sorted(labels)
    permuted = np.random.default_rng(seed).permutation([labels[name] for name in names])
    return dict(zip(names, permuted.tolist(), strict=True))


def training_facts(
    made_by: Mapping, fold_records: Sequence[records.VideoRecord], features: Mapping[str, np.ndarray], **choices: object
) -> dict:
    """Return all that a training depends on, for its made_by.json: how features were made, every video used, the choices.

    A video is its split, its label, a digest of its events, rate and length, and one of its features, every row.
    """
    videos = {}
    for r in fold_records:
        if not len(features[r.id]):
            raise artifacts.StoreError(f"{r.id}: its file of features holds no row")
        events = _digest([asdict(event) for event in r.events], r.classes, r.fps, r.num_frames)
        videos[r.id] = [r.split, r.label, events, _features_digest(features[r.id])]
    return {"features": dict(made_by), "videos": videos, **choices}


def _digest(*values: object) -> str:
    return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()[:12]


def _features_digest(features: np.ndarray) -> str:
    digest = hashlib.sha256(f"{features.shape} {features.dtype}".encode())
    for first in range(0, len(features), 4096):  # a large file is a memory map, read part by part
        digest.update(np.ascontiguousarray(features[first : first + 4096]))
    return digest.hexdigest()[:12]


def changes(before: Mapping, now: Mapping) -> list[str]:
    """Return what differs between two `training_facts`, a phrase each."""
    old, new = before.get("videos", {}), now.get("videos", {})
    lost, added = old.keys() - new.keys(), new.keys() - old.keys()
    phrases = [f"{len(ids)} videos {what}" for ids, what in ((added, "added"), (lost, "removed")) if ids] if old else []
    if new and not old:
        phrases.append("it does not say which videos it used")
    for part, what in enumerate(("split", "label", "events", "features")):
        if ids := sorted(name for name in old.keys() & new.keys() if old[name][part] != new[name][part]):
            phrases.append(f"{what} of {len(ids)} videos changed: {', '.join(ids[:3])}{' ...' if len(ids) > 3 else ''}")
    if before.get("features") != now.get("features"):
        phrases.append(_features_change(before.get("features") or {}, now.get("features") or {}))
    others = (before.keys() | now.keys()) - {"videos", "features"}
    return phrases + [f"{name} changed" for name in sorted(others) if before.get(name) != now.get(name)]


def _features_change(before: Mapping, now: Mapping) -> str:
    odd = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if "weights_sha256" in odd:
        return "features made by other weights"
    after, earlier = (artifacts.one_line(facts.get(odd[0]), 60) for facts in (now, before))
    return f"features made with {odd[0]} {after}, before {earlier}"


@artifacts.reader()
def is_done(place: Path, facts: Mapping, *, file: str = "scores.json") -> bool:
    """Say whether `place` holds the last `file` of a training that was made with exactly these facts.

    Where it was made with others, one line is printed that says what changed, and the caller trains again.
    """
    if not (place / file).exists() or not (place / "made_by.json").exists():
        return False
    before, now = artifacts.read_json(place / "made_by.json").get("facts"), json.loads(json.dumps(facts))
    if before == now:
        return True
    print(f"{place.parent.name}/{place.name} is trained again: {'; '.join(changes(before or {}, now))}")
    return False


@artifacts.reader()
def unfinished(place: Path, facts: Mapping) -> Path:
    """Return the folder of an unfinished training's checkpoints; those of other facts are removed, in one printed line."""
    folder, now = place / "unfinished", json.loads(json.dumps(facts))
    if folder.exists():
        made_by = folder / "made_by.json"
        before = artifacts.read_json(made_by).get("facts") if made_by.exists() else {}
        if before == now:
            return folder
        print(f"{place.parent.name}/{place.name} begins anew: {'; '.join(changes(before or {}, now))}")
        shutil.rmtree(folder)
    artifacts.write_made_by(folder, facts=now)
    return folder


def long_videos(
    found: Sequence[records.VideoRecord], features: Mapping[str, np.ndarray], *, snippet_frames: int, normal: int = 7,
    split: str = "test", seed: int = 0,
) -> list[records.LongStream]:  # fmt: skip
    """Return a long video per anomalous one of a split: its features (T, D) at a random place between those of normal ones.

    Rows are laid end to end, so no cut is described; a row lies in an event when its first frame does. Rates must be equal:
    ValueError otherwise, and where a split has fewer than `normal` normal videos.

    Args:
        found: records, with frame counts and rate.
        features: id -> (T, D).
        snippet_frames: frames a row describes.
        normal: normal videos around each anomalous one, drawn without repetition.
        split: whose videos.
        seed: of the draw.
    """
    part = sorted((r for r in found if r.split == split and r.id in features), key=lambda r: r.id)
    usual, joined, rng = [r for r in part if not r.label], [], np.random.default_rng(seed)
    if len(usual) < normal or len({r.fps for r in part}) > 1:
        raise ValueError(f"{split} needs {normal} normal videos of one rate, got {len(usual)} at {sorted({r.fps for r in part})}")
    for record in (r for r in part if r.label):
        chosen = [usual[k] for k in rng.choice(len(usual), normal, replace=False)]
        chosen.insert(int(rng.integers(normal + 1)), record)
        labels = [records.frame_labels(r)[::snippet_frames][: len(features[r.id])] for r in chosen]
        inside = np.concatenate([np.pad(y, (0, len(features[r.id]) - len(y))) for y, r in zip(labels, chosen, strict=True)])
        edges = np.flatnonzero(np.diff(inside.astype(int), prepend=0, append=0))
        spans = tuple((int(start), int(end)) for start, end in edges.reshape(-1, 2))
        rows = np.concatenate([features[r.id] for r in chosen])
        joined.append(records.LongStream(record.id, rows, inside.astype(np.uint8), spans, snippet_frames / record.fps))
    return joined


def write_scores(
    place: Path,
    score: Callable[[np.ndarray], tuple[float, np.ndarray]],
    fold_records: Sequence[records.VideoRecord],
    features: Mapping[str, np.ndarray],
) -> None:
    """Write scores.json, which notebook 12 reads: split, label, `video` score and snippet `scores`, without training videos.

    `score` takes features (T, D) and gives a number and (T,).
    """
    table = {}
    for r in (r for r in fold_records if r.split != "train"):
        video, scores = score(features[r.id])
        row = {"split": r.split, "label": r.label, "video": float(video), "scores": np.round(scores, 6).tolist()}
        table[r.id] = row
    artifacts.write_json(place / "scores.json", table)


@artifacts.reader()
def read_scores(place: Path) -> dict[str, dict]:
    """Return the scores.json of a folder as `write_scores` writes it; StoreError where a score is no finite number."""
    table = artifacts.read_json(Path(place) / "scores.json", dict)
    for name, row in table.items():
        if not np.isfinite(np.array([row.get("video", 0), *row.get("scores", ())], float)).all():
            raise artifacts.StoreError(f"{place}/scores.json: a score of {artifacts.one_line(name, 80)} is no finite number")
    return table


@artifacts.reader()
def mean_scores(variant: Path, seeds: Sequence[int], *, fold: int = 0) -> dict[str, dict]:
    """Return the scores.json of one fold as the mean over seeds: of every video's `video` score and of its (T,) `scores`."""
    runs = [read_scores(variant / f"fold{fold}_seed{seed}") for seed in seeds]

    def mean(name: str, part: str) -> list | float:
        return np.mean([run[name][part] for run in runs], 0).tolist()

    return {name: row | {part: mean(name, part) for part in ("video", "scores")} for name, row in runs[0].items()}


HALF_LIVES = (0.0, 0.25, 0.43, 0.7, 1.0, 2.0)  # rows; of smoothing by the past, 0 is none


@artifacts.reader()
def frame_aucs(place: Path, records_file: str, fold: int) -> tuple[float, float, float]:
    """Return three frame AUCs of the scores saved at `place` over one fold's test videos; nan where no video has frames and events.

    The first gives every frame its own row's score, which knows its clip to the end; the second the newest score of a clip that
    is over (`online_metrics.newest`); the third the same of scores averaged with the past alone (`online_metrics.smooth_causal`),
    the half-life that is best on the validation videos.
    """
    found = records.read_records(presets.project_path(records_file.replace("*", str(fold))))
    trained, saved = artifacts.read_json(place / "config.json"), read_scores(place)
    step = int(artifacts.read_json(place / "made_by.json")["facts"]["features"]["snippet_frames"])
    clip = trained["sizes"].get("window", 1)

    def auc(split: str, half_life: float | None) -> float:
        part = {r.id: r for r in found if r.split == split and r.num_frames and r.id in saved}
        if not any(r.events for r in part.values()):
            return float("nan")
        rows = {n: np.asarray(saved[n]["scores"], np.float32) for n in part}
        if half_life:
            rows = {n: online_metrics.smooth_causal(v, half_life_frames=half_life) for n, v in rows.items()}
        if half_life is None:
            known = {n: metrics.expand(v, part[n].num_frames, step) for n, v in rows.items()}
        else:
            sizes = {"clip_rows": clip, "snippet_frames": step}
            known = {n: online_metrics.newest(v, part[n].num_frames, **sizes) for n, v in rows.items()}
        return metrics.frame_auc(known, {n: records.frame_labels(part[n]) for n in part})

    best = max(HALF_LIVES, key=lambda half_life: np.nan_to_num(auc("val", half_life)))
    return auc("test", None), auc("test", 0.0), auc("test", best)


@artifacts.reader()
def test_scores(place: Path, *, by_highest: bool = False) -> tuple[dict[str, float], dict[str, int]]:
    """Return {id: score} and {id: label} of a training's test videos; `by_highest` takes a video's highest snippet score."""
    test = {name: row for name, row in read_scores(place).items() if row["split"] == "test"}
    scores = {name: max(row["scores"]) if by_highest else row["video"] for name, row in test.items()}
    return scores, {name: row["label"] for name, row in test.items()}


@artifacts.reader()
def outdated(
    place: Path, parts: Sequence[Sequence[records.VideoRecord]], rows: Mapping[str, Mapping[str, np.ndarray]], made_by: Mapping
) -> list[str]:
    """Return a line for each training below `place` (fold*_seed*) that used other videos, labels or features than there are now.

    Args:
        place: a variant's folder; what stands after @ in its name is the folder of the features it read.
        parts: the records of every fold.
        rows: {encoder: {video id: (T, D)}}, the features there are.
        made_by: {encoder: what made its features}.
    """
    lines = []
    for path in sorted(place.glob("fold*_seed*/made_by.json")):
        facts, fold = artifacts.read_json(path).get("facts") or {}, int(path.parent.name[4:].partition("_")[0])
        features = facts.get("features") or {}
        encoder = place.name.partition("@")[2] or features.get("encoder")
        if "@" not in place.name and is_change(features):  # notebook 03 puts local change in a folder of its own
            encoder += "_local_change"
        if encoder not in rows or fold >= len(parts):
            lines.append(f"{place.name}/{path.parent.name}: there are no {encoder} features of fold {fold}")
            continue
        known = [record for record in parts[fold] if record.id in rows[encoder]]
        now = json.loads(json.dumps(training_facts(made_by[encoder], known, rows[encoder])))
        if phrases := changes({key: facts.get(key) for key in now if facts.get(key)}, now):
            lines.append(f"{place.name}/{path.parent.name}: {'; '.join(phrases)}")
    return lines


@artifacts.reader()
def read_trainings(place: Path, fold_of: Mapping[str, int]) -> tuple[dict, dict]:
    """Return a variant's trainings below `place` (fold*_seed*/scores.json): ({seed: {test id: (video score, snippet scores)}},
    {(seed, fold): {validation id: (video score, label)}}); a test video counts in the fold that `fold_of` names."""
    tests, vals = {}, {}
    for path in sorted(place.glob("fold*_seed*/scores.json")):
        fold, seed = (int(part.strip("foldse")) for part in path.parent.name.split("_"))
        for name, row in read_scores(path.parent).items():
            if row["split"] == "test" and fold_of.get(name) == fold:
                tests.setdefault(seed, {})[name] = (row["video"], np.array(row["scores"]))
            elif row["split"] == "val":
                vals.setdefault((seed, fold), {})[name] = (row["video"], row["label"])
    return tests, vals


def fuse(trainings: Sequence[tuple[dict, dict]], fold_of: Mapping[str, int]) -> dict:
    """Return several variants' trainings as one, {seed: {test id: (video score, snippet scores)}}, of the seeds they share.

    `trainings` are of `read_trainings`, their scores probabilities. Log-odds are standardised by the mean and std of those of
    the same training's validation videos, then averaged: no test score enters, and every variant weighs the same.
    """
    seeds = set.intersection(*(set(tests) for tests, _ in trainings))
    fused = {}
    for seed in sorted(seeds):
        names = set.intersection(*(set(tests[seed]) for tests, _ in trainings))
        each = [_standardised(tests[seed], vals, seed, fold_of) for tests, vals in trainings]
        fused[seed] = {n: tuple(np.mean([scores[n][part] for scores in each], axis=0) for part in (0, 1)) for n in sorted(names)}
    return fused


def _standardised(tests: Mapping, vals: Mapping, seed: int, fold_of: Mapping[str, int]) -> dict:
    """Return {id: (video, snippets)} in standard deviations of a fold's validation videos."""
    known = {fold: _log_odds([score for score, _ in vals[seed, fold].values()]) for fold in {fold_of[name] for name in tests}}
    scale = {fold: (values.mean(), max(values.std(), 1e-6)) for fold, values in known.items()}
    return {n: tuple((_log_odds(x) - scale[fold_of[n]][0]) / scale[fold_of[n]][1] for x in pair) for n, pair in tests.items()}


def _log_odds(scores: object) -> np.ndarray:
    scores = np.clip(np.asarray(scores, dtype=np.float64), 1e-6, 1 - 1e-6)
    return np.log(scores / (1 - scores))
