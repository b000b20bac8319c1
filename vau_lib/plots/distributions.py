"""Distributions: scores by class, seeds and folds, and what instruction data hold (after Holmes-VAU, Fig. 3 a-c)."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from vau_lib.plots import style
from vau_lib.plots.style import ANOMALOUS, INK, NORMAL, QUIET, SERIES, subplots


def histogram(
    scores: np.ndarray, labels: np.ndarray, *, title: str = "", xlabel: str = "score", threshold: float | None = None
) -> Figure:
    """Draw how scores (N,) of normal and anomalous videos (labels (N,)) are spread."""
    figure, axis = subplots(figsize=(6.5, 3.2))
    bins = np.histogram_bin_edges(scores, bins=24)
    for name, value, colour in (("normal", 0, NORMAL), ("anomalous", 1, ANOMALOUS)):
        axis.hist(scores[labels == value], bins=bins, color=colour, alpha=0.6, label=f"{name} ({(labels == value).sum()})")
    if threshold is not None:
        axis.axvline(threshold, color=INK, ls="--", lw=1, label="threshold (validation)")
    axis.set(xlabel=xlabel, ylabel="videos")
    figure.suptitle(title)
    axis.legend(fontsize=9)
    return figure


def runs(
    table: pd.DataFrame, *, x: str, y: str, hue: str | None = None, title: str = "", xlabel: str = "", guide: float | None = 0.5
) -> Figure:
    """Draw every run as a point and their mean as a bar mark: how far seeds and folds carry a number; `guide` is chance."""
    figure, axis = subplots(figsize=(8, 0.9 + 0.5 * table[y].nunique()))
    palette = dict(zip(table[hue].unique(), SERIES, strict=False)) if hue else None
    colour = None if hue else NORMAL
    sns.stripplot(table, x=x, y=y, hue=hue, palette=palette, color=colour, alpha=0.55, jitter=0.18, size=6, ax=axis)
    for place, (_, part) in enumerate(table.groupby(y, sort=False)):
        axis.plot([part[x].mean()] * 2, [place - 0.3, place + 0.3], color=INK, lw=2.5)
    if guide is not None:
        axis.axvline(guide, color=QUIET, ls="--", lw=1)
    axis.set(xlabel=xlabel or x.replace("_", " "), ylabel="")
    figure.suptitle(title)
    return figure


LEVEL_COLOURS = dict(zip(("clip", "event", "video"), style.SERIES, strict=False))


def instruction_statistics(table: pd.DataFrame, *, title: str = ""):
    """Draw rows of `hivau.statistics`: rows per level and task, seconds and words per level; return the Figure."""
    figure, (left, middle, right) = style.subplots(1, 3, figsize=(12, 3.6))
    sizes = table.groupby(["level", "task"], sort=False).size().sort_index(level=0, sort_remaining=False)
    places = np.arange(len(sizes))[::-1]
    left.barh(places, sizes, color=[LEVEL_COLOURS[level] for level, _ in sizes.index], height=0.7)
    for place, size in zip(places, sizes, strict=True):
        left.annotate(f"{size:,}", (size, place), (4, 0), textcoords="offset points", va="center", fontsize=9)
    left.set(yticks=places, yticklabels=[f"{level} {task}" for level, task in sizes.index], xlabel="rows")
    left.set_xlim(0, sizes.max() * 1.18)
    # a segment has several rows; seconds are counted once per judgement or caption, which each segment has one of
    timed = table[table["task"].isin(["caption", "judgement"]) & table["seconds"].notna()]
    _layers(middle, timed, "seconds", "length of the segment (s)", "segments")
    _layers(right, table, "words", "words of the answer", "rows")
    figure.suptitle(title)
    return figure


def _layers(axis, table: pd.DataFrame, column: str, xlabel: str, ylabel: str) -> None:
    axis.set(xlabel=xlabel, ylabel=ylabel)
    if table.empty:
        axis.text(0.5, 0.5, "not known", transform=axis.transAxes, ha="center", color=style.QUIET)
        return
    values = table[column].clip(upper=table[column].quantile(0.998))  # one video of an hour must not squeeze the rest
    wide = column == "seconds" and values.max() > 20 * values.median()
    low = max(values.min(), 1e-2)
    edges = np.geomspace(low, max(values.max(), low * 1.1), 26) if wide else np.linspace(0, values.max() * 1.02, 26)
    for level in (name for name in LEVEL_COLOURS if (table["level"] == name).any()):
        part = values[table["level"] == level]
        label = f"{level} (median {table[column][part.index].median():.3g})"
        axis.hist(part, bins=edges, histtype="step", linewidth=1.8, color=LEVEL_COLOURS[level], label=label)
    if wide:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
    axis.set_ylim(0, axis.get_ylim()[1] * 1.3)  # room for the legend
    axis.legend(fontsize=8)
