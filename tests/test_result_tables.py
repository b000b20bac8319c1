"""A row is a mean over seeds and folds with an interval over videos, and folds never mix."""

import numpy as np
import pytest

from vau_lib.evaluation import metrics, result_tables

LABELS = {f"{part}{n}": n % 2 for part in "ab" for n in range(8)}
FOLD = {name: "ab".index(name[0]) for name in LABELS}
PERFECT_IN_EACH = {name: LABELS[name] + 5 * FOLD[name] for name in LABELS}  # fold 1's scale is another one


def method(scores, name="m"):
    return result_tables.per_video(name, "ours", scores, dict.fromkeys(scores, 3))


def test_folds_are_scored_alone():
    assert metrics.video_auc(PERFECT_IN_EACH, LABELS) == 0.75  # of 64 pairs, 16 across the folds are wrong
    assert result_tables.fold_mean(metrics.video_auc, FOLD)(PERFECT_IN_EACH, LABELS) == 1.0


def test_a_video_row_averages_seeds_and_keeps_their_spread():
    wrong = {name: -score for name, score in PERFECT_IN_EACH.items()}
    both = result_tables.Method("m", "ours", [*method(PERFECT_IN_EACH).runs, *method(wrong).runs])
    row = result_tables.video_row(both, LABELS, FOLD, seed=0, resamples=60)
    assert (row["video_auc"], row["video_auc_sd"], row["seeds"]) == (0.5, 0.5, 2)


def test_intervals_hold_the_value():
    rng = np.random.default_rng(0)
    labels = {f"v{n}": n % 2 for n in range(60)}
    scores = {name: rng.normal(label) for name, label in labels.items()}
    row = result_tables.video_row(method(scores), labels, dict.fromkeys(labels, 0), seed=0, resamples=200)
    assert row["low"] < row["video_auc"] < row["high"]
    assert row["high"] - row["low"] < 0.5


def test_a_frame_row_holds_each_row_for_its_snippet():
    truth = {"a": np.array([0, 0, 0, 1, 1], np.uint8), "b": np.zeros(4, np.uint8)}
    rows = result_tables.per_row("m", "peer", {"a": [0.1, 0.9, 0.9], "b": [0.2, 0.1]})
    row = result_tables.frame_row(rows, truth, 2, seed=0, resamples=50)
    assert row["frame_auc"] == metrics.frame_auc(
        {"a": np.array([0.1, 0.1, 0.9, 0.9, 0.9]), "b": np.array([0.2, 0.2, 0.1, 0.1])}, truth
    )


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="m: kind must be one of ours, peer, released, sanity"):
        result_tables.Method("m", "best", [{}])
