"""What a model at the edge reads and weighs: which tokens survive, what smaller costs, how rows of a benchmark compare."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from vau_lib import plots

DIMMED = 0.25  # brightness left of what was dropped


def kept_tokens(
    frames: np.ndarray, kept: Mapping[str, np.ndarray], *, truth: np.ndarray | None = None,
    captions: Sequence[str] | None = None, title: str = "",
):  # fmt: skip
    """Show frames uint8 (N, H, W, 3), a row per name of `kept`, bool (N, h, w): dropped cells dark; return the Figure.

    Cells of `truth` (N, h, w) get a mark: blue where kept, vermilion where lost.
    """
    count, (tall, wide) = len(frames), frames.shape[1:3]
    size = (2.1 * count, (2.1 * tall / wide + 0.12) * len(kept) + 0.6)
    figure, axes = plots._subplots(len(kept), count, figsize=size, squeeze=False)
    for row, (name, mask) in zip(axes, kept.items(), strict=True):
        cell_tall, cell_wide = tall / mask.shape[1], wide / mask.shape[2]
        for number, axis in enumerate(row):
            rows = (np.arange(tall) / cell_tall).astype(int).clip(0, mask.shape[1] - 1)
            columns = (np.arange(wide) / cell_wide).astype(int).clip(0, mask.shape[2] - 1)
            shown = mask[number][rows][:, columns, None]
            axis.imshow(np.where(shown, frames[number], frames[number] * DIMMED).astype(np.uint8))
            axis.set(xticks=[], yticks=[])
            if truth is not None:
                _mark(axis, truth[number], mask[number], cell_tall, cell_wide)
        row[0].set_ylabel(name, fontsize=9)
    for axis, caption in zip(axes[-1], captions or [], strict=False):
        axis.set_xlabel(caption, fontsize=8)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=12)
    return figure


def _mark(axis, truth: np.ndarray, mask: np.ndarray, tall: float, wide: float) -> None:
    for chosen, colour in ((truth & mask, plots.NORMAL), (truth & ~mask, plots.ANOMALOUS)):
        y, x = np.nonzero(chosen)
        axis.plot((x + 0.5) * wide, (y + 0.5) * tall, ls="", marker="s", ms=3.5, color=colour, mec="white", mew=0.4)


def grouped(
    table: pd.DataFrame, *, row: str, columns: Sequence[str], highlight: str = "", title: str = "", unit: str = ""
):
    """Draw the numbers in `columns` side by side, a bar per value of `row` in each group; return the Figure."""
    figure, axis = plots._subplots(figsize=(max(8.0, 0.3 * len(columns) * len(table)), 3.8))
    others = iter((plots.QUIET, "#D6DEE3", plots.NORMAL, *plots.SERIES[2:]))
    width = 0.8 / len(table)
    for number, (_, line) in enumerate(table.iterrows()):
        colour = plots.ANOMALOUS if line[row] == highlight else next(others)
        places = np.arange(len(columns)) + (number - (len(table) - 1) / 2) * width
        values = line[list(columns)].astype(float)
        axis.bar(places, values.fillna(0), width * 0.92, color=colour, label=line[row])
        for place, value in zip(places, values, strict=True):
            axis.annotate("-" if np.isnan(value) else f"{value:.0f}", (place, np.nan_to_num(value)), (0, 2),
                          textcoords="offset points", ha="center", fontsize=7.5)  # fmt: skip
    axis.set(
        xticks=range(len(columns)), xticklabels=[name.replace("_", " ") for name in columns], ylabel=unit, title=title
    )
    axis.legend(fontsize=8, ncols=2, loc="upper left", bbox_to_anchor=(0, -0.1))
    return figure


def frontier(
    table: pd.DataFrame, *, x: str, before: str, after: str, hue: str, floor: float | None = None, title: str = "",
    xlabel: str = "", ylabel: str = "",
):  # fmt: skip
    """Draw accuracy over size, hollow `before` and full `after` healing joined by a line, a colour per `hue`; return the Figure.

    `floor` is what a guess is worth, a dashed line.
    """
    figure, axis = plots._subplots(figsize=(8.5, 4.2))
    for colour, (name, part) in zip(
        (plots.INK, plots.NORMAL, plots.ANOMALOUS, *plots.SERIES[2:5]), table.groupby(hue, sort=False), strict=False
    ):
        part = part.sort_values(x)
        axis.vlines(part[x], part[before], part[after], color=colour, lw=0.8, alpha=0.6)
        axis.plot(part[x], part[before], ls="", marker="o", mfc="white", mec=colour, ms=6)
        axis.plot(part[x], part[after], color=colour, marker="o", ms=6, lw=1.2, label=name)
    if floor is not None:
        axis.axhline(floor, color=plots.QUIET, ls="--", lw=1.2)
        axis.annotate(
            "a guess", (axis.get_xlim()[1], floor), (-4, 3), textcoords="offset points", ha="right", color=plots.QUIET
        )
    axis.set(xlabel=xlabel or x.replace("_", " "), ylabel=ylabel or after, title=title, ylim=(None, 1.02))
    axis.legend(fontsize=9, title="hollow: cut, full: healed", title_fontsize=8)
    return figure


def covered(table: pd.DataFrame, *, columns: Mapping[str, str], title: str = ""):
    """Draw shares in [0, 1] of `columns` (name -> label) side by side, a row per `pair`; return the Figure."""
    figure, axes = plots._subplots(1, len(columns), figsize=(9, 0.24 * len(table) + 0.9), sharey=True)
    for axis, (name, label) in zip(np.atleast_1d(axes), columns.items(), strict=True):
        full = table[name] >= 1
        axis.barh(table["pair"], table[name], color=np.where(full, plots.NORMAL, plots.ANOMALOUS), height=0.7)
        axis.set(xlim=(0, 1.02), title=f"{label}: {full.mean():.0%} complete")
        axis.tick_params(axis="y", labelsize=8)
        axis.invert_yaxis()
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=12)
    return figure


def tracks(frame: np.ndarray, boxes: np.ndarray, centres: np.ndarray, kinds: Sequence[str], *, title: str = ""):
    """Draw boxes (N, 4) on a frame (H, W, 3) and where each actor's centre was, (T, N, 2), NaN where unseen; the Figure."""
    tall, wide = frame.shape[:2]
    figure, axis = plots._subplots(figsize=(7.5, 7.5 * tall / wide))
    axis.imshow(frame)
    axis.set_axis_off()
    for number, (box, kind) in enumerate(zip(boxes, kinds, strict=True)):
        colour = plots.SERIES[number % 5]
        axis.plot(*centres[:, number].T, color=colour, lw=1.4, alpha=0.9)
        if not np.isnan(box[0]):
            axis.add_patch(plots.plt.Rectangle(box[:2] - 0.5, *(box[2:] - box[:2]), fill=False, ec=colour, lw=1.6))
            axis.annotate(f"{number + 1} {kind}", box[:2], (0, 2), textcoords="offset points", fontsize=7, color=colour)
    axis.set_title(title)
    return figure
