"""What reinforcement did: rewards by step, and what was right before and after."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from vau_lib import plots

WIDE = 15  # steps of the moving mean
COLOURS = {
    "supervised start": plots.QUIET, "rewarded": plots.ANOMALOUS, "rewarded, against the shuffled film": plots.SERIES[2],
    "rewarded by dealt truths": plots.NORMAL,
}  # fmt: skip
TITLES = {
    "dead": "groups all alike", "kl": "KL to the start", "length": "length (tokens)",
    "reward_order": "reward: order", "reward_form": "reward: form",
    "reward_judgement": "reward: judgement", "reward_shuffled": "reward: shuffled?",
}  # fmt: skip
SHOWN = ("reward_order", "reward_form", "reward_judgement", "kl", "length", "dead")


def rewards(curves: pd.DataFrame, *, columns: Sequence[str] = SHOWN, title: str = ""):
    """Draw curves of `policy.optimise` by step, a panel per column, a line per `who`: thin as it was, thick its moving mean.

    Where there are several of a column `seed`, each is thin and the thick line is of their mean. Columns that are
    missing or 0 are left out.
    """
    columns = [column for column in columns if column in curves and curves[column].any()]
    figure, axes = plots._subplots(1, len(columns), figsize=(3.3 * len(columns), 3.1))
    who = curves["who"].unique() if "who" in curves else [""]
    for axis, column in zip(np.atleast_1d(axes), columns, strict=True):
        for name in who:
            colour = COLOURS.get(name, plots.ANOMALOUS)
            part = curves[curves["who"] == name] if name else curves
            if part[column].isna().all():
                continue
            wide = part.pivot_table(index="step", columns=part.get("seed", part["step"] * 0), values=column)
            axis.plot(wide.index, wide, color=colour, lw=0.6, alpha=0.4 / wide.shape[1] ** 0.5)
            axis.plot(wide.index, wide.mean(axis=1).rolling(WIDE, min_periods=1).mean(), color=colour, lw=2, label=name)
        if column == "kl":  # one step of babble would hide the rest
            axis.set_ylim(0, 1.5 * max(line.get_ydata().max() for line in axis.lines if line.get_lw() > 1))
        axis.set(xlabel="step", title=TITLES.get(column, column))
    if len(who) > 1:
        np.atleast_1d(axes)[0].legend(fontsize=8)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=12)
    return figure


def before_after(table: pd.DataFrame, *, order: Sequence[str], guess: dict[str, float], title: str = ""):
    """Draw accuracy (low, high) of each `asked`, a group of bars with one per value of `who` in `order`; `guess` is marked."""
    figure, axis = plots._subplots(figsize=(10, 3.8))
    asked, width = list(table["asked"].unique()), 0.8 / len(order)
    for number, name in enumerate(order):
        part = table[table["who"] == name].set_index("asked").loc[asked]
        places = np.arange(len(asked)) + (number - (len(order) - 1) / 2) * width
        edges = np.abs(part[["low", "high"]].to_numpy().T - part["accuracy"].to_numpy())
        axis.bar(places, part["accuracy"], width * 0.92, yerr=edges, color=COLOURS.get(name, plots.INK), label=name,
                 error_kw={"lw": 1, "ecolor": plots.INK})  # fmt: skip
    for place, name in enumerate(asked):
        if name in guess:
            axis.plot([place - 0.42, place + 0.42], [guess[name]] * 2, color=plots.INK, ls="--", lw=1)
    axis.set(xticks=range(len(asked)), ylim=(0, 1.05), ylabel="answers right")
    axis.set_xticklabels([name.replace(", ", ",\n") for name in asked], fontsize=9)
    axis.legend(fontsize=9, ncols=len(order), loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
    axis.text(1, 1.03, "dashed: a guess", transform=axis.transAxes, fontsize=8, ha="right", color=plots.QUIET)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=12)
    return figure
