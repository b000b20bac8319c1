"""A row is a mean over seeds and folds with an interval over videos, and folds never mix."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics

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
    assert (row["video_auc"], row["video_auc_std"], row["seeds"]) == (0.5, 0.5, 2)


def test_intervals_hold_the_value():
    rng = np.random.default_rng(0)
    labels = {f"v{n}": n % 2 for n in range(60)}
    scores = {name: rng.normal(label) for name, label in labels.items()}
    row = result_tables.video_row(method(scores), labels, dict.fromkeys(labels, 0), seed=0, resamples=200)
    assert row["low"] < row["video_auc"] < row["high"]
    assert row["high"] - row["low"] < 0.5


def test_the_interval_of_one_fold_is_that_of_resampling_by_hand():
    rng = np.random.default_rng(0)
    labels = {f"v{n}": n % 2 for n in range(20)}
    scores = {name: round(rng.normal(label), 1) for name, label in labels.items()}  # with ties

    def by_hand(scores, labels):
        return sklearn.metrics.roc_auc_score([labels[name] for name in scores], list(scores.values()))

    row = result_tables.video_row(method(scores), labels, dict.fromkeys(labels, 0), seed=3, resamples=50)
    span = metrics.bootstrap_ci(by_hand, scores, labels, rng=np.random.default_rng(3), resamples=50)
    assert (row["low"], row["high"], row["video_auc"]) == pytest.approx((span.low, span.high, span.value), abs=1e-12)


def test_a_frame_row_holds_each_row_for_its_snippet():
    truth = {"a": np.array([0, 0, 0, 1, 1], np.uint8), "b": np.zeros(4, np.uint8)}
    rows = result_tables.per_row("m", "baseline", {"a": [0.1, 0.9, 0.9], "b": [0.2, 0.1]})
    row = result_tables.frame_row(rows, truth, 2, seed=0, resamples=50)
    assert row["frame_auc"] == metrics.frame_auc(
        {"a": np.array([0.1, 0.1, 0.9, 0.9, 0.9]), "b": np.array([0.2, 0.2, 0.1, 0.1])}, truth
    )


def test_a_frame_row_shows_what_holds_inside_anomalous_videos():
    """A video-level oracle has no localisation: beside normal videos .9, inside the anomalous one a half."""
    truth = {"a": np.array([0, 1, 1, 0], np.uint8), "b": np.zeros(8, np.uint8)}
    oracle = result_tables.per_video("oracle", "sanity", {"a": 1.0, "b": 0.0}, {"a": 2, "b": 4})
    row = result_tables.frame_row(oracle, truth, 2, seed=0, resamples=50)
    assert (row["frame_auc"], row["frame_auc_anomalous_only"], row["frame_ap_anomalous_only"]) == (0.9, 0.5, 0.5)
    text = result_tables.as_markdown(pd.DataFrame([row])).splitlines()
    assert text[0].endswith("| frame AP | Ano-AUC (anomalous videos only) | Ano-AP |") and text[2].endswith(
        "| 0.500 | 0.500 | 0.500 |"
    )


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="m: kind must be one of ours, baseline, released, sanity"):
        result_tables.Method("m", "best", [{}])


# RESULTS.md


def test_results_md_is_what_the_tables_give(tmp_path):
    root = Path(__file__).parents[1]
    template, written = (root / name for name in result_tables.RESULTS)
    text = result_tables.write_results(root / "data" / "results", template, tmp_path / "RESULTS.md")
    assert text == written.read_text(encoding="utf-8"), "run `make results`"


def test_the_readme_shows_the_demos_table(tmp_path):
    root, name = Path(__file__).parents[1], result_tables.FRONT[0]
    text = (root / name).read_text(encoding="utf-8")
    result_tables.write_curve(tmp_path / "data/results/demo/synthetic.csv", pd.read_csv(root / "data/results/demo/synthetic.csv"))
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert result_tables.write_front(tmp_path) == text, "run `make results`"
    rows = text.split(result_tables.FRONT[1])[1].split(result_tables.FRONT[2])[0].splitlines()[2:]
    assert sum("shuffled" in row for row in rows) == 3 and sum("baseline" in row for row in rows) == 2


def test_a_printed_interval_is_of_the_number_beside_it():
    """The interval is of the ensemble; it once stood beside the mean of the seeds."""
    root = Path(__file__).parents[1]
    (line,) = [
        line for line in result_tables.as_markdown(pd.read_csv(root / "data/results/fights/fights.csv")).splitlines()
        if line.startswith("| LSHMA as intended, on temporal differences")
    ]  # fmt: skip
    assert "0.834 [0.776, 0.889]" in line and "0.787 ± 0.011 (5)" in line


def test_a_run_goes_before_what_was_published(tmp_path):
    for folder, value in (("published/demo", 1), ("run", 2)):
        result_tables.write_curve(tmp_path / folder / "curves" / "reach.csv", pd.DataFrame({"x": [value]}))
    result_tables.write_curve(tmp_path / "published" / "fights" / "fights.csv", pd.DataFrame({"x": [3]}))
    tables = result_tables.read_tables(tmp_path / "published", tmp_path / "run")
    assert {name: table["x"].item() for name, table in tables.items()} == {"reach": 2, "fights": 3}


def test_one_presets_table_does_not_replace_another_ones(tmp_path):
    for folder, value in (("demo", 1), ("ucf_crime", 2)):
        result_tables.write_curve(tmp_path / folder / "streams.csv", pd.DataFrame({"x": [value]}))
    tables = result_tables.read_tables(tmp_path)
    assert {name: table["x"].item() for name, table in tables.items()} == {"streams": 1, "ucf_crime/streams": 2}


def test_decisions_of_a_seed_are_taken_at_the_threshold_of_its_own_validation():
    """Two folds whose scores have different scales; sklearn counts, the thresholds are read off by eye (.5 and 50)."""
    labels = {"a": 1, "b": 0, "c": 1, "d": 0, "e": 1, "f": 0}
    fold_of = {"a": 0, "b": 0, "c": 0, "d": 1, "e": 1, "f": 1}
    scores = {"a": 0.6, "b": 0.2, "c": 0.4, "d": 60.0, "e": 70.0, "f": 10.0}
    tests = {3: {name: (score, np.zeros(2)) for name, score in scores.items()}}
    vals = {(3, 0): {"x": (0.5, 1), "y": (0.3, 0)}, (3, 1): {"x": (50.0, 1), "y": (40.0, 0)}}
    (row,) = result_tables.seed_table({"m": (tests, vals)}, labels, fold_of).to_dict("records")
    truth, answers = [labels[n] for n in sorted(labels)], [1, 0, 0, 1, 1, 0]
    expected = sklearn.metrics.precision_recall_fscore_support(truth, answers, average="binary")
    assert (row["video_precision"], row["video_recall"], row["video_f1"]) == pytest.approx(expected[:3])
    assert row["video_accuracy"] == pytest.approx(4 / 6) and row["seed"] == 3 and row["video_auc"] == 1.0
    one_class = {key: {"y": (0.3, 0)} for key in vals}
    assert "video_f1" not in result_tables.seed_table({"m": (tests, one_class)}, labels, fold_of)
