"""Frames as pictures: filmstrips, kept and dropped visual tokens, boxes and tracks."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from vau_lib.plots import style
from vau_lib.plots.style import subplots


def frames(frames: np.ndarray, captions: Sequence[str] | None = None, *, columns: int = 6, title: str = "") -> Figure:
    """Show frames uint8 (T, H, W, 3) in rows of `columns`, a caption under each."""
    rows = -(-len(frames) // columns)
    height, width = frames.shape[1:3]
    cell = 2.1
    size = (cell * columns, (cell * height / width + (0.28 if captions else 0.06)) * rows + (0.4 if title else 0))
    figure, axes = subplots(rows, columns, figsize=size, squeeze=False)
    for place, axis in enumerate(axes.flat):
        axis.set_axis_off()
        if place < len(frames):
            axis.imshow(frames[place], interpolation="lanczos")
            if captions:
                below = -0.17 - 0.13 * captions[place].count("\n")
                axis.set_title(captions[place], fontsize=8, fontweight="normal", loc="center", y=below)
    if title:
        figure.suptitle(title)
    return figure


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
    figure, axes = style.subplots(len(kept), count, figsize=size, squeeze=False)
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
    figure.suptitle(title)
    return figure


def _mark(axis, truth: np.ndarray, mask: np.ndarray, tall: float, wide: float) -> None:
    for chosen, colour in ((truth & mask, style.NORMAL), (truth & ~mask, style.ANOMALOUS)):
        y, x = np.nonzero(chosen)
        axis.plot((x + 0.5) * wide, (y + 0.5) * tall, ls="", marker="s", ms=3.5, color=colour, mec="white", mew=0.4)


def tracks(frame: np.ndarray, boxes: np.ndarray, centres: np.ndarray, kinds: Sequence[str], *, title: str = ""):
    """Draw boxes (N, 4) on a frame (H, W, 3) and where each actor's centre was, (T, N, 2), NaN where unseen; the Figure."""
    tall, wide = frame.shape[:2]
    figure, axis = style.subplots(figsize=(7.5, 7.5 * tall / wide))
    axis.imshow(frame)
    axis.set_axis_off()
    for number, (box, kind) in enumerate(zip(boxes, kinds, strict=True)):
        colour = style.SERIES[number % 5]
        axis.plot(*centres[:, number].T, color=colour, lw=1.4, alpha=0.9)
        if not np.isnan(box[0]):
            axis.add_patch(style.plt.Rectangle(box[:2] - 0.5, *(box[2:] - box[:2]), fill=False, ec=colour, lw=1.6))
            axis.annotate(f"{number + 1} {kind}", box[:2], (0, 2), textcoords="offset points", fontsize=7, color=colour)
    figure.suptitle(title)
    return figure
