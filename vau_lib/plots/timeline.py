"""One look for every figure: the axes have units, the title is the finding, the truth is a band you can see.

Every function returns a matplotlib Figure and shows nothing; `save` writes it as PNG and SVG. Colours are Okabe and Ito's,
told apart by colour-blind readers: blue normal, vermilion anomalous, amber the truth's band.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vau_lib import store
from vau_lib.records import Span

NORMAL, ANOMALOUS, TRUTH, INK, QUIET = "#0072B2", "#D55E00", "#F0B429", "#22303C", "#8A97A3"
SERIES = (NORMAL, ANOMALOUS, "#009E73", "#CC79A7", "#56B4E9", INK)
FORMATS = ("png", "svg")


def look() -> None:
    """Set the house style; called once in a notebook's set-up cell."""
    sns.set_theme(
        context="notebook",
        style="ticks",
        rc={
            "figure.dpi": 110,
            "savefig.dpi": 160,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlelocation": "left",
            "axes.titleweight": "bold",
            "axes.titlesize": 12,
            "axes.labelcolor": INK,
            "axes.edgecolor": QUIET,
            "text.color": INK,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
        },
    )


def save(figure: Figure, path: Path) -> list[Path]:
    """Write the figure beside `path` as .png and .svg, whole or not at all; return the files."""
    written = []
    for suffix in FORMATS:
        with store.replacing(Path(path).with_suffix(f".{suffix}")) as temporary:
            figure.savefig(temporary, format=suffix)
        written.append(Path(path).with_suffix(f".{suffix}"))
    return written


def filmstrip(
    frames: np.ndarray, captions: Sequence[str] | None = None, *, columns: int = 6, title: str = ""
) -> Figure:
    """Show frames uint8 (T, H, W, 3) in rows of `columns`, a caption under each."""
    rows = -(-len(frames) // columns)
    height, width = frames.shape[1:3]
    cell = 2.1
    size = (cell * columns, (cell * height / width + (0.28 if captions else 0.06)) * rows + (0.4 if title else 0))
    figure, axes = _subplots(rows, columns, figsize=size, squeeze=False)
    for place, axis in enumerate(axes.flat):
        axis.set_axis_off()
        if place < len(frames):
            axis.imshow(frames[place], interpolation="lanczos")
            if captions:
                below = -0.17 - 0.13 * captions[place].count("\n")
                axis.set_title(captions[place], fontsize=8, fontweight="normal", loc="center", y=below)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=12)
    return figure


def timeline(
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
    figure = plt.figure(figsize=(11, 4.6 if strip else 3.0))
    plt.close(figure)
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
            picture = figure.add_subplot(grid[0, place])
            picture.imshow(frame, interpolation="lanczos")
            inside = any(event.start_s <= moment < event.end_s for event in events)
            for spine in picture.spines.values():
                spine.set(visible=True, color=TRUTH if inside else QUIET, linewidth=3 if inside else 0.8)
            picture.set(xticks=[], yticks=[])
            picture.set_title(f"{moment:.0f} s", fontsize=8, fontweight="normal", loc="center", pad=2)
            axis.axvline(moment, ymax=0.03, color=INK, lw=1)
    axis.set(xlim=(0, longest), xlabel="time (s)", ylabel=ylabel)
    if len(scores) > 1:
        axis.legend(loc="upper left", ncols=len(scores), fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=12)
    return figure


def choices(
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
    figure, axes = _subplots(len(heights), 1, figsize=(11, 1.5 * sum(heights)), sharex=True, height_ratios=heights)
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
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=12)
    return figure


def by_number(
    table: pd.DataFrame, *, x: str, columns: Sequence[str], hue: str, highlight: str = "", title: str = ""
) -> Figure:
    """Draw each of `columns` over the number in column `x` in a panel of its own, a line per value of `hue`."""
    figure, axes = _subplots(1, len(columns), figsize=(3.6 * len(columns), 3.4), squeeze=False)
    names = list(table[hue].unique())
    others = iter((QUIET, INK, NORMAL, *SERIES[2:]))
    colours = {name: ANOMALOUS if name == highlight else next(others) for name in names}
    for axis, column in zip(axes.flat, columns, strict=True):
        for name in names:
            part = table[table[hue] == name].sort_values(x)
            axis.plot(part[x], part[column], color=colours[name], marker="o", ms=4, label=name)
        axis.set(xlabel=x.replace("_", " "), ylabel=column.replace("_", " "), xticks=sorted(table[x].unique()))
        axis.set_ylim(0, None)
    axes.flat[0].legend(fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=12)
    return figure


def training_curves(table: pd.DataFrame, *, title: str = "", chosen: int | None = None) -> Figure:
    """Draw loss and video AUC by epoch, train beside validation; `chosen` marks the epoch kept (by validation)."""
    figure, (left, right) = _subplots(1, 2, figsize=(10, 3.4))
    for axis, kind in ((left, "loss"), (right, "video_auc")):
        for part, colour in (("train", NORMAL), ("val", ANOMALOUS)):
            column = f"{part}_{kind}"
            if column in table:
                axis.plot(table["epoch"], table[column], color=colour, label={"val": "validation"}.get(part, part))
        if chosen is not None:
            axis.axvline(chosen, color=QUIET, ls=":", lw=1.2)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(xlabel="epoch", ylabel={"loss": "loss", "video_auc": "video AUC"}[kind])
        axis.legend()
    right.axhline(0.5, color=QUIET, ls="--", lw=1)
    right.set_ylim(0.3, 1.02)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=12)
    return figure


def loss_curves(tables: Mapping[str, pd.DataFrame], *, floor: float | None = None, title: str = "") -> Figure:
    """Draw loss by training step, one line per name (columns step, loss); `floor` is what guessing the answer costs."""
    figure, axis = _subplots(figsize=(7, 3.4))
    for colour, (name, table) in zip((ANOMALOUS, NORMAL, *SERIES[2:]), tables.items(), strict=False):
        axis.plot(table["step"], table["loss"], color=colour, label=name)
    if floor is not None:
        axis.axhline(floor, color=QUIET, ls="--", lw=1, label="guessing which answer")
    axis.set(xlabel="step", ylabel="loss per answer token (nats)", title=title, ylim=(0, None))
    axis.legend(fontsize=9)
    return figure


def curve(
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
    figure, axis = _subplots(figsize=(5, 4.4))
    if band is not None:
        axis.fill_between(*band, color=ANOMALOUS, alpha=0.18, lw=0, label="95 % over videos")
    for colour, (name, (x, y)) in zip((ANOMALOUS, NORMAL, *SERIES[2:]), lines.items(), strict=False):
        axis.plot(x, y, color=colour, label=name, drawstyle="steps-post" if kind == "roc" else "steps-pre")
    if kind == "roc":
        axis.plot([0, 1], [0, 1], color=QUIET, ls="--", lw=1)
    elif base_rate is not None:
        axis.axhline(base_rate, color=QUIET, ls="--", lw=1)
        axis.text(0.01, base_rate, "chance", va="bottom", fontsize=8, color=QUIET)
    axis.set(xlabel=labels[0], ylabel=labels[1], xlim=(0, 1), ylim=(0, 1.02), title=title)
    axis.legend(fontsize=9, loc="lower right" if kind == "roc" else "upper right")
    return figure


def confusion(tn: int, fp: int, fn: int, tp: int, *, title: str = "") -> Figure:
    """Draw a 2 x 2 confusion matrix of counts, truth down, decision across."""
    figure, axis = _subplots(figsize=(3.9, 3.5))
    names = ["normal", "anomalous"]
    table = pd.DataFrame([[tn, fp], [fn, tp]], index=names, columns=names)
    sns.heatmap(
        table, annot=True, fmt="d", cmap="Blues", cbar=False, square=True, ax=axis, annot_kws={"size": 16}, lw=2
    )
    axis.set(xlabel="decided", ylabel="truth", title=title)
    return figure


def histogram(
    scores: np.ndarray, labels: np.ndarray, *, title: str = "", xlabel: str = "score", threshold: float | None = None
) -> Figure:
    """Draw how scores (N,) of normal and anomalous videos (labels (N,)) are spread."""
    figure, axis = _subplots(figsize=(6.5, 3.2))
    bins = np.histogram_bin_edges(scores, bins=24)
    for name, value, colour in (("normal", 0, NORMAL), ("anomalous", 1, ANOMALOUS)):
        axis.hist(
            scores[labels == value], bins=bins, color=colour, alpha=0.6, label=f"{name} ({(labels == value).sum()})"
        )
    if threshold is not None:
        axis.axvline(threshold, color=INK, ls="--", lw=1, label="threshold (validation)")
    axis.set(xlabel=xlabel, ylabel="videos", title=title)
    axis.legend(fontsize=9)
    return figure


def bars(
    table: pd.DataFrame, *, x: str, y: str, low: str | None = None, high: str | None = None,
    highlight: Sequence[str] = (), chance: float | None = None, guess: str = "chance", title: str = "", unit: str = "",
    log: bool = False,
) -> Figure:  # fmt: skip
    """Draw one horizontal bar per row: text column `y`, value column `x`, interval columns `low` and `high`.

    Rows named in `highlight` are ours and coloured; `chance` draws the level of guessing, named `guess`; `log` makes the
    axis logarithmic.
    """
    figure, axis = _subplots(figsize=(8.5, 0.9 + 0.36 * len(table)))
    colours = [ANOMALOUS if name in highlight else "#B8C4CE" for name in table[y]]
    places = np.arange(len(table))[::-1]
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
        axis.text(chance, len(table) - 0.45, f" {guess}", fontsize=8, color=QUIET, va="bottom")
    axis.set(yticks=places, xlabel=unit or x.replace("_", " ").replace("auc", "AUC"))
    axis.set_yticklabels([fill(str(name), 46) for name in table[y]], linespacing=0.9)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=12)
    ends = (table[x].min() / 3, reach.max() * 4) if log else (0, max(reach.max() * 1.12, chance or 0))
    axis.set(xscale="log" if log else "linear", xlim=ends)
    return figure


def heat(
    rows: np.ndarray, *, seconds_per_row: float, title: str = "", ylabel: str = "channel", unit: str = ""
) -> Figure:
    """Draw rows (T, D) as an image, time to the right, channels down."""
    figure, axis = _subplots(figsize=(10, 2.8))
    reach = np.nanpercentile(np.abs(rows), 99) or 1.0
    image = axis.imshow(
        rows.T, aspect="auto", cmap="RdBu_r" if rows.min() < 0 else "magma", interpolation="nearest",
        vmin=-reach if rows.min() < 0 else 0, vmax=reach, extent=(0, len(rows) * seconds_per_row, rows.shape[1], 0),
    )  # fmt: skip
    axis.set(xlabel="time (s)", ylabel=ylabel, title=title)
    figure.colorbar(image, ax=axis, label=unit, pad=0.01)
    return figure


def spread(
    table: pd.DataFrame, *, x: str, y: str, hue: str | None = None, title: str = "", xlabel: str = "",
    guide: float | None = 0.5,
) -> Figure:  # fmt: skip
    """Draw every run as a point and their mean as a bar mark: how far seeds and folds carry a number; `guide` is chance."""
    figure, axis = _subplots(figsize=(8, 0.9 + 0.5 * table[y].nunique()))
    palette = dict(zip(table[hue].unique(), SERIES, strict=False)) if hue else None
    colour = None if hue else NORMAL
    sns.stripplot(table, x=x, y=y, hue=hue, palette=palette, color=colour, alpha=0.55, jitter=0.18, size=6, ax=axis)
    for place, (_, part) in enumerate(table.groupby(y, sort=False)):
        axis.plot([part[x].mean()] * 2, [place - 0.3, place + 0.3], color=INK, lw=2.5)
    if guide is not None:
        axis.axvline(guide, color=QUIET, ls="--", lw=1)
    axis.set(xlabel=xlabel or x.replace("_", " "), ylabel="", title=title)
    return figure


def key_clips(trace: pd.DataFrame, *, title: str = "") -> Figure:
    """Draw a trace (scene, rule, clip, ratio, kept): bars over the bar are news, dots below mark what each rule keeps."""
    scenes, rules = trace["scene"].unique(), trace["rule"].unique()
    figure, axes = _subplots(1, len(scenes), figsize=(4.1 * len(scenes), 3.4), sharey=True, squeeze=False)
    for axis, scene in zip(axes.flat, scenes, strict=True):
        part = trace[trace["scene"] == scene]
        first = part[part["rule"] == rules[0]]
        colours = np.where(first["ratio"] > 1, ANOMALOUS, "#B8C4CE")
        axis.bar(first["clip"], first["ratio"], color=colours, width=0.85)
        axis.axhline(1, color=INK, ls="--", lw=1)
        for place, (rule, marks) in enumerate(part.groupby("rule", sort=False)):
            kept = marks.loc[marks["kept"], "clip"]
            axis.plot(
                kept, np.full(len(kept), -0.5 - 0.7 * place), "o", color=SERIES[place], ms=5, label=rule, clip_on=False
            )
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(xlabel="clip", title=f"{scene}: keeps {_shares(part)}")
        axis.title.set_fontsize(10)
    axes.flat[0].set(ylabel="distance / bar", yticks=[0, 1, 2, 4, 6, 8, 10], ylim=(-1.6, 10.2))
    axes.flat[-1].legend(fontsize=8, loc="upper right", title="dots: kept", title_fontsize=8)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=12)
    return figure


def _shares(part: pd.DataFrame) -> str:
    return ", ".join(f"{kept:.0%}" for kept in part.groupby("rule", sort=False)["kept"].mean())


def lines(
    table: pd.DataFrame, *, x: str, y: str, hue: str, low: str | None = None, high: str | None = None, title: str = "",
    xlabel: str = "", ylabel: str = "", logx: bool = False, logy: bool = False, marks: bool = False,
    spans: Sequence[tuple[float, float]] = (),
) -> Figure:  # fmt: skip
    """Draw y against x, a line per value of `hue`, with a band between `low` and `high`; amber `spans` are the truth."""
    figure, axis = _subplots(figsize=(8.5, 3.6))
    for start, end in spans:
        axis.axvspan(start, end, color=TRUTH, alpha=0.35, lw=0)
    for colour, (name, part) in zip(
        (ANOMALOUS, NORMAL, *SERIES[2:], QUIET), table.groupby(hue, sort=False), strict=False
    ):
        axis.plot(part[x], part[y], color=colour, label=name, marker="o" if marks else None, ms=4)
        if low and high:
            axis.fill_between(part[x], part[low], part[high], color=colour, alpha=0.18, lw=0)
    axis.set(xlabel=xlabel or x.replace("_", " "), ylabel=ylabel or y.replace("_", " "), title=title)
    axis.set_xscale("log" if logx else "linear")
    axis.set_yscale("log" if logy else "linear")
    axis.legend(fontsize=9)
    return figure


def _subplots(*arguments, **options) -> tuple:
    """Make a figure that pyplot forgets at once, so that a notebook shows what is returned and shows it once."""
    figure, axes = plt.subplots(*arguments, **options)
    plt.close(figure)
    return figure, axes
