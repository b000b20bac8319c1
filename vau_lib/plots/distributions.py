"""What instruction data are made of, in one figure: how many, how long, how wordy (after the paper's Fig. 3 a-c)."""

import numpy as np
import pandas as pd

from vau_lib import plots

COLOURS = dict(zip(("clip", "event", "video"), plots.SERIES, strict=False))


def statistics(table: pd.DataFrame, *, title: str = ""):
    """Draw rows of `hivau.statistics`: rows per level and task, seconds and words per level; return the Figure."""
    figure, (left, middle, right) = plots._subplots(1, 3, figsize=(12, 3.6))
    sizes = table.groupby(["level", "task"], sort=False).size().sort_index(level=0, sort_remaining=False)
    places = np.arange(len(sizes))[::-1]
    left.barh(places, sizes, color=[COLOURS[level] for level, _ in sizes.index], height=0.7)
    for place, size in zip(places, sizes, strict=True):
        left.annotate(f"{size:,}", (size, place), (4, 0), textcoords="offset points", va="center", fontsize=9)
    left.set(yticks=places, yticklabels=[f"{level} {task}" for level, task in sizes.index], xlabel="rows")
    left.set_xlim(0, sizes.max() * 1.18)
    # a segment has several rows; seconds are counted once per judgement or caption, which each segment has one of
    timed = table[table["task"].isin(["caption", "judgement"]) & table["seconds"].notna()]
    _layers(middle, timed, "seconds", "length of the segment (s)", "segments")
    _layers(right, table, "words", "words of the answer", "rows")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=12)
    return figure


def _layers(axis, table: pd.DataFrame, column: str, xlabel: str, ylabel: str) -> None:
    axis.set(xlabel=xlabel, ylabel=ylabel)
    if table.empty:
        axis.text(0.5, 0.5, "not known", transform=axis.transAxes, ha="center", color=plots.QUIET)
        return
    values = table[column].clip(upper=table[column].quantile(0.998))  # one video of an hour must not squeeze the rest
    wide = column == "seconds" and values.max() > 20 * values.median()
    low = max(values.min(), 1e-2)
    edges = np.geomspace(low, max(values.max(), low * 1.1), 26) if wide else np.linspace(0, values.max() * 1.02, 26)
    for level in (name for name in COLOURS if (table["level"] == name).any()):
        part = values[table["level"] == level]
        label = f"{level} (median {table[column][part.index].median():.3g})"
        axis.hist(part, bins=edges, histtype="step", linewidth=1.8, color=COLOURS[level], label=label)
    if wide:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
    axis.set_ylim(0, axis.get_ylim()[1] * 1.3)  # room for the legend
    axis.legend(fontsize=8)
