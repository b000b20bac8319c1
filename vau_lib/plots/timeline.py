"""Scores over time: event spans as amber bands, frames above, sampled frames and key clips below."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vau_lib.data import records, video
from vau_lib.data.records import Span, VideoRecord
from vau_lib.plots.style import ANOMALOUS, INK, NORMAL, QUIET, SERIES, TRUTH, empty, subplots


def scores(
    scores: Mapping[str, np.ndarray],
    *,
    fps: float,
    events: Sequence[Span] = (),
    frames: np.ndarray | None = None,
    shown_s: Sequence[float] = (),
    title: str = "",
    ylabel: str = "anomaly score",
    threshold: float | None = None,
) -> Figure:
    """Draw per-frame score curves (name -> (T,)) over time with the events' bands, under a filmstrip of `frames`.

    `shown_s` are the seconds the frames were taken at; a tick ties each picture to its moment.
    """
    strip = frames is not None and len(frames) > 0
    figure = empty(figsize=(11, 4.6 if strip else 3.0))
    grid = figure.add_gridspec(2 if strip else 1, len(frames) if strip else 1, height_ratios=[1, 2.1] if strip else [1])
    axis = figure.add_subplot(grid[-1, :])
    for event in events:
        axis.axvspan(event.start_s, event.end_s, color=TRUTH, alpha=0.35, lw=0)
        axis.text(
            (event.start_s + event.end_s) / 2, 1.01, event.label or "event", transform=axis.get_xaxis_transform(),
            ha="center", va="bottom", fontsize=9, color="#8A6100",
        )  # fmt: skip
    longest = max(len(values) for values in scores.values()) / fps
    for colour, (name, values) in zip((ANOMALOUS, NORMAL, *SERIES[2:]), scores.items(), strict=False):
        axis.plot(np.arange(len(values)) / fps, values, color=colour, label=name)
    if threshold is not None:
        axis.axhline(threshold, color=QUIET, ls="--", lw=1)
        axis.text(longest, threshold, " threshold", va="bottom", ha="right", fontsize=8, color=QUIET)
    if strip:
        for place, (frame, moment) in enumerate(zip(frames, shown_s, strict=True)):
            picture = _picture(figure.add_subplot(grid[0, place]), frame, moment, events)
            picture.set_title(f"{moment:.0f} s", fontsize=8, fontweight="normal", loc="center", pad=2)
            axis.axvline(moment, ymax=0.03, color=INK, lw=1)
    axis.set(xlim=(0, longest), xlabel="time (s)", ylabel=ylabel)
    if len(scores) > 1:
        axis.legend(loc="upper left", ncols=len(scores), fontsize=9)
    figure.suptitle(title)
    return figure


def _picture(axis, frame: np.ndarray, moment: float, events: Sequence[Span]):
    """Draw a frame of a filmstrip, in an amber frame when its moment (seconds) lies in an event; return the axis."""
    axis.imshow(frame, interpolation="lanczos")
    inside = any(event.start_s <= moment < event.end_s for event in events)
    for spine in axis.spines.values():
        spine.set(visible=True, color=TRUTH if inside else QUIET, linewidth=3 if inside else 0.8)
    axis.set(xticks=[], yticks=[])
    return axis


class Panel(NamedTuple):
    """One video of a figure of several: its title, frames and their seconds, per-frame scores, rate, events."""

    title: str
    frames: np.ndarray
    shown_s: np.ndarray
    scores: Mapping[str, np.ndarray]
    fps: float
    events: Sequence[Span]


def panel(record: VideoRecord, root: str | Path, scores: Mapping[str, np.ndarray], *, count: int = 5, title: str = "") -> Panel:
    """Return the panel of a record whose video is below `root`: `count` frames evenly spread, scores name -> (T,) per frame."""
    path = records.locate(record, Path(root))
    index = video.sample_index(video.probe(path).num_frames, count)
    frames, shown_s = video.read_frames(path, index), video.frame_times(path)[index]
    return Panel(title or record.id, frames, shown_s, scores, record.fps, record.events)


def story(
    found: Sequence[VideoRecord], saved: Mapping[str, Mapping], root: str | Path, *, snippet_frames: int
) -> tuple[list[Panel], list[Panel]]:
    """Return panels of the videos that every notebook shows (`records.story`), and of the worst miss and the worst false alarm.

    The worst are the anomalous test video with the lowest video score and the normal one with the highest. `saved` is the
    content of a training's scores.json, {id: {"video": score, "scores": (T,) of its snippets}}. Videos that are not there are
    left out.
    """
    there = [r for r in found if r.split == "test" and r.id in saved and records.locate(r, Path(root)).exists()]

    def of(record: VideoRecord, title: str = "") -> Panel:
        values = np.repeat(saved[record.id]["scores"], snippet_frames)
        count = record.num_frames or len(values)
        curve = np.pad(values[:count], (0, max(0, count - len(values))), mode="edge")
        return panel(record, root, {"score": curve}, title=title)

    worst = []
    for label, choose, title in ((1, min, "missed"), (0, max, "false alarm")):
        if part := [r for r in there if r.label == label]:
            chosen = choose(part, key=lambda r: saved[r.id]["video"])
            worst.append(of(chosen, f"{title}: {chosen.id}"))
    return [of(r) for r in records.story(there)], worst


def panels(shown: Sequence[Panel], *, columns: int = 2, title: str = "") -> Figure:
    """Draw several videos, each a filmstrip over its score curves with the events' bands, on one scale of scores."""
    rows = -(-len(shown) // columns)
    figure = empty(figsize=(6.2 * columns, 2.9 * rows + 0.4))
    grid = figure.add_gridspec(rows, columns)
    highest = max((float(np.max(values)) for one in shown for values in one.scores.values()), default=1.0)
    for place, one in enumerate(shown):
        cell = grid[place // columns, place % columns].subgridspec(2, len(one.frames), height_ratios=[1, 1.5])
        axis = figure.add_subplot(cell[1, :])
        for event in one.events:
            axis.axvspan(event.start_s, event.end_s, color=TRUTH, alpha=0.35, lw=0)
        for colour, (name, values) in zip((ANOMALOUS, NORMAL, *SERIES[2:]), one.scores.items(), strict=False):
            axis.plot(np.arange(len(values)) / one.fps, values, color=colour, label=name)
        longest = max(len(values) for values in one.scores.values()) / one.fps
        limits = -0.03 * highest, max(1e-9, 1.08 * highest)  # a zero is seen
        axis.set(xlim=(0, longest), ylim=limits, xlabel="time (s)", ylabel="score")
        if len(one.scores) > 1 and not place:
            axis.legend(loc="upper left", ncols=len(one.scores), fontsize=8)
        for number, (frame, moment) in enumerate(zip(one.frames, one.shown_s, strict=True)):
            picture = _picture(figure.add_subplot(cell[0, number]), frame, moment, one.events)
            label = f"{one.title}\n{moment:.1f} s" if not number else f"{moment:.1f} s"  # the name above all the seconds
            picture.set_title(label, fontsize=8, fontweight="normal", loc="left" if not number else "center", pad=2)
    figure.suptitle(title)
    return figure


def sampled_frames(
    scores: np.ndarray,
    picks: Mapping[str, np.ndarray],
    *,
    seconds_per_row: float,
    events: Sequence[tuple[float, float]] = (),
    mass: np.ndarray | None = None,
    title: str = "",
) -> Figure:
    """Draw scores (T,), under them the cumulated `mass` (T,), under that which rows each sampler picked (name -> (N,)).

    Picks inside `events`, spans in rows, are coloured and counted. The first sampler's picks are carried up to both curves.
    """
    heights = [2.0, 1.5, 0.35 + 0.3 * len(picks)] if mass is not None else [2.0, 0.35 + 0.3 * len(picks)]
    figure, axes = subplots(len(heights), 1, figsize=(11, 1.5 * sum(heights)), sharex=True, height_ratios=heights)
    for axis in axes:
        for start, end in events:
            axis.axvspan(start * seconds_per_row, end * seconds_per_row, color=TRUTH, alpha=0.35, lw=0)
    axes[0].plot(np.arange(len(scores)) * seconds_per_row, scores, color=ANOMALOUS, lw=1.2)
    axes[0].set(ylim=(-0.02, 1.05), ylabel="anomaly score")
    first = next(iter(picks.values()))
    if mass is not None:
        total = np.cumsum(mass)
        axes[1].plot(np.arange(1, len(total) + 1) * seconds_per_row, total, color=INK, lw=1.4)
        for row in first:
            level = total[row] - mass[row] / 2
            axes[1].plot([0, (row + 0.5) * seconds_per_row], [level, level], color=QUIET, lw=0.7)
            axes[1].plot([(row + 0.5) * seconds_per_row] * 2, [0, level], color=QUIET, lw=0.7)
        axes[1].set(ylim=(0, total[-1]), ylabel="cumulated mass")
    for line, rows in enumerate(picks.values()):
        hit = np.any([(rows >= start) & (rows < end) for start, end in events], axis=0) if len(events) else rows < 0
        colours = [ANOMALOUS if inside else QUIET for inside in hit]
        axes[-1].scatter(rows * seconds_per_row, np.full(len(rows), -line), c=colours, marker="|", s=130, lw=2)
        axes[-1].annotate(
            f"{hit.sum()} of {len(rows)}", (1, -line), (6, 0), xycoords=("axes fraction", "data"),
            textcoords="offset points", va="center", fontsize=9,
        )  # fmt: skip
    axes[0].vlines(first * seconds_per_row, 0, scores[first], color=ANOMALOUS, lw=0.8, alpha=0.6)
    axes[-1].set(ylim=(-len(picks) + 0.4, 0.6), xlim=(0, len(scores) * seconds_per_row), xlabel="time (s)")
    axes[-1].set(yticks=-np.arange(len(picks)), yticklabels=list(picks))
    figure.suptitle(title)
    return figure


def key_clips(trace: pd.DataFrame, *, title: str = "") -> Figure:
    """Draw a trace (scene, rule, clip, ratio, kept): bars over the bar are news, dots below mark what each rule keeps."""
    scenes, rules = trace["scene"].unique(), trace["rule"].unique()
    figure, axes = subplots(1, len(scenes), figsize=(4.1 * len(scenes), 3.4), sharey=True, squeeze=False)
    for axis, scene in zip(axes.flat, scenes, strict=True):
        part = trace[trace["scene"] == scene]
        first = part[part["rule"] == rules[0]]
        colours = np.where(first["ratio"] > 1, ANOMALOUS, "#B8C4CE")
        axis.bar(first["clip"], first["ratio"], color=colours, width=0.85)
        axis.axhline(1, color=INK, ls="--", lw=1)
        for place, (rule, marks) in enumerate(part.groupby("rule", sort=False)):
            kept = marks.loc[marks["kept"], "clip"]
            axis.plot(kept, np.full(len(kept), -0.5 - 0.7 * place), "o", color=SERIES[place], ms=5, label=rule, clip_on=False)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(xlabel="clip", title=f"{scene}: keeps {_shares(part)}")
        axis.title.set_fontsize(10)
    axes.flat[0].set(ylabel="distance / bar", yticks=[0, 1, 2, 4, 6, 8, 10], ylim=(-1.6, 10.2))
    axes.flat[-1].legend(fontsize=8, loc="upper right", title="dots: kept", title_fontsize=8)
    figure.suptitle(title)
    return figure


def _shares(part: pd.DataFrame) -> str:
    return ", ".join(f"{kept:.0%}" for kept in part.groupby("rule", sort=False)["kept"].mean())
