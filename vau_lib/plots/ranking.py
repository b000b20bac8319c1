"""Rankings as bars with intervals: results tables, benchmark rows, coverage, accuracy before and after training."""

from collections.abc import Mapping, Sequence
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vau_lib.plots import style
from vau_lib.plots.style import ANOMALOUS, INK, METHOD_COLOURS, QUIET, subplots


def bars(
    table: pd.DataFrame, *, x: str, y: str, low: str | None = None, high: str | None = None,
    highlight: Sequence[str] = (), chance: float | None = None, guess: str = "chance", title: str = "", unit: str = "",
    log: bool = False,
) -> Figure:  # fmt: skip
    """Draw one horizontal bar per row: text column `y`, value column `x`, interval columns `low` and `high`.

    Rows named in `highlight` are ours and coloured; `chance` draws the level of guessing, named `guess`; `log` makes the
    axis logarithmic.
    """
    names = [fill(str(name), 46) for name in table[y]]
    lines = [name.count("\n") + 1 for name in names]
    figure, axis = subplots(figsize=(8.5, 0.9 + 0.36 * len(table) + 0.16 * sum(n - 1 for n in lines)))
    colours = [ANOMALOUS if name in highlight else "#B8C4CE" for name in table[y]]
    heights = np.array(lines) * 0.31 + 0.69  # a name of two lines takes more room
    places = np.cumsum(heights[::-1])[::-1] - heights / 2
    axis.barh(places, table[x], color=colours, height=0.7)
    if low and high:
        middle, half = (table[low] + table[high]) / 2, (table[high] - table[low]) / 2  # need not hold the value
        axis.errorbar(middle, places, xerr=half, fmt="none", ecolor=INK, elinewidth=1.1, capsize=2)
    reach = table[[x, high]].max(axis=1) if high else table[x]
    for place, value, end in zip(places, table[x], reach, strict=True):
        written = f"{value:.3f}" if value < 10 else f"{value:,.0f}"
        axis.annotate(written, (end, place), (5, 0), textcoords="offset points", va="center", fontsize=9)
    if chance is not None:
        axis.axvline(chance, color=QUIET, ls="--", lw=1)
        axis.text(chance, places[0] + 0.55, f" {guess}", fontsize=8, color=QUIET, va="bottom")
    axis.set(yticks=places, xlabel=unit or x.replace("_", " ").replace("auc", "AUC"))
    axis.set_yticklabels(names, linespacing=0.9)
    figure.suptitle(title)
    ends = (table[x].min() / 3, reach.max() * 4) if log else (0, max(reach.max() * 1.12, chance or 0))
    axis.set(xscale="log" if log else "linear", xlim=ends)
    return figure


def grouped(table: pd.DataFrame, *, row: str, columns: Sequence[str], highlight: str = "", title: str = "", unit: str = ""):
    """Draw the numbers in `columns` side by side, a bar per value of `row` in each group; return the Figure."""
    figure, axis = style.subplots(figsize=(max(8.0, 0.3 * len(columns) * len(table)), 3.8))
    others = iter((style.QUIET, "#D6DEE3", style.NORMAL, *style.SERIES[2:]))
    width = 0.8 / len(table)
    for number, (_, line) in enumerate(table.iterrows()):
        colour = style.ANOMALOUS if line[row] == highlight else next(others)
        places = np.arange(len(columns)) + (number - (len(table) - 1) / 2) * width
        values = line[list(columns)].astype(float)
        axis.bar(places, values.fillna(0), width * 0.92, color=colour, label=line[row])
        for place, value in zip(places, values, strict=True):
            axis.annotate("-" if np.isnan(value) else f"{value:.0f}", (place, np.nan_to_num(value)), (0, 2),
                          textcoords="offset points", ha="center", fontsize=7.5)  # fmt: skip
    axis.set(xticks=range(len(columns)), xticklabels=[name.replace("_", " ") for name in columns], ylabel=unit)
    figure.suptitle(title)
    axis.legend(fontsize=8, ncols=2, loc="upper left", bbox_to_anchor=(0, -0.1))
    return figure


def covered(table: pd.DataFrame, *, columns: Mapping[str, str], title: str = ""):
    """Draw shares in [0, 1] of `columns` (name -> label) side by side, a row per `pair`; return the Figure."""
    figure, axes = style.subplots(1, len(columns), figsize=(9, 0.24 * len(table) + 0.9), sharey=True)
    for axis, (name, label) in zip(np.atleast_1d(axes), columns.items(), strict=True):
        full = table[name] >= 1
        axis.barh(table["pair"], table[name], color=np.where(full, style.NORMAL, style.ANOMALOUS), height=0.7)
        axis.set(xlim=(0, 1.02), title=f"{label}: {full.mean():.0%} complete")
        axis.tick_params(axis="y", labelsize=8)
        axis.invert_yaxis()
    figure.suptitle(title)
    return figure


def before_after(table: pd.DataFrame, *, order: Sequence[str], guess: dict[str, float], title: str = ""):
    """Draw accuracy (low, high) of each `question`: bars per `method` in `order`; `guess` is marked.

    Questions that nobody answered are left out; an interval need not hold its bar.
    """
    figure, axis = style.subplots(figsize=(10, 3.8))
    answered = table[table["accuracy"].notna()]
    questions, width = list(answered["question"].unique()), 0.8 / len(order)
    for number, name in enumerate(order):
        part = answered[answered["method"] == name].set_index("question").reindex(questions)
        places = np.arange(len(questions)) + (number - (len(order) - 1) / 2) * width
        axis.bar(places, part["accuracy"], width * 0.92, color=METHOD_COLOURS.get(name, style.INK), label=name)
        for place in places[(part["accuracy"] < 0.005).to_numpy()]:  # a bar of no height is an answer too
            axis.annotate("0", (place, 0), (0, 2), textcoords="offset points", ha="center", fontsize=8)
        middle, half = (part["low"] + part["high"]) / 2, (part["high"] - part["low"]) / 2
        axis.errorbar(places, middle, yerr=half, fmt="none", elinewidth=1, ecolor=style.INK)
    for place, name in enumerate(questions):
        if name in guess:
            axis.plot([place - 0.42, place + 0.42], [guess[name]] * 2, color=style.INK, ls="--", lw=1)
    axis.set(xticks=range(len(questions)), ylim=(0, 1.05), ylabel="answers right")
    axis.set_xticklabels([name.replace(", ", ",\n") for name in questions], fontsize=9)
    axis.legend(fontsize=9, ncols=len(order), loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
    axis.text(1, 1.03, "dashed: a guess", transform=axis.transAxes, fontsize=8, ha="right", color=style.QUIET)
    figure.suptitle(title)
    return figure
