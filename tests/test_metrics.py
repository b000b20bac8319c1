"""Metrics against values counted by hand, properties that must hold, refusals, and published numbers on real scores."""

import json
import re
from itertools import product

import numpy as np
import pytest

from vau_lib.evaluation import metrics, online_metrics

FRAME_METRICS = (metrics.frame_auc, metrics.frame_ap, metrics.frame_trapezoid_pr, metrics.frame_auc_anomalous_only)


def rng(seed=0):
    return np.random.default_rng(seed)


def counted_auc(scores, labels):
    """Mann and Whitney by counting every pair."""
    pairs = list(product(scores[labels == 1], scores[labels == 0]))
    return sum((high > low) + 0.5 * (high == low) for high, low in pairs) / len(pairs)


def toy(seed=0, videos=9, levels=8):
    """Videos of 5 to 30 frames, tied scores, every third normal."""
    draw, scores, labels = rng(seed), {}, {}
    for place in range(videos):
        size = int(draw.integers(5, 31))
        truth = np.zeros(size, int)
        if place % 3:
            truth[size // 3 : size // 3 + 3] = 1
        labels[f"v{place}"] = truth
        scores[f"v{place}"] = draw.integers(0, levels, size) / levels + 0.2 * truth
    return scores, labels


def joined(arrays):
    return np.concatenate(list(arrays.values()))


def test_auc_counts_pairs_and_ties_count_half():
    assert metrics.frame_auc({"a": [0.1, 0.4], "b": [0.35, 0.8]}, {"a": [0, 0], "b": [1, 1]}) == 0.75  # 3 of 4 pairs
    assert metrics.frame_auc({"a": [0.5, 0.5, 0.5]}, {"a": [0, 1, 0]}) == 0.5
    assert metrics.frame_auc({"a": [0.2, 0.5, 0.5, 0.9]}, {"a": [0, 0, 1, 1]}) == 3.5 / 4
    scores, labels = toy()
    assert metrics.frame_auc(scores, labels) == pytest.approx(counted_auc(joined(scores), joined(labels)), abs=1e-12)


def test_average_precision_sums_steps_and_the_trapezoid_does_not():
    scores, labels = {"a": [0.9, 0.8, 0.7, 0.6]}, {"a": [1, 0, 1, 0]}
    assert metrics.frame_ap(scores, labels) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    # points (recall, precision), from no frame to all: (0, 1) (.5, 1) (.5, .5) (1, 2/3) (1, .5)
    assert metrics.frame_trapezoid_pr(scores, labels) == pytest.approx(0.5 * 1 + 0.5 * (0.5 + 2 / 3) / 2)
    assert metrics.frame_ap({"a": np.ones(8)}, {"a": [1, 1, 0, 0, 0, 0, 0, 0]}) == 0.25  # chance is the positive rate


def test_anomalous_only_leaves_normal_videos_out():
    scores = {"normal": np.zeros(50), "fight": np.array([0.9, 0.8, 0.7, 0.6])}
    labels = {"normal": np.zeros(50), "fight": np.array([0, 0, 1, 1])}
    assert metrics.frame_auc(scores, labels) == pytest.approx(100 / 104)
    assert metrics.frame_auc_anomalous_only(scores, labels) == 0.0


def test_macro_averages_the_videos_with_both_classes_and_counts_them():
    scores = {"a": [1, 2], "b": [1, 2, 3], "normal": [5, 5], "all": [0, 0]}
    labels = {"a": [0, 1], "b": [0, 1, 0], "normal": [0, 0], "all": [1, 1]}
    assert metrics.frame_auc_macro(scores, labels) == (0.75, 2)
    rows = {row["video"]: row for row in metrics.per_video(scores, labels)}
    assert rows["b"]["frame_auc"] == 0.5 and rows["b"]["positive_share"] == pytest.approx(1 / 3)
    assert np.isnan(rows["normal"]["frame_auc"]) and np.isnan(rows["all"]["frame_auc"])


def test_a_video_has_one_score_its_highest_or_its_mean():
    scores = {"a": np.array([0.1, 0.9, 0.0]), "b": np.array([0.5, 0.5]), "c": np.float32(0.7)}
    labels = {"a": 1, "b": 0, "c": np.array([0, 0, 0, 0])}
    assert metrics.video_auc(scores, labels) == 1.0 and metrics.video_ap(scores, labels) == 1.0
    assert metrics.video_auc(scores, labels, reduce="mean") == 0.0
    with pytest.raises(ValueError, match="reduce must be one of max, mean, got 'best'"):
        metrics.video_auc(scores, labels, reduce="best")


@pytest.mark.parametrize("metric", [*FRAME_METRICS, metrics.video_auc, metrics.video_ap])
def test_a_rising_map_and_another_order_of_videos_change_nothing(metric):
    scores, labels = toy()
    value = metric(scores, labels)
    assert metric({name: np.exp(3 * v) - 7 for name, v in scores.items()}, labels) == pytest.approx(value, abs=1e-12)
    mixed = rng().permutation(list(scores)).tolist()
    assert metric({name: scores[name] for name in mixed}, labels) == pytest.approx(value, abs=1e-12)
    assert metric(scores, {name: labels[name] for name in mixed}) == pytest.approx(value, abs=1e-12)


def test_reversed_scores_mirror_auc():
    scores, labels = toy()
    mirrored = metrics.frame_auc({name: -values for name, values in scores.items()}, labels)
    assert mirrored == pytest.approx(1 - metrics.frame_auc(scores, labels), abs=1e-12)


@pytest.mark.parametrize("metric", [*FRAME_METRICS, metrics.frame_auc_macro, metrics.per_video])
@pytest.mark.parametrize(
    "change, said",
    [
        (lambda s, y: s.pop("v4"), "video v4 has labels but no scores; 8 videos scored, 9 labelled"),
        (lambda s, y: y.pop("v2"), "video v2 has scores but no labels"),
        (lambda s, y: s.update(v3=s["v3"][:-1]), r"video v3 has \d+ scores for \d+ labels"),
        (lambda s, y: s.update(v5=s["v5"] * np.nan), "video v5: scores hold nan at place 0"),
        (lambda s, y: s["v5"].__setitem__(2, np.inf), "video v5: scores hold inf at place 2"),
        (lambda s, y: s.update(v1=s["v1"][:, None]), r"video v1: scores must be one number .* got shape \(\d+, 1\)"),
        (lambda s, y: y.update(v1=y["v1"] * 2), "video v1: labels must be 0 or 1, got 2"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(metric, change, said):
    scores, labels = toy()
    change(scores, labels)
    with pytest.raises(ValueError, match=said) as caught:
        metric(scores, labels)
    assert "\n" not in str(caught.value)


def test_two_shorter_videos_do_not_make_up_for_each_other():
    """The total is right and every frame after the first video is wrong: only names with lengths see it."""
    with pytest.raises(ValueError, match="video a has 3 scores for 2 labels"):
        metrics.frame_auc({"a": [0, 1, 1], "b": [0]}, {"a": [0, 1], "b": [1, 0]})


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="need both classes: all 3 labels are 0"):
        metrics.frame_auc({"a": [0.1, 0.2, 0.3]}, {"a": [0, 0, 0]})
    with pytest.raises(ValueError, match="need both classes: all 2 labels are 1"):
        metrics.video_ap({"a": [0.1], "b": [0.3]}, {"a": 1, "b": [0, 1]})
    with pytest.raises(ValueError, match="none of 1 has"):
        metrics.frame_auc_macro({"a": [0.1]}, {"a": [1]})
    with pytest.raises(ValueError, match="no videos"):
        metrics.frame_auc({}, {})


@pytest.mark.parametrize("length", [1, 16, 31, 32, 33, 47, 48, 70])
def test_expansion_follows_the_formula(length):
    snippets = np.array([0.1, 0.7, 0.4])
    assert metrics.expand(snippets, length).tolist() == [snippets[min(t // 16, 2)] for t in range(length)]


def test_expansion_refuses_crops_and_nothing():
    with pytest.raises(ValueError, match=r"got shape \(3, 10\)"):
        metrics.expand(np.ones((3, 10)), 48)
    with pytest.raises(ValueError, match=r"got shape \(0,\)"):
        metrics.expand([], 48)


def test_even_expansion_shares_the_frames_out():
    assert metrics.expand_evenly([1, 2, 3, 4], 10).tolist() == [1, 1, 2, 2, 2, 3, 3, 3, 4, 4]  # bounds 0 2 5 8 10
    assert len(metrics.expand_evenly(np.arange(32), 1413)) == 1413
    assert len(metrics.expand_evenly(np.arange(32), 20)) == 20


def test_a_causal_average_knows_only_the_past():
    scores = rng().random(60)
    changed = scores.copy()
    changed[40:] = 9
    before = online_metrics.smooth_causal(scores, half_life_frames=7)
    np.testing.assert_allclose(online_metrics.smooth_causal(changed, half_life_frames=7)[:40], before[:40])
    pulse = np.zeros(30)
    pulse[5] = 1
    answer = online_metrics.smooth_causal(pulse, half_life_frames=7)
    assert answer[12] == pytest.approx(answer[5] / 2) and not answer[:5].any()
    np.testing.assert_allclose(online_metrics.smooth_causal(np.full(9, 0.3), half_life_frames=7), 0.3)  # no start-up dip
    with pytest.raises(ValueError, match="half_life_frames must be positive, got 0"):
        online_metrics.smooth_causal(scores, half_life_frames=0)


def test_rescaling_per_video_makes_every_video_anomalous():
    found = metrics.rescaled_per_video({"quiet": np.array([0.01, 0.02, 0.03]), "flat": np.full(3, 0.4)})
    np.testing.assert_allclose(found["quiet"], [0, 0.5, 1])
    assert found["flat"].tolist() == [0, 0, 0]


def test_a_binary_report_counts():
    labels, predictions = [1, 1, 1, 0, 0, 0, 0, 1], [1, 1, 0, 0, 0, 1, 0, 0]
    report = metrics.binary_report(labels, predictions)
    assert [report[name] for name in ("tn", "fp", "fn", "tp")] == [3, 1, 2, 2]
    assert report["accuracy"] == 5 / 8 and report["precision"] == pytest.approx(2 / 3)
    assert report["recall"] == 0.5 and report["f1"] == pytest.approx(4 / 7)
    by_name = {"labels": {"a": labels[:3], "b": labels[3:]}, "predictions": {"b": predictions[3:], "a": predictions[:3]}}
    assert metrics.binary_report(**by_name) == report


def test_a_binary_report_says_no_instead_of_dividing_by_nothing():
    report = metrics.binary_report([0, 0, 1], [0, 0, 0])
    assert (report["precision"], report["recall"], report["f1"], report["fn"]) == (0, 0, 0, 1)
    assert metrics.binary_report([0, 0], [0, 0])["tn"] == 2  # one class is no obstacle here
    with pytest.raises(ValueError, match="predictions must be 0 or 1, got 0.7"):
        metrics.binary_report([0, 1], [0, 0.7])
    with pytest.raises(ValueError, match="has 3 scores for 2 labels"):
        metrics.binary_report([0, 1], [0, 1, 1])
    with pytest.raises(ValueError, match="video b has labels but no scores"):
        metrics.binary_report({"a": [0], "b": [1]}, {"a": [0]})


def test_thresholds_come_from_the_right_criterion():
    """Ten normals and two anomalies: one apart on top, one under a single normal."""
    scores = {"v": np.array([0.9, 0.6, 0.5, *np.linspace(0.1, 0.3, 9)])}
    labels = {"v": np.array([1, 0, 1] + [0] * 9)}
    assert metrics.youden_threshold(scores, labels) == 0.5  # 1 - 1/10 beats 1/2
    assert metrics.f1_threshold(scores, labels) == 0.5  # 4/5 beats 2/3
    many = {"v": np.array([0.9, *[0.6] * 4, 0.5, *np.linspace(0.1, 0.3, 30)])}
    truth = {"v": np.array([1, 0, 0, 0, 0, 1] + [0] * 30)}
    assert metrics.youden_threshold(many, truth) == 0.5  # 1 - 4/34 beats 1/2
    assert metrics.f1_threshold(many, truth) == 0.9  # 2/3 beats 4/8: the two criteria are not one
    late = {"v": np.array([0.9, 0.8, 0.7, 0.6, *np.linspace(0.1, 0.3, 20), 0.05])}
    assert metrics.f1_threshold(late, {"v": np.array([1, 0, 0, 1] + [0] * 20 + [1])}) == 0.6  # 4/7 beats 1/2
    assert np.isfinite(metrics.youden_threshold({"v": [0.9, 0.1]}, {"v": [0, 1]}))  # worse than chance


def test_false_alarms_are_counted_on_normal_videos_only():
    scores = {"normal": [0.1, 0.5, 0.9, 0.2], "fight": [0.9, 0.9]}
    assert metrics.false_alarm_rate(scores, {"normal": [0] * 4, "fight": [0, 1]}, threshold=0.5) == 0.5
    with pytest.raises(ValueError, match="all 1 are anomalous"):
        metrics.false_alarm_rate({"a": [0.1]}, {"a": [1]}, threshold=0.5)


@pytest.mark.parametrize("metric", list(metrics.COUNTED))
def test_the_fast_bootstrap_equals_evaluating_each_resample(metric):
    scores, labels = toy(videos=7)
    weights = metrics._weights(len(labels), 60, rng(3))
    weights[0] = [7, 0, 0, 0, 0, 0, 0]  # v0 is normal: one class
    fast = metrics._resampled(metric, scores, labels, weights)
    slow = metrics._resampled(lambda s, y: metric(s, y), scores, labels, weights)
    assert np.isnan(fast[0]) and np.isnan(slow[0]) and np.ptp(fast[1:]) > 0.01
    np.testing.assert_allclose(fast, slow, atol=1e-12)


def test_a_bootstrap_in_pieces_is_the_same(monkeypatch):
    scores, labels = toy()
    whole = metrics.bootstrap_ci(metrics.frame_ap, scores, labels, rng=rng(), resamples=50)
    monkeypatch.setattr(metrics, "CHUNK", 100)
    assert metrics.bootstrap_ci(metrics.frame_ap, scores, labels, rng=rng(), resamples=50) == whole


def test_an_interval_is_over_videos_not_frames():
    """Ten times the frames of the same videos are no more evidence; ten times the videos are."""
    scores, labels = toy(videos=12)
    once = metrics.bootstrap_ci(metrics.frame_auc, scores, labels, rng=rng(), resamples=400)
    assert once.low < once.value < once.high and once.value == metrics.frame_auc(scores, labels)
    longer = [{name: np.repeat(values, 10) for name, values in of.items()} for of in (scores, labels)]
    assert metrics.bootstrap_ci(metrics.frame_auc, *longer, rng=rng(), resamples=400) == pytest.approx(once, nan_ok=True)
    more = [{f"{name}-{k}": values for name, values in of.items() for k in range(10)} for of in (scores, labels)]
    narrow = metrics.bootstrap_ci(metrics.frame_auc, *more, rng=rng(), resamples=400)
    assert narrow.high - narrow.low < 0.5 * (once.high - once.low)


def test_one_class_resamples_are_skipped_and_counted():
    scores, labels = {"a": [0.1], "b": [0.9], "c": [0.4]}, {"a": 0, "b": 1, "c": 0}
    found = metrics.bootstrap_ci(metrics.video_auc, scores, labels, rng=rng(), resamples=2000)
    # b missing, or alone: (2/3)^3 + (1/3)^3 = 1/3 of the resamples
    assert found.resamples == pytest.approx(2000 * 2 / 3, rel=0.05) and (found.low, found.high) == (1, 1)


def test_too_few_usable_resamples_are_refused():
    def needs_all_three(scores, labels):
        if len({name.split()[0] for name in scores}) < 3:  # all three are drawn in 6 of 27 resamples
            raise metrics.OneClassError("missing one")
        return 0.5

    scores, labels = {"a": [0.1], "b": [0.9], "c": [0.4]}, {"a": 0, "b": 1, "c": 0}
    with pytest.raises(ValueError, match=r"only \d+ of 300 resamples have both classes"):
        metrics.bootstrap_ci(needs_all_three, scores, labels, rng=rng(), resamples=300)


def test_a_paired_bootstrap_sees_a_difference_two_intervals_hide():
    scores, labels = toy(videos=30)
    better = {name: values + 0.1 * labels[name] for name, values in scores.items()}
    found = metrics.paired_bootstrap(metrics.frame_auc, better, scores, labels, rng=rng(), resamples=500)
    assert found.value == metrics.frame_auc(better, labels) - metrics.frame_auc(scores, labels)
    assert 0 < found.low < found.value < found.high and found.p_value < 0.01
    worse = metrics.paired_bootstrap(metrics.frame_auc, scores, better, labels, rng=rng(), resamples=500)
    assert (worse.value, worse.low, worse.p_value) == pytest.approx((-found.value, -found.high, found.p_value))
    apart = [metrics.bootstrap_ci(metrics.frame_auc, s, labels, rng=rng(), resamples=500) for s in (better, scores)]
    assert apart[0].low < apart[1].high  # the two intervals overlap all the same
    same = metrics.paired_bootstrap(metrics.frame_auc, scores, scores, labels, rng=rng(), resamples=50)
    assert (same.value, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_sanity_rows_say_what_needs_no_model():
    labels = {f"v{k}": np.array([0] * 20 + [k % 2] * 10) for k in range(60)}
    scores = {name: truth + 0.01 * rng().random(30) for name, truth in labels.items()}  # perfect
    energy = {name: np.ones(30) for name in labels}
    found = {row["row"]: row for row in metrics.sanity_rows(scores, labels, rng=rng(), energy=energy)}
    assert list(found) == ["scores", "constant", "shuffled labels", "video-label oracle", "feature energy"]
    assert found["scores"]["frame_auc"] == 1
    assert found["constant"]["frame_auc"] == 0.5 and found["constant"]["frame_ap"] == pytest.approx(1 / 6)
    # the oracle gives 900 frames 1: all 300 positives and 600 of 1500 negatives
    oracle = found["video-label oracle"]
    assert oracle["frame_auc"] == pytest.approx(1 - 0.5 * 600 / 1500) and oracle["frame_ap"] == pytest.approx(1 / 3)
    assert oracle["frame_auc_anomalous_only"] == 0.5
    assert abs(found["shuffled labels"]["frame_auc"] - 0.5) < 0.15
    assert found["feature energy"]["frame_auc"] == 0.5


def test_sanity_rows_serve_video_metrics_too():
    scores, labels = {f"v{k}": np.full(3, k) for k in range(40)}, {f"v{k}": int(k > 19) for k in range(40)}
    rows = metrics.sanity_rows(scores, labels, rng=rng(), metrics=(metrics.video_auc, metrics.video_ap))
    found = {row["row"]: row["video_auc"] for row in rows}
    assert found["scores"] == 1 and found["constant"] == 0.5 and found["video-label oracle"] == 1
    assert abs(found["shuffled labels"] - 0.5) < 0.2
    with pytest.raises(ValueError, match="video v0 has labels but no scores"):
        metrics.sanity_rows({}, labels, rng=rng())


def test_what_is_undefined_is_nan_in_a_table_and_other_errors_are_not():
    scores, labels = {"a": [0.1, 0.2], "b": [0.3]}, {"a": [0, 0], "b": [1]}
    (first, *_) = metrics.sanity_rows(scores, labels, rng=rng())
    assert first["frame_auc"] == 1 and np.isnan(first["frame_auc_anomalous_only"])
    with pytest.raises(ValueError, match="scores hold nan"):
        metrics.sanity_rows({"a": [0.1, np.nan], "b": [0.3]}, labels, rng=rng())


def test_shuffling_keeps_the_amount_of_truth():
    _, labels = toy()
    mixed = metrics._shuffled(labels, rng())
    assert {name: len(truth) for name, truth in mixed.items()} == {name: len(truth) for name, truth in labels.items()}
    assert joined(mixed).sum() == joined(labels).sum() and (joined(mixed) != joined(labels)).any()


def test_curves_enclose_the_areas_they_are_named_after():
    scores, labels = toy(videos=40)
    roc, pr = metrics.roc_curve(scores, labels), metrics.pr_curve(scores, labels)
    assert roc.band is None and np.trapezoid(roc.y, roc.x) == pytest.approx(metrics.frame_auc(scores, labels))
    assert (roc.x[0], roc.y[0], roc.x[-1], roc.y[-1]) == (0, 0, 1, 1)
    assert (pr.x[0], pr.x[-1]) == (0, 1) and (np.diff(pr.x) >= 0).all()
    assert pr.y[-1] == pytest.approx(joined(labels).mean())


def test_bands_hold_the_curve_and_narrow_with_more_videos():
    widths = []
    for videos in (20, 200):
        scores, labels = toy(videos=videos)
        roc = metrics.roc_curve(scores, labels, rng=rng(), resamples=200)
        x, low, high = roc.band
        inside = np.interp(x, roc.x, roc.y)
        assert ((low - 1e-9 <= inside) & (inside <= high + 1e-9)).mean() > 0.95
        widths.append((high - low).mean())
        pr = metrics.pr_curve(scores, labels, rng=rng(), resamples=200)
        x, low, high = (line[1:] for line in pr.band)  # at recall 0 a curve starts by convention
        inside = pr.y[np.searchsorted(pr.x, x)]  # the first threshold that reaches the recall
        assert ((low - 1e-9 <= inside) & (inside <= high + 1e-9)).mean() > 0.9
    assert widths[1] < 0.5 * widths[0]


def test_long_curves_are_thinned_for_drawing():
    scores = {"a": rng().random(20_000)}
    curve = metrics.roc_curve(scores, {"a": rng(1).integers(0, 2, 20_000)})
    assert len(curve.x) <= 1000 and curve.x[-1] == 1 and abs(np.trapezoid(curve.y, curve.x) - 0.5) < 0.02


# Published numbers on real scores and labels.


def arrays(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def xd(real_data):
    """Per-frame scores of a C2FPL run, given in list order, and the truth of XD-Violence's 800 test videos."""
    labels = arrays(real_data / "gt" / "xd_violence" / "xd_violence_test_gt_per_video.npz")
    rows = np.load(real_data / "predictions" / "c2fpl_xd_pred_raw_seg.npy")[:, 0]
    parts = np.split(rows, np.cumsum([len(truth) // 16 for truth in labels.values()])[:-1])
    snippets = dict(zip(labels, parts, strict=True))
    return {name: metrics.expand(snippets[name], len(truth)) for name, truth in labels.items()}, labels


@pytest.fixture(scope="module")
def ucf(real_data):
    """Per-frame scores of a 32-segment model and the half-open truth of UCF-Crime's 290 test videos."""
    rows = arrays(real_data / "predictions" / "ucf_sultani_style_scores_32seg.npz")
    scores, labels = {}, {}
    for name, segments, frames, spans in zip(*(rows[k] for k in ("video", "scores", "n_frames", "intervals")), strict=True):
        scores[str(name)], truth = metrics.expand_evenly(segments, int(frames)), np.zeros(frames, int)
        for start, stop in spans.reshape(-1, 2):
            truth[max(start, 0) : max(stop, 0)] = 1
        labels[str(name)] = truth
    return scores, labels


@pytest.mark.real
def test_xd_numbers_come_out_to_1e_9(xd, real_data):
    expected = json.loads((real_data / "expected.json").read_text())["c2fpl_xd"]
    assert metrics.frame_auc(*xd) == pytest.approx(expected["auc"], abs=1e-9) == pytest.approx(0.6656061807880673)
    assert metrics.frame_ap(*xd) == pytest.approx(expected["ap"], abs=1e-9) == pytest.approx(0.3537267997950283)
    trapezoid = metrics.frame_trapezoid_pr(*xd)
    assert trapezoid == pytest.approx(expected["pr_auc_trapezoid"], abs=1e-9) == pytest.approx(0.353701383271755)


@pytest.mark.real
def test_xd_pitfalls_have_their_measured_size(xd):
    """evaluation.md 4.1: an oracle of video labels, another order of the same total, chance, per-video min-max."""
    scores, labels = xd
    rows = {row["row"]: row for row in metrics.sanity_rows(scores, labels, rng=rng(), shuffles=2)}
    assert rows["video-label oracle"]["frame_auc"] == pytest.approx(0.849, abs=5e-4)
    assert rows["video-label oracle"]["frame_ap"] == pytest.approx(0.499, abs=5e-4)
    assert rows["constant"]["frame_ap"] == pytest.approx(0.2308, abs=5e-5)
    assert 0.45 < rows["shuffled labels"]["frame_auc"] < 0.55
    sizes = np.cumsum([len(truth) for truth in labels.values()])[:-1]
    by_name = np.split(np.concatenate([scores[name] for name in sorted(scores)]), sizes)
    wrong = dict(zip(labels, by_name, strict=True))
    assert metrics.frame_auc(wrong, labels) == pytest.approx(0.511, abs=5e-4)
    assert metrics.frame_ap(wrong, labels) == pytest.approx(0.231, abs=5e-4)
    assert metrics.frame_auc(metrics.rescaled_per_video(scores), labels) == pytest.approx(0.657, abs=2e-3)


@pytest.mark.real
def test_ucf_numbers_come_out(ucf, real_data):
    assert metrics.frame_auc(*ucf) == pytest.approx(0.690, abs=5e-4)
    assert metrics.frame_ap(*ucf) == pytest.approx(0.192, abs=5e-4)
    assert metrics.video_auc(*ucf) == pytest.approx(0.783, abs=5e-4)
    rows = {row["row"]: row for row in metrics.sanity_rows(*ucf, rng=rng(), shuffles=1)}
    assert rows["video-label oracle"]["frame_auc"] == pytest.approx(0.816, abs=5e-4)
    assert rows["video-label oracle"]["frame_ap"] == pytest.approx(0.182, abs=5e-4)


@pytest.mark.real
def test_the_interval_on_real_scores_holds_the_value(ucf):
    found = metrics.bootstrap_ci(metrics.frame_auc, *ucf, rng=rng(), resamples=200)
    assert found.low < found.value < found.high and found.resamples == 200 and 0.03 < found.high - found.low < 0.3


@pytest.mark.real
@pytest.mark.parametrize("method, name", [("few", "smarthome_vila13b_few"), ("0shot", "smarthome_vila13b_0shot")])
def test_smarthome_answers_give_the_published_row(method, name, real_data):
    """1,203 released answers; one without a readable digit counts as the wrong class."""
    expected = json.loads((real_data / "expected.json").read_text())[name]
    lines = (real_data / "annotations" / "smarthome_bench" / f"responses_vila-13b_{method}.json").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    said = [re.search(r'"(?:anomaly|result)"\s*:\s*"?([01])', row["pred"]) for row in rows]
    truth = [row["truth"] for row in rows]
    decided = [int(found[1]) if found else 1 - row["truth"] for found, row in zip(said, rows, strict=True)]
    report = metrics.binary_report(truth, decided)
    for key in ("accuracy", "precision", "recall", "f1"):
        assert round(100 * report[key], 2) == expected[key], key


def test_a_grouped_mean_and_its_interval_are_of_the_same_quantity():
    """Group a holds 1, 1, 1, 1, group b 0: the mean over groups is .5 (over values .8); two groups give 0, .5 or 1."""
    found = metrics.grouped_mean([1, 1, 1, 1, 0], list("aaaab"), rng=np.random.default_rng(0))
    assert found.value == 0.5 and (found.low, found.high) == (0.0, 1.0)
    assert metrics.grouped_mean([1, 0, 1, 0], list("aabb"), rng=np.random.default_rng(0))[:3] == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="as many values as groups"):
        metrics.grouped_mean([1.0], [], rng=np.random.default_rng(0))
