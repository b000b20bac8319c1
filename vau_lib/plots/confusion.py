"""Confusion matrices, and features over time as a heat map."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from vau_lib.plots.style import subplots


def matrix(tn: int, fp: int, fn: int, tp: int, *, title: str = "") -> Figure:
    """Draw a 2 x 2 confusion matrix of counts, truth down, decision across."""
    figure, axis = subplots(figsize=(3.9, 3.5))
    names = ["normal", "anomalous"]
    table = pd.DataFrame([[tn, fp], [fn, tp]], index=names, columns=names)
    sns.heatmap(table, annot=True, fmt="d", cmap="Blues", cbar=False, square=True, ax=axis, annot_kws={"size": 16}, lw=2)
    axis.set(xlabel="decided", ylabel="truth")
    figure.suptitle(title)
    return figure


def heatmap(rows: np.ndarray, *, seconds_per_row: float, title: str = "", ylabel: str = "channel", unit: str = "") -> Figure:
    """Draw rows (T, D) as an image, time to the right, channels down."""
    figure, axis = subplots(figsize=(10, 2.8))
    reach = np.nanpercentile(np.abs(rows), 99) or 1.0
    image = axis.imshow(
        rows.T, aspect="auto", cmap="RdBu_r" if rows.min() < 0 else "magma", interpolation="nearest",
        vmin=-reach if rows.min() < 0 else 0, vmax=reach, extent=(0, len(rows) * seconds_per_row, rows.shape[1], 0),
    )  # fmt: skip
    axis.set(xlabel="time (s)", ylabel=ylabel)
    figure.suptitle(title)
    figure.colorbar(image, ax=axis, label=unit, pad=0.01)
    return figure
