"""Online metrics: causal alignment and smoothing of scores, alarms, false alarms per hour, detection delay, latency.

- a clip's scores exist once its last frame has been seen; until then a frame holds what was known before
- an alarm belongs to the row that raised it and is known at the end of that row, or of its clip: delay is counted to then
- a threshold is set on normal streams of validation, for so many false alarms an hour; an event that is missed costs its
  whole length as delay (false alarms against delay: Doshi and Yilmaz, arXiv 2010.07110)
- hours of rows come from short videos, with exact truth; the world whose normality drifts was made to need recent memory:
  it shows what memory is for, not how well a model does on real video
Rows are (T, D), `row_s` seconds each; spans are half-open; a stream is known by its id, as in `metrics`.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.signal import lfilter

from vau_lib.data.records import SNIPPET_FRAMES

HOUR_S = 3600.0
SLACK = 1e-6  # rows: 3 x 0.1 s is the edge of a row of 0.1 s, whatever its last bit says
Streams = Mapping[str, np.ndarray]
Spans = Sequence[tuple[float, float]]
Rng = np.random.Generator


def newest(
    scores: np.ndarray, num_frames: int, *, clip_rows: int, snippet_frames: int = SNIPPET_FRAMES, nothing: float = 0.0
) -> np.ndarray:
    """Return the newest score known when each frame has been seen, (num_frames,), from one per row (n,).

    With C = clip_rows * snippet_frames, clip c is known from its last frame, (c + 1) C - 1, on; frame f holds the score of
    the last row of clip (f + 1) // C - 1, and `nothing` before the first. A last clip that the video does not fill is
    never known: padding completes it after the end. `snippet_frames` 1 aligns rows instead of frames. `metrics.expand`
    is the counterpart that looks ahead inside a clip.
    """
    clip_frames = _size("clip_rows", clip_rows) * _size("snippet_frames", snippet_frames)
    known = np.append(nothing, _vector("newest", scores)[clip_rows - 1 :: clip_rows])  # then one per complete clip
    return known[np.minimum(np.arange(1, _size("num_frames", num_frames) + 1) // clip_frames, len(known) - 1)]


def smooth_causal(scores: np.ndarray, *, half_life_frames: float) -> np.ndarray:
    """Return scores (T,) smoothed by the past only; a frame's weight halves every `half_life_frames`."""
    if not half_life_frames > 0:
        raise ValueError(f"half_life_frames must be positive, got {half_life_frames}")
    scores = _vector("smooth_causal", scores)
    keep = 0.5 ** (1 / half_life_frames)
    return lfilter([1 - keep], [1, -keep], scores, zi=[keep * scores[0]])[0]


def smooth_ahead(values: np.ndarray, width: int = 8) -> np.ndarray:
    """Return the mean of each value (n,) and the width - 1 after it, zeros past the end: the released `slide_smooth`.

    Not causal, kept to reproduce published numbers. `smooth_causal` is what a camera can have.
    """
    values = np.append(_vector("smooth_ahead", values), np.zeros(_size("width", width) - 1))
    return np.lib.stride_tricks.sliding_window_view(values, width).mean(1)


def smooth_blocks(values: np.ndarray, width: int = 8) -> np.ndarray:
    """Return the mean of each block of `width` values, repeated over it, (n,): the released `fixed_smooth`.

    A last block that is not full is filled with zeros and divided by `width` like all others, so that it comes out smaller
    than the values it has. Not causal, kept to reproduce published numbers.
    """
    values = _vector("smooth_blocks", values)
    sums = np.add.reduceat(values, np.arange(0, len(values), _size("width", width)))
    return np.repeat(sums / width, width)[: len(values)]


# Alarms. Row i covers [i step_s, (i + 1) step_s) and belongs to the events it overlaps, wherever its score becomes known:
# when the row is over, or, where a model scores clips of several rows, when the row's clip is over.


def alarms(scores: np.ndarray, threshold: float, *, step_s: float, merge_s: float = 10.0, clip_rows: int = 1) -> np.ndarray:
    """Return when alarms begin, in s: at the first score >= threshold of each alarm, known when its row's clip is over.

    An alarm goes on while scores stay at or above the threshold, and takes in a later one that begins less than `merge_s`
    after its last hot step.
    """
    hot = _hot(_vector("alarms", scores), threshold)
    return _known_s(len(hot), step_s, clip_rows)[_onsets(hot, _apart(step_s, merge_s))]


def false_alarms_per_hour(scores: Streams, *, threshold: float, step_s: float, merge_s: float = 10.0) -> float:
    """Return alarms per hour over normal streams {id: (n,)}. An alarm that never ends is one alarm."""
    streams = _streams(scores)
    count = sum(len(alarms(values, threshold, step_s=step_s, merge_s=merge_s)) for values in streams.values())
    return count / _hours(streams, step_s)


def threshold_for_budget(val_normal_scores: Streams, *, per_hour: float, step_s: float, merge_s: float = 10.0) -> float:
    """Return the lowest threshold that keeps normal streams of validation within `per_hour` false alarms, exactly.

    Candidates are all distinct scores and the next number above the largest. Alarms merge, so their number can fall again
    below a threshold that is too low: every candidate above the answer is within the budget too. A budget under one alarm
    in all the validation hours can only be met by none.
    """
    if not per_hour >= 0:
        raise ValueError(f"per_hour must be 0 or more, got {per_hour}")
    streams = _streams(val_normal_scores)
    levels, counts = _alarm_counts(list(streams.values()), _apart(step_s, merge_s))
    above = np.flatnonzero(counts / _hours(streams, step_s) > per_hour * (1 + 1e-9))
    candidates = np.append(levels, np.nextafter(levels[-1], np.inf))
    return float(candidates[above[-1] + 1 if len(above) else 0])


def detection_report(
    scores: Streams, events: Mapping[str, Spans], *, threshold: float, step_s: float,
    within_s: Sequence[float] = (2, 5, 10, 30), merge_s: float = 10.0, clip_rows: int = 1,
) -> dict[str, float]:  # fmt: skip
    """Return how soon events {id: [(start_s, end_s), ...]} are seen in streams {id: (n,)}, and false alarms beside it.

    An event is detected when a row that overlaps it scores >= threshold: a score in the row before it is a false alarm, one
    in its last row a detection. The delay runs from the event's start to the moment that score is known, which is the end of
    the row, or of its clip of `clip_rows` rows. So a perfect oracle of events of one row detects all, each a row late. A
    missed event has its whole length as delay in the median and the mean, and no detection counts more than that;
    `recall_within_2s` is the share of all events whose score is known by then. False alarms begin in no event and are counted
    per hour outside events. `hot_share` is the share of that time above the threshold: an alarm that never ends sees every
    event and counts once.

    Args:
        scores: a score per row (n,), each at its own row; not what `newest` moved to the frame that knows it.
        events: half-open spans in s within the stream; a normal stream has [].
        threshold: a row is hot at scores >= threshold; from `threshold_for_budget` on validation.
        step_s: length of a row in s.
        within_s: limits of the recalls.
        merge_s: a hot row less than this after an alarm's last hot row belongs to that alarm.
        clip_rows: rows that are scored together and known together. A last clip that is not full is known when it would be.

    Raises:
        ValueError: the names differ, there is no event, an event is empty or past the stream's end.
    """
    streams, apart = _streams(scores), _apart(step_s, merge_s)
    if odd := sorted(set(streams) ^ set(events)):
        raise ValueError(f"stream {odd[0]} has no {'events ([] if normal)' if odd[0] in streams else 'scores'}")
    delays, lengths, false, normal, loud = [], [], 0, 0, 0
    for name, values in streams.items():
        hot, known_s = _hot(values, threshold), _known_s(len(values), step_s, clip_rows)
        outside = np.ones(len(values), bool)
        for start_s, end_s in _spans(name, events[name]):
            rows = _rows(name, start_s, end_s, step_s, len(values))
            outside[rows] = False
            delays.append(np.append(known_s[rows][hot[rows]], np.inf)[0] - start_s)  # infinite where missed
            lengths.append(end_s - start_s)
        false += int(outside[_onsets(hot, apart)].sum())
        normal, loud = normal + int(outside.sum()), loud + int((outside & hot).sum())
    if not delays:
        raise ValueError(f"none of {len(streams)} streams has an event")
    delays, hours = np.array(delays), normal * step_s / HOUR_S
    return {
        "events": len(delays),
        "detected": int(np.isfinite(delays).sum()),
        **{f"recall_within_{limit:g}s": float((delays <= limit + SLACK * step_s).mean()) for limit in within_s},
        "median_delay_s": float(np.median(np.minimum(delays, lengths))),
        "mean_delay_s": float(np.minimum(delays, lengths).mean()),
        "false_alarms": false,
        "normal_hours": hours,
        "false_alarms_per_hour": false / hours if normal else math.nan,
        "hot_share": loud / normal if normal else math.nan,
    }


def delay_curve(
    scores: Streams, events: Mapping[str, Spans], val_normals: Streams, *, budgets: Sequence[float], step_s: float,
    within_s: Sequence[float] = (2, 5, 10, 30), merge_s: float = 10.0, clip_rows: int = 1,
) -> list[dict[str, float]]:  # fmt: skip
    """Return a `detection_report` for each budget (false alarms an hour), its threshold set on `val_normals`.

    Args:
        scores: a score per row (n,) of each test stream; events, step_s, within_s, merge_s, clip_rows as in `detection_report`.
        events: half-open spans in s, [] for a normal stream.
        val_normals: scores of normal streams of validation, by rows of the same length.
        budgets: false alarms an hour, one row of the answer each.
        step_s: length of a row in s.
        within_s: limits of the recalls.
        merge_s: window in which alarms are one.
        clip_rows: rows that become known together.
    """
    clock, rows = {"step_s": step_s, "merge_s": merge_s}, []
    for budget in budgets:
        threshold = threshold_for_budget(val_normals, per_hour=budget, **clock)
        report = detection_report(scores, events, threshold=threshold, within_s=within_s, clip_rows=clip_rows, **clock)
        rows.append({"budget_per_hour": float(budget), "threshold": threshold, **report})
    return rows


def latency(seconds: np.ndarray, *, warm_up: int = 10) -> dict[str, float]:
    """Return mean_ms, p50_ms, p95_ms and p99_ms of the calls' times (n,) in s, without the first `warm_up`."""
    steady_ms = 1000 * _vector("latency", seconds)[warm_up:]
    if not len(steady_ms):
        raise ValueError(f"{len(seconds)} calls leave none after a warm-up of {warm_up}")
    shares = {f"p{share}_ms": float(np.percentile(steady_ms, share)) for share in (50, 95, 99)}
    return {"mean_ms": float(steady_ms.mean())} | shares


def resident_bytes() -> int:
    """Return the memory this process holds now; where the system does not say, the most it has held."""
    held = Path("/proc/self/statm")  # sizes in pages: total, resident, ...
    if held.exists():
        return int(held.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource  # not on every system

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


def slope_per_hour(values: np.ndarray, times_s: np.ndarray) -> float:
    """Return the least-squares slope of values (n,) against times (n,) in s, per hour: bytes, or drift of a score."""
    values, times = _vector("slope_per_hour", values), _vector("slope_per_hour", times_s)
    if len(values) != len(times) or not np.ptp(times):
        raise ValueError(f"a slope needs two times and a value for each, got {len(values)} values, {len(times)} times")
    times = times - times.mean()
    return float(HOUR_S * (times @ (values - values.mean())) / (times @ times))


# Input, refused by name.


def _vector(name: str, values: object) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"{name}: one number per step is needed, got shape {values.shape}")
    if not np.isfinite(values).all():
        place = int(np.argmin(np.isfinite(values)))
        raise ValueError(f"{name}: {values[place]} at place {place}")
    return values


def _size(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name} must be 1 or more, got {value}")
    return value


def _streams(scores: Streams) -> dict[str, np.ndarray]:
    if not scores:
        raise ValueError("no streams to count alarms in")
    return {name: _vector(f"stream {name}", values) for name, values in scores.items()}


def _hours(streams: Streams, step_s: float) -> float:
    return sum(map(len, streams.values())) * step_s / HOUR_S


def _hot(values: np.ndarray, threshold: float) -> np.ndarray:
    if math.isnan(threshold):
        raise ValueError("threshold must be a number, got nan")
    return values >= threshold


def _spans(name: str, spans: Spans) -> Spans:
    if odd := [span for span in spans if not 0 <= span[0] < span[1]]:
        raise ValueError(f"stream {name}: an event starts at 0 s or later and ends after that, got {tuple(odd[0])}")
    return spans


# Alarms and places: steps are counted, so that no float decides what is merged or which row an event begins in.


def _known_s(rows: int, step_s: float, clip_rows: int) -> np.ndarray:
    """Return when the score of each row is known, (rows,) in s: at the end of its clip."""
    return step_s * ((np.arange(rows) // _size("clip_rows", clip_rows) + 1) * clip_rows)


def _rows(name: str, start_s: float, end_s: float, step_s: float, rows: int) -> slice:
    """Return the rows that overlap [start_s, end_s); a bound within SLACK of a row's edge is that edge."""
    first, stop = math.floor(start_s / step_s + SLACK), math.ceil(end_s / step_s - SLACK)
    if not first < rows or stop > rows + 1:  # the last row may be cut short, and the event with the video
        raise ValueError(f"stream {name}: event ({start_s:g}, {end_s:g}) s, its {rows} rows end at {rows * step_s:g} s")
    return slice(first, max(stop, first + 1))


def _apart(step_s: float, merge_s: float) -> int:
    """Return how many steps after an alarm's last hot step a hot step begins another: 2 or more, the next goes on."""
    if not step_s > 0 or not merge_s >= 0:
        raise ValueError(f"step_s must be positive and merge_s 0 or more, got {step_s} and {merge_s}")
    return max(2, math.ceil(merge_s / step_s - 1e-9))


def _onsets(hot: np.ndarray, apart: int) -> np.ndarray:
    steps = np.flatnonzero(hot)
    return steps[np.diff(steps, prepend=-apart) >= apart]


def _alarm_counts(streams: Sequence[np.ndarray], apart: int) -> tuple[np.ndarray, np.ndarray]:
    """Return all distinct scores, rising, (L,) and the number of alarms in all streams with each as threshold (L,).

    One pass: all steps are hot, then they go cold from the lowest up; a step going cold changes only the gaps beside it.
    """
    values = np.concatenate(streams)
    sizes = [len(stream) for stream in streams]
    step = np.arange(len(values)) + np.repeat(np.arange(len(sizes)) * apart, sizes)  # streams are apart
    step = [*step.tolist(), int(step[-1]) + apart, -apart]  # and a fence at either end, the first found at -1
    before, after = list(range(-1, len(values))), list(range(1, len(values) + 2))
    order, alarms_now, counts = np.argsort(values, kind="stable"), len(sizes), []
    for place in order.tolist():
        counts.append(alarms_now)
        left, right = before[place], after[place]
        alarms_now += (step[right] - step[left] >= apart) - (step[right] - step[place] >= apart)
        alarms_now -= step[place] - step[left] >= apart
        after[left], before[right] = right, left
    levels, first = np.unique(values[order], return_index=True)
    return levels, np.array(counts)[first]
