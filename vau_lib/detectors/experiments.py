"""Trainings over variants, folds and seeds: which labels one may see, when it is finished, which scores it leaves.

- every detector's notebook trains the same way: features and records of a fold in, `scores.json` out; finished ones are kept
- shuffled labels are permuted among training and validation videos only: a detector trained on them must score at chance
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from vau_lib.data import records
from vau_lib.features import extraction
from vau_lib.workspace import artifacts, presets


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


def is_done(place: Path, facts: Mapping, *, file: str = "scores.json") -> bool:
    """Say whether `place` holds the last `file` of a training that was made with exactly these facts."""
    return (place / file).exists() and artifacts.read_json(place / "made_by.json").get("facts") == facts


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


def test_scores(place: Path, *, by_highest: bool = False) -> tuple[dict[str, float], dict[str, int]]:
    """Return {id: score} and {id: label} of a training's test videos; `by_highest` takes a video's highest snippet score."""
    test = {name: row for name, row in artifacts.read_json(place / "scores.json").items() if row["split"] == "test"}
    scores = {name: max(row["scores"]) if by_highest else row["video"] for name, row in test.items()}
    return scores, {name: row["label"] for name, row in test.items()}


def read_trainings(place: Path, fold_of: Mapping[str, int]) -> tuple[dict, dict]:
    """Return a variant's trainings below `place` (fold*_seed*/scores.json): ({seed: {test id: (video score, snippet scores)}},
    {(seed, fold): {validation id: (video score, label)}}); a test video counts in the fold that `fold_of` names."""
    tests, vals = {}, {}
    for path in sorted(place.glob("fold*_seed*/scores.json")):
        fold, seed = (int(part.strip("foldse")) for part in path.parent.name.split("_"))
        for name, row in artifacts.read_json(path).items():
            if row["split"] == "test" and fold_of.get(name) == fold:
                tests.setdefault(seed, {})[name] = (row["video"], np.array(row["scores"]))
            elif row["split"] == "val":
                vals.setdefault((seed, fold), {})[name] = (row["video"], row["label"])
    return tests, vals
