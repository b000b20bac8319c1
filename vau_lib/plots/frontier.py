"""Accuracy against model size, before and after distillation."""

import pandas as pd

from vau_lib.plots import style


def size_and_accuracy(
    table: pd.DataFrame, *, x: str, before: str, after: str, hue: str, floor: float | None = None, title: str = "",
    xlabel: str = "", ylabel: str = "",
):  # fmt: skip
    """Draw accuracy over size, hollow `before` and full `after` distillation joined by a line, a colour per `hue`.

    `floor` is what a guess is worth, a dashed line.
    """
    figure, axis = style.subplots(figsize=(8.5, 4.2))
    for colour, (name, part) in zip(
        (style.INK, style.NORMAL, style.ANOMALOUS, *style.SERIES[2:5]), table.groupby(hue, sort=False), strict=False
    ):
        part = part.sort_values(x)
        axis.vlines(part[x], part[before], part[after], color=colour, lw=0.8, alpha=0.6)
        axis.plot(part[x], part[before], ls="", marker="o", mfc="white", mec=colour, ms=6)
        axis.plot(part[x], part[after], color=colour, marker="o", ms=6, lw=1.2, label=name)
    if floor is not None:
        axis.axhline(floor, color=style.QUIET, ls="--", lw=1.2)
        axis.annotate("a guess", (axis.get_xlim()[1], floor), (-4, 3), textcoords="offset points", ha="right", color=style.QUIET)
    axis.set(xlabel=xlabel or x.replace("_", " "), ylabel=ylabel or after, ylim=(None, 1.02))
    figure.suptitle(title)
    axis.legend(fontsize=9, title="hollow: pruned, full: distilled", title_fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
