"""Streams: no score before its time, alarms counted by hand and by brute force, long streams whose truth is exact."""

import math
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

from vau_lib.data import records
from vau_lib.evaluation import metrics, online_metrics
from vau_lib.synthetic import feature_streams

SECOND = {"step_s": 1.0, "merge_s": 3.0}


def rng(seed=0):
    return np.random.default_rng(seed)


# Causal alignment


@pytest.mark.parametrize("clip_rows, snippet_frames", [(1, 1), (1, 4), (3, 1), (3, 4), (8, 2)])
@pytest.mark.parametrize("rows, num_frames", [(1, 3), (7, 28), (9, 36), (9, 40), (24, 5)])
def test_a_frame_holds_the_newest_score_of_a_clip_seen_to_its_end(clip_rows, snippet_frames, rows, num_frames):
    scores, expected = rng().random(rows), []
    for frame in range(num_frames):
        now = 0.25
        for clip in range(rows // clip_rows):  # a clip the video does not fill is never known
            if frame >= (clip + 1) * clip_rows * snippet_frames - 1:  # its last frame has been seen
                now = scores[(clip + 1) * clip_rows - 1]
        expected.append(now)
    found = online_metrics.newest(scores, num_frames, clip_rows=clip_rows, snippet_frames=snippet_frames, nothing=0.25)
    assert found.tolist() == expected


def reached_back(smooth, values):
    """Return for each cut how many of the values before it change when those from it on do."""
    later = np.arange(len(values))
    return [int((smooth(values + (later >= cut)) != smooth(values))[:cut].sum()) for cut in range(1, len(values))]


def test_no_later_score_reaches_an_earlier_frame_but_the_released_smoothers_look_ahead():
    values, clips = rng().random(24), {"clip_rows": 4, "snippet_frames": 1}
    assert not any(reached_back(lambda v: online_metrics.newest(v, 24, **clips), values))
    assert reached_back(lambda v: online_metrics.smooth_ahead(v, 4), values) == [min(cut, 3) for cut in range(1, 24)]
    assert reached_back(lambda v: online_metrics.smooth_blocks(v, 4), values) == [cut % 4 for cut in range(1, 24)]


@pytest.mark.parametrize("count", [1, 3, 8, 21])
@pytest.mark.parametrize("width", [1, 2, 8])
def test_smoothers_follow_their_loops(count, width):
    values = rng().random(count)
    padded = [*values, *[0.0] * width]
    sliding = [sum(padded[i : i + width]) / width for i in range(count)]
    blocks = [sum(padded[i // width * width :][:width]) / width for i in range(count)]  # the last one divides by as much
    np.testing.assert_allclose(online_metrics.smooth_ahead(values, width), sliding)
    np.testing.assert_allclose(online_metrics.smooth_blocks(values, width), blocks)


# Alarms


def test_alarms_by_hand():
    scores = [0, 1, 1, 0, 0, 1, 0, 0, 0.5, 1]  # hot at 1 2, 5, 9: gaps of 3 and 4 steps
    for merge_s, begin in {0: [2, 6, 10], 3: [2, 6, 10], 3.5: [2, 10], 4: [2, 10], 4.5: [2]}.items():
        assert online_metrics.alarms(scores, 1, step_s=1, merge_s=merge_s).tolist() == begin  # known when the step is over
    assert online_metrics.alarms(scores, 1, step_s=0.5, merge_s=2).tolist() == [1, 5]
    assert online_metrics.alarms(scores, 0.5, **SECOND).tolist() == [2, 6, 9] and not len(
        online_metrics.alarms(scores, 2, **SECOND)
    )


def brute_alarms(values, threshold, step_s, merge_s):
    count, last = 0, -math.inf
    for place, value in enumerate(values):
        if value >= threshold:
            later = (place - last) * step_s
            count += later > step_s and later >= merge_s
            last = place
    return count


def normals(seed, streams=3):
    """Streams of tied scores that come in runs."""
    draw = rng(seed)
    sizes = draw.integers(1, 40, streams)
    return {f"s{k}": np.round(np.convolve(draw.random(n + 2), [1, 1, 1], "valid") * 4) / 8 for k, n in enumerate(sizes)}


@pytest.mark.parametrize("step_s, merge_s", [(1.0, 0.0), (1.0, 2.0), (0.5, 4.0), (2.0, 5.0)])
def test_the_threshold_of_a_budget_is_the_lowest_of_all_candidates(step_s, merge_s):
    clock, answers = {"step_s": step_s, "merge_s": merge_s}, set()
    for seed in range(40):
        streams = normals(seed)
        levels = sorted({float(v) for values in streams.values() for v in values})
        levels.append(np.nextafter(levels[-1], np.inf))
        hours = sum(len(values) for values in streams.values()) * step_s / 3600
        rates = [sum(brute_alarms(v, level, **clock) for v in streams.values()) / hours for level in levels]
        for level, rate in zip(levels, rates, strict=True):
            assert online_metrics.false_alarms_per_hour(streams, threshold=level, **clock) == pytest.approx(rate)
        for budget in (0, 0.9 / hours, 1 / hours, 2 / hours, 3.5 / hours, 1e9):
            over = [place for place, rate in enumerate(rates) if rate > budget * (1 + 1e-9)]
            expected = levels[over[-1] + 1 if over else 0]  # it and every candidate above it keep to the budget
            assert online_metrics.threshold_for_budget(streams, per_hour=budget, **clock) == expected
            answers.add(levels.index(expected) / len(levels))
    assert len(answers) > 10


def test_merging_counts_fewer_alarms_but_a_lower_threshold_is_not_taken_for_it():
    """At 0 all is one alarm, at .5 there are two, at 1 one: a budget of one means 1, not 0."""
    streams, one = {"a": [0.5, 0, 0, 0, 1, 0]}, 3600 / 6
    assert online_metrics.false_alarms_per_hour(streams, threshold=0, **SECOND) == pytest.approx(one)
    assert online_metrics.false_alarms_per_hour(streams, threshold=0.5, **SECOND) == pytest.approx(2 * one)
    assert online_metrics.threshold_for_budget(streams, per_hour=one, **SECOND) == 1
    assert online_metrics.threshold_for_budget(streams, per_hour=0, **SECOND) == np.nextafter(1, 2)


def test_a_report_by_hand():
    scores = np.zeros(40)
    scores[[4, 12, 13, 30]] = 1  # known at 5, 13, 14 and 31 s
    streams, events = {"cam": scores, "quiet": np.zeros(20)}, {"cam": [(10, 20), (25, 28), (30, 40)], "quiet": []}
    report = online_metrics.detection_report(streams, events, threshold=0.5, within_s=(1, 2, 3), **SECOND)
    assert (report["events"], report["detected"]) == (3, 2)  # delays 3 s, missed (3 s long), 1 s
    assert [report[f"recall_within_{s}s"] for s in (1, 2, 3)] == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    assert (report["median_delay_s"], report["mean_delay_s"]) == pytest.approx((3, 7 / 3))
    assert report["false_alarms"] == 1 and report["normal_hours"] == pytest.approx((60 - 23) / 3600)
    assert report["false_alarms_per_hour"] == pytest.approx(3600 / 37) and report["hot_share"] == pytest.approx(1 / 37)


@pytest.mark.parametrize("step_s", [0.1, 16 / 30, 1.0, 3.0])
@pytest.mark.parametrize("merge_s", [0.0, 3.0, 60.0])
def test_a_perfect_oracle_of_events_of_one_row_detects_them_all(step_s, merge_s):
    """29 events at rows 5, 15, ..., 285 of 300: every one is seen when its row is over, and nothing else is."""
    scores, rows = np.zeros(300), range(5, 295, 10)
    scores[rows] = 1
    events = {"a": [(row * step_s, (row + 1) * step_s) for row in rows]}
    clock = {"threshold": 0.5, "step_s": step_s, "merge_s": merge_s, "within_s": (0.99 * step_s, step_s)}
    report = online_metrics.detection_report({"a": scores}, events, **clock)
    assert (report["events"], report["detected"], report["false_alarms"], report["hot_share"]) == (29, 29, 0, 0)
    assert report["mean_delay_s"] == pytest.approx(step_s) and report["median_delay_s"] == pytest.approx(step_s)
    within = [value for name, value in report.items() if name.startswith("recall")]
    assert within == [0, 1] and report["normal_hours"] == pytest.approx(271 * step_s / 3600)
    before = online_metrics.detection_report({"a": np.roll(scores, -1)}, events, **clock)  # each alarm a row early
    assert (before["detected"], before["false_alarms"]) == (0, 29 if merge_s <= 10 * step_s else 1)  # ten rows apart


@pytest.mark.parametrize("offset, detected, false", [(-1, 0, 1), (0, 1, 0), (3, 1, 0), (4, 0, 1)])
def test_an_alarm_belongs_to_the_row_that_raised_it(offset, detected, false):
    """Rows of 16/30 s, an event in rows 10 to 13: the row before is false, the last one a detection, the next false."""
    row_s = 16 / 30
    scores = np.zeros(30)
    scores[10 + offset] = 1
    events = {"a": [(10 * row_s, 14 * row_s)]}
    report = online_metrics.detection_report({"a": scores}, events, threshold=1, step_s=row_s, merge_s=0)
    assert (report["detected"], report["false_alarms"]) == (detected, false)
    assert report["mean_delay_s"] == pytest.approx((offset + 1) * row_s if detected else 4 * row_s)


def test_an_event_between_the_edges_of_rows_belongs_to_every_row_it_overlaps():
    """Rows of 2 s; 5 to 7.5 s lies in the rows of 4 to 6 s and 6 to 8 s."""
    for row, detected, delay in ((1, 0, 2.5), (2, 1, 1), (3, 1, 2.5), (4, 0, 2.5)):  # row 3 is known at 8 s: no later than missed
        scores = np.zeros(10)
        scores[row] = 1
        report = online_metrics.detection_report({"a": scores}, {"a": [(5, 7.5)]}, threshold=1, step_s=2, within_s=(1, 3))
        assert (report["detected"], report["false_alarms"], report["mean_delay_s"]) == (detected, 1 - detected, delay)
        assert report["recall_within_3s"] == detected and report["recall_within_1s"] == (row == 2)


@pytest.mark.parametrize("clip_rows, known", [(1, [3, 8, 13]), (4, [4, 8, 16]), (8, [8, 8, 16]), (16, [16, 16, 16])])
def test_a_clip_is_known_when_it_is_over(clip_rows, known):
    """Events of one row at 2, 7 and 12 of 13 rows of 0.5 s, a perfect oracle: each is known when its clip ends."""
    scores = np.zeros(13)
    scores[[2, 7, 12]] = 1
    events = {"a": [(1, 1.5), (3.5, 4), (6, 6.5)]}
    delays = [0.5 * end - start for end, (start, _) in zip(known, events["a"], strict=True)]
    limits = sorted({round(delay, 3) for delay in delays})
    report = online_metrics.detection_report(
        {"a": scores}, events, threshold=1, step_s=0.5, merge_s=0, within_s=limits, clip_rows=clip_rows
    )
    assert (report["detected"], report["false_alarms"]) == (3, 0)
    for limit in limits:
        assert report[f"recall_within_{limit:g}s"] == pytest.approx(np.mean([delay <= limit for delay in delays]))
    begin = online_metrics.alarms(scores, 1, step_s=0.5, merge_s=0, clip_rows=clip_rows)
    assert begin.tolist() == [0.5 * end for end in known]


def test_an_alarm_that_begins_before_the_event_is_false_and_sees_it_in_its_first_row():
    scores = np.zeros(30)
    scores[5:15] = 1
    report = online_metrics.detection_report({"a": scores}, {"a": [(10, 20)]}, threshold=1, within_s=(0.5, 1), **SECOND)
    assert (report["false_alarms"], report["detected"], report["median_delay_s"]) == (1, 1, 1)
    assert (report["recall_within_0.5s"], report["recall_within_1s"]) == (0, 1) and report["hot_share"] == pytest.approx(5 / 20)
    endless = online_metrics.detection_report({"a": np.ones(30)}, {"a": [(10, 20)]}, threshold=1, **SECOND)
    assert (endless["detected"], endless["false_alarms"], endless["hot_share"]) == (1, 1, 1)  # told by its share


def test_merging_joins_false_alarms_and_never_hides_an_event():
    """Hot rows 4, 8 (the event), 12 and 19: with a window of 5 s the first three are one alarm, which began too early."""
    scores = np.zeros(25)
    scores[[4, 8, 12, 19]] = 1
    for merge_s, false in ((0, 3), (4, 3), (5, 2), (8, 1)):
        report = online_metrics.detection_report({"a": scores}, {"a": [(8, 9)]}, threshold=1, step_s=1, merge_s=merge_s)
        assert (report["detected"], report["false_alarms"], report["mean_delay_s"]) == (1, false, 1)


def test_a_delay_curve_is_a_report_at_each_budget():
    scores, events, validation = normals(5, 4), {"s0": [(2, 9)], "s1": [], "s2": [(0, 1)], "s3": []}, normals(6)
    rows = online_metrics.delay_curve(scores, events, validation, budgets=(0, 60, 1e6), within_s=(3,), **SECOND)
    assert [row.pop("budget_per_hour") for row in rows] == [0, 60, 1e6]
    thresholds = [row.pop("threshold") for row in rows]
    assert thresholds == [online_metrics.threshold_for_budget(validation, per_hour=b, **SECOND) for b in (0, 60, 1e6)]
    for row, threshold in zip(rows, thresholds, strict=True):
        assert row == online_metrics.detection_report(scores, events, threshold=threshold, within_s=(3,), **SECOND)
    assert rows[0]["mean_delay_s"] > rows[-1]["mean_delay_s"]


# Long streams


def test_events_are_spread_one_in_each_part():
    stream = feature_streams.drifting_stream(rows=2000, events=10, rng=rng())
    normal_before = [(stream.labels[:start] == 0).sum() for start, _ in stream.events]
    assert np.floor_divide(normal_before, (stream.labels == 0).sum() / 10).tolist() == list(range(10))
    assert not feature_streams.drifting_stream(rows=20, events=0, rng=rng()).labels.any()


def test_a_drifting_stream_is_what_its_formula_says():
    quiet = {"drift": 0.0, "camera": 0.0, "noise": 0.0}
    stream = feature_streams.drifting_stream(rows=3000, events=40, rng=rng(), offset=2.0, event_rows=(5, 9), **quiet)
    along, towards = feature_streams.world_directions()
    np.testing.assert_allclose(along @ along.T, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(towards, along.sum(0) / 2)
    lifted = stream.features @ towards
    np.testing.assert_allclose(stream.features, np.outer(lifted, towards), atol=1e-6)
    first = [start for start, _ in stream.events]
    assert set(np.round(lifted[first], 4)) == {1, 2}  # up in one row or in two
    lifted[first] = 2
    np.testing.assert_allclose(lifted, 2 * stream.labels, atol=1e-6)
    assert {end - start for start, end in stream.events} == {5, 6, 7, 8, 9} and len(first) == 40
    assert np.diff([0, *np.ravel(stream.events), 3000])[::2].min() > 0  # normal rows before, between and after


def test_the_drift_has_its_size_and_its_time():
    level = {"camera": 0.0, "noise": 0.0, "row_s": 1.0, "drift": 3.0, "drift_s": 50.0}
    stream = feature_streams.drifting_stream(rows=100_000, events=0, rng=rng(), width=8, directions=2, **level)
    z = stream.features @ feature_streams.world_directions(8, directions=2)[0].T
    assert z.std(0) == pytest.approx([3, 3], rel=0.1)
    after = [(z[50:, k] * z[:-50, k]).mean() / z[:, k].var() for k in (0, 1)]
    assert after == pytest.approx([math.exp(-1)] * 2, abs=0.08)


def test_a_seed_decides_the_stream():
    one, same, other = (feature_streams.drifting_stream(rows=300, events=5, rng=rng(seed)) for seed in (1, 1, 2))
    assert one.features.tobytes() == same.features.tobytes() and one.events == same.events != other.events
    assert one.features.dtype == np.float32 and one.labels.dtype == np.uint8


def test_after_leaves_out_events_that_began_before():
    labels = np.array([0, 1, 1, 1, 0, 1, 0], np.uint8)
    stream = records.LongStream("x", np.zeros((7, 1)), labels, ((1, 4), (5, 6)), row_s=2.0)
    assert stream.spans_s == [(2, 8), (10, 12)]
    assert np.flatnonzero(stream.after(0)).tolist() == list(range(7))
    assert np.flatnonzero(stream.after(2)).tolist() == [1, 2, 3, 4, 5, 6]
    assert np.flatnonzero(stream.after(2.1)).tolist() == [4, 5, 6]
    assert np.flatnonzero(stream.after(10)).tolist() == [5, 6] and not stream.after(14).any()


def test_in_the_drifting_world_only_the_recent_past_tells():
    world = feature_streams.drifting_world(8, rows=4000, events=20, rng=rng())
    assert [stream.id for stream in world[:2]] == ["drift-000", "drift-001"]
    labels, towards = {stream.id: stream.labels for stream in world}, feature_streams.world_directions()[1]

    def auc(past):
        level = {stream.id: stream.features @ towards for stream in world}
        return metrics.frame_auc({name: x - past(x) for name, x in level.items()}, labels)

    def recent(x):
        return np.array([x[max(0, now - 60) : max(now, 1)].mean() for now in range(len(x))])

    absolute, first = auc(lambda x: 0), auc(lambda x: x[:100].mean())
    assert 0.55 < absolute < 0.75 and auc(recent) > 0.85 and first == pytest.approx(absolute, abs=0.05)
    normal = feature_streams.drifting_world(2, rows=50, events=0, rng=rng(), prefix="n")
    assert not any(stream.labels.any() for stream in normal) and normal[1].id == "n-001"


def test_costs_by_hand():
    seconds, times = np.concatenate([np.full(10, 9.0), np.arange(1, 102) / 1000]), rng().random(50) * 1e4
    assert online_metrics.latency(seconds) == pytest.approx({"mean_ms": 51, "p50_ms": 51, "p95_ms": 96, "p99_ms": 100})
    assert online_metrics.slope_per_hour(7 + 3 * times / 3600, times) == pytest.approx(3)
    assert online_metrics.slope_per_hour([1, 3, 2], [0, 1800, 3600]) == pytest.approx(1)


RESIDENT = """import numpy as np
from vau_lib.evaluation.online_metrics import resident_bytes
before, block = resident_bytes(), np.ones(256 << 20, np.uint8)
print(before, resident_bytes())"""


def test_resident_memory_is_what_a_process_holds():
    """In a process of its own: what other tests left may be given back between the two readings."""
    said = subprocess.run([sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=True).stdout
    before, after = map(int, said.split())
    assert before > 0 and after > before + (128 << 20)


# Refusals


ONE = {"a": [0.0, 1.0]}
REPORT = partial(online_metrics.detection_report, threshold=1, step_s=1)
DRIFT = partial(feature_streams.drifting_stream, rows=100, events=2, rng=rng())


@pytest.mark.parametrize(
    "refused, said",
    [
        (lambda: online_metrics.newest([1, 2], 4, clip_rows=0), "clip_rows must be 1 or more, got 0"),
        (lambda: online_metrics.newest(np.ones((2, 2)), 4, clip_rows=1), r"newest: one number per step .* \(2, 2\)"),
        (lambda: online_metrics.smooth_blocks([1, math.nan], 4), "smooth_blocks: nan at place 1"),
        (lambda: online_metrics.alarms([1], math.nan, step_s=1), "threshold must be a number, got nan"),
        (lambda: online_metrics.alarms([1], 1, step_s=0), "step_s must be positive .* got 0 and 10"),
        (lambda: online_metrics.false_alarms_per_hour({}, threshold=1, step_s=1), "no streams"),
        (lambda: online_metrics.false_alarms_per_hour({"b": [math.inf]}, threshold=1, step_s=1), "stream b: inf at place 0"),
        (lambda: online_metrics.threshold_for_budget(ONE, per_hour=-1, step_s=1), "per_hour must be 0 or more, got -1"),
        (lambda: REPORT(ONE, {}), r"stream a has no events \(\[\] if normal\)"),
        (lambda: REPORT(ONE, {"a": []}), "none of 1 streams has an event"),
        (lambda: REPORT(ONE, {"a": [(1, 1)]}), r"stream a: an event starts .* got \(1, 1\)"),
        (lambda: REPORT(ONE, {"a": [(2, 3)]}), r"stream a: event \(2, 3\) s, its 2 rows end at 2 s"),
        (lambda: REPORT(ONE, {"a": [(1, 4)]}), r"stream a: event \(1, 4\) s, its 2 rows end at 2 s"),
        (lambda: REPORT(ONE, {"a": [(0, 1)]}, clip_rows=0), "clip_rows must be 1 or more, got 0"),
        (lambda: DRIFT(rows=30, event_rows=(20, 20)), "30 rows leave -10 normal ones for 2 events"),
        (lambda: DRIFT(directions=65), "a world of width 64 has 1 to 64 directions, got 65"),
        (lambda: online_metrics.latency(np.ones(10)), "10 calls leave none after a warm-up of 10"),
        (lambda: online_metrics.slope_per_hour([1, 2], [3, 3]), "a slope needs two times"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(refused, said):
    with pytest.raises(ValueError, match=said) as caught:
        refused()
    assert "\n" not in str(caught.value)
