"""Curves: training, ROC and precision-recall, one quantity over another, rewards by step."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vau_lib.plots import style
from vau_lib.plots.style import ANOMALOUS, INK, METHOD_COLOURS, NORMAL, QUIET, SERIES, TRUTH, subplots


def by_number(table: pd.DataFrame, *, x: str, columns: Sequence[str], hue: str, highlight: str = "", title: str = "") -> Figure:
    """Draw each of `columns` over the number in column `x` in a panel of its own, a line per value of `hue`.

    Columns of zeros are left out: a panel of them says nothing.
    """
    columns = [column for column in columns if table[column].any()] or columns[:1]
    figure, axes = subplots(1, len(columns), figsize=(3.6 * len(columns) + 1.2, 3.4), squeeze=False)
    names = list(table[hue].unique())
    others = iter((QUIET, INK, NORMAL, *SERIES[2:]))
    colours = {name: ANOMALOUS if name == highlight else next(others) for name in names}
    for axis, column in zip(axes.flat, columns, strict=True):
        for name in names:
            part = table[table[hue] == name].sort_values(x)
            axis.plot(part[x], part[column], color=colours[name], marker="o", ms=4, label=name)
        axis.set(xlabel=x.replace("_", " "), ylabel=column.replace("_", " "), xticks=sorted(table[x].unique()))
        axis.set_ylim(0, None)
    axes.flat[-1].legend(fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))  # beside: within it would hide lines
    figure.suptitle(title)
    return figure


def training(table: pd.DataFrame, *, title: str = "", chosen: int | None = None) -> Figure:
    """Draw loss, video AUC and, where it was measured, video AP (PR-AUC) by epoch, train beside validation.

    `chosen` marks the epoch kept (by validation).
    """
    names = {"loss": "loss", "video_auc": "video AUC", "video_ap": "video AP (PR-AUC)"}
    kinds = [kind for kind in names if kind != "video_ap" or f"val_{kind}" in table]
    figure, axes = subplots(1, len(kinds), figsize=(5 * len(kinds), 3.4))
    for axis, kind in zip(axes, kinds, strict=True):
        for part, colour in (("train", NORMAL), ("val", ANOMALOUS)):
            column = f"{part}_{kind}"
            if column in table:
                axis.plot(table["epoch"], table[column], color=colour, label={"val": "validation"}.get(part, part))
        if chosen is not None:
            axis.axvline(chosen, color=QUIET, ls=":", lw=1.2)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(xlabel="epoch", ylabel=names[kind])
        axis.legend()
    axes[1].axhline(0.5, color=QUIET, ls="--", lw=1)
    for axis in axes[1:]:
        axis.set_ylim(0.3, 1.02)
    figure.suptitle(title)
    return figure


def losses(tables: Mapping[str, pd.DataFrame], *, floor: float | None = None, title: str = "") -> Figure:
    """Draw loss by training step, one line per name (columns step, loss); `floor` is what guessing the answer costs."""
    figure, axis = subplots(figsize=(7, 3.4))
    for colour, (name, table) in zip((ANOMALOUS, NORMAL, *SERIES[2:]), tables.items(), strict=False):
        axis.plot(table["step"], table["loss"], color=colour, label=name)
    if floor is not None:
        axis.axhline(floor, color=QUIET, ls="--", lw=1, label="guessing which answer")
    axis.set(xlabel="step", ylabel="loss per answer token (nats)", ylim=(0, None))
    figure.suptitle(title)
    axis.legend(fontsize=9)
    return figure


def roc_or_pr(
    lines: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    kind: str,
    band: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    base_rate: float | None = None,
    title: str = "",
) -> Figure:
    """Draw ROC (`kind` "roc": false alarm against hit rate) or PR ("pr": recall against precision) curves, name -> (x, y).

    `band` is (x, low, high), a 95 % interval over videos; `base_rate` the share of positives, chance level of a PR curve.
    """
    labels = {"roc": ("false alarm rate", "hit rate"), "pr": ("recall", "precision")}[kind]
    figure, axis = subplots(figsize=(5, 4.4))
    if band is not None:
        axis.fill_between(*band, color=ANOMALOUS, alpha=0.18, lw=0, label="95 % over videos")
    for colour, (name, (x, y)) in zip((ANOMALOUS, NORMAL, *SERIES[2:]), lines.items(), strict=False):
        axis.plot(x, y, color=colour, label=name, drawstyle="steps-post" if kind == "roc" else "steps-pre")
    if kind == "roc":
        axis.plot([0, 1], [0, 1], color=QUIET, ls="--", lw=1)
    elif base_rate is not None:
        axis.axhline(base_rate, color=QUIET, ls="--", lw=1)
        axis.text(0.01, base_rate, "chance", va="bottom", fontsize=8, color=QUIET)
    axis.set(xlabel=labels[0], ylabel=labels[1], xlim=(0, 1), ylim=(0, 1.02))
    figure.suptitle(title)
    axis.legend(fontsize=9, loc="lower right" if kind == "roc" else "upper right")
    return figure


def lines(
    table: pd.DataFrame, *, x: str, y: str, hue: str, low: str | None = None, high: str | None = None, title: str = "",
    xlabel: str = "", ylabel: str = "", logx: bool = False, logy: bool = False, marks: bool = False,
    spans: Sequence[tuple[float, float]] = (),
) -> Figure:  # fmt: skip
    """Draw y against x, a line per value of `hue`, with a band between `low` and `high`; amber `spans` are the truth.

    With `marks` every point is marked, and so are its places on the axis where they are few.
    """
    figure, axis = subplots(figsize=(8.5, 3.6))
    for start, end in spans:
        axis.axvspan(start, end, color=TRUTH, alpha=0.35, lw=0)
    colours = (ANOMALOUS, NORMAL, *SERIES[2:], QUIET, "#E69F00")
    if table[hue].nunique() > len(colours):
        raise ValueError(f"at most {len(colours)} lines can be told apart, got {table[hue].nunique()} values of {hue}")
    for colour, (name, part) in zip(colours, table.groupby(hue, sort=False), strict=False):
        axis.plot(part[x], part[y], color=colour, label=name, marker="o" if marks else None, ms=4)
        if low and high:
            axis.fill_between(part[x], part[low], part[high], color=colour, alpha=0.18, lw=0)
    axis.set(xlabel=xlabel or x.replace("_", " "), ylabel=ylabel or y.replace("_", " "))
    figure.suptitle(title)
    axis.set_xscale("log" if logx else "linear")
    axis.set_yscale("log" if logy else "linear")
    if marks and (places := sorted(table.loc[table[y].notna(), x].unique())) and len(places) <= 8:
        axis.set_xticks(places, [f"{place:.3g}" for place in places])
        axis.minorticks_off()
    many = table[hue].nunique() > 4  # beside the lines, not over them
    axis.legend(fontsize=9, **({"loc": "upper left", "bbox_to_anchor": (1, 1)} if many else {}))
    return figure


MEAN_STEPS = 15  # steps of the moving mean
TITLES = {
    "dead": "groups all alike", "kl": "KL to the start", "length": "length (tokens)",
    "reward_order": "reward: order", "reward_form": "reward: form",
    "reward_judgement": "reward: judgement", "reward_shuffled": "reward: shuffled?",
}  # fmt: skip
SHOWN_COLUMNS = ("reward_order", "reward_form", "reward_judgement", "kl", "length", "dead")


def rewards(curves: pd.DataFrame, *, columns: Sequence[str] = SHOWN_COLUMNS, title: str = ""):
    """Draw curves of `grpo.train` by step, a panel per column, a line per `method`: thin as it was, thick its moving mean.

    Where there are several of a column `seed`, each is thin and the thick line is of their mean. Columns that are
    missing or 0 are left out.
    """
    columns = [column for column in columns if column in curves and curves[column].any()]
    figure, axes = style.subplots(1, len(columns), figsize=(3.3 * len(columns), 3.1))
    methods = curves["method"].unique() if "method" in curves else [""]
    for axis, column in zip(np.atleast_1d(axes), columns, strict=True):
        for name in methods:
            colour = METHOD_COLOURS.get(name, style.ANOMALOUS)
            part = curves[curves["method"] == name] if name else curves
            if part[column].isna().all():
                continue
            wide = part.pivot_table(index="step", columns=part.get("seed", part["step"] * 0), values=column)
            axis.plot(wide.index, wide, color=colour, lw=0.6, alpha=0.4 / wide.shape[1] ** 0.5)
            axis.plot(wide.index, wide.mean(axis=1).rolling(MEAN_STEPS, min_periods=1).mean(), color=colour, lw=2, label=name)
        if column == "kl":  # one step of babble would hide the rest
            axis.set_ylim(0, 1.5 * max(line.get_ydata().max() for line in axis.lines if line.get_lw() > 1))
        axis.set(xlabel="step", title=TITLES.get(column, column))
    if len(methods) > 1:
        np.atleast_1d(axes)[0].legend(fontsize=8)
    figure.suptitle(title)
    return figure
