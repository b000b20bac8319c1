"""A training is a trial: a variant, a fold, a seed; it reads labels it may see, and leaves scores that others can check.

- every system's notebook trains the same way: rows and records of a fold in, `scores.json` out, finished trials are kept
- shuffled labels are dealt among training and validation videos only: what is left of a score then is not knowledge
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from vau_lib.data import records
from vau_lib.features import extraction
from vau_lib.workspace import artifacts, presets


def read_fold(records_file: str, fold: int, folder: Path) -> tuple[list[records.VideoRecord], dict[str, np.ndarray]]:
    """Return the records of one fold that have rows in `folder`, and the rows {id: (T, D)}; * in the name is the fold."""
    found = records.read_records(presets.project_path(records_file.replace("*", str(fold))))
    rows = extraction.load(folder, found)
    return [r for r in found if r.id in rows], rows


def training_labels(
    found: Sequence[records.VideoRecord], *, shuffled: int | None = None, one_class: bool = False
) -> dict[str, int]:
    """Return {id: label} of training and validation videos; with a seed in `shuffled`, dealt out at random among them."""
    labels = {r.id: 0 if one_class else r.label for r in found if r.split != "test"}
    if shuffled is None:
        return labels
    names = sorted(labels)
    dealt = np.random.default_rng(shuffled).permutation([labels[name] for name in names])
    return dict(zip(names, dealt.tolist(), strict=True))


def is_done(place: Path, facts: Mapping, *, file: str = "scores.json") -> bool:
    """Say whether `place` holds the last `file` of a training that was made with exactly these facts."""
    return (place / file).exists() and artifacts.read_json(place / "made_by.json").get("facts") == facts


def write_scores(
    place: Path, score: Callable[[np.ndarray], tuple[float, np.ndarray]], found: Sequence[records.VideoRecord],
    rows: Mapping[str, np.ndarray],
) -> None:  # fmt: skip
    """Write what notebook 12 reads, scores.json: split, label, the video's score and its rows' scores, but for training videos.

    `score` takes rows (T, D) and gives a number and (T,).
    """
    table = {}
    for r in (r for r in found if r.split != "train"):
        video, segments = score(rows[r.id])
        table[r.id] = {
            "split": r.split,
            "label": r.label,
            "video": float(video),
            "rows": np.round(segments, 6).tolist(),
        }
    artifacts.write_json(place / "scores.json", table)


def test_scores(place: Path, *, by_highest: bool = False) -> tuple[dict[str, float], dict[str, int]]:
    """Return {id: score} and {id: label} of a training's test videos; `by_highest` takes a video's highest snippet score."""
    test = {name: row for name, row in artifacts.read_json(place / "scores.json").items() if row["split"] == "test"}
    scores = {name: max(row["rows"]) if by_highest else row["video"] for name, row in test.items()}
    return scores, {name: row["label"] for name, row in test.items()}
