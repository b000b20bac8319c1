"""A published row of four rounded numbers gives away its confusion matrix, and with it the clips it was measured on.

- every row of SmartHome-Bench's tables fits exactly one matrix on its 554 normal and 649 anomalous clips
- the row Memories-S0 prints beside them fits none there; over all subsets it fits one, 645 anomalous and 377 normal clips, and
  645 is the number of anomalous clips that are public (normal ones: 378). So it stands beside rows of another set
- with the matrix known, specificity, balanced accuracy and an interval follow for rows that never printed them
Source: tables of arXiv 2506.12992; the README of Memories-S0. Numbers are theirs, in percent.
"""

from typing import NamedTuple

import numpy as np


class Published(NamedTuple):
    """One printed row, in percent."""

    model: str
    style: str
    accuracy: float
    precision: float
    recall: float
    f1: float


STYLES = ("zero_shot", "cot", "few_shot_cot", "icl", "trlc")
_PRINTED = {  # accuracy/precision/recall/F1, a column per style
    "Gemini-1.5-flash": "58.44/79.22/31.12/44.69 69.58/74.44/66.41/70.20 68.41/79.43/55.93/65.64 67.08/80.78/51.16/62.64 "
    "77.14/77.74/80.74/79.21",
    "Gemini-1.5-pro": "57.36/84.34/25.73/39.43 74.06/83.77/64.41/72.82 76.39/86.87/66.26/75.17 74.40/86.20/62.56/72.50 "
    "78.47/82.18/76.73/79.36",
    "GPT-4o": "68.41/80.09/55.16/65.33 72.57/83.02/61.79/70.85 71.65/83.19/59.48/69.36 72.65/89.41/55.93/68.82 "
    "77.47/79.35/78.74/79.04",
    "GPT-4o-mini": "69.91/76.52/63.79/69.58 68.83/68.07/79.51/73.35 68.00/66.30/82.74/73.61 71.74/83.96/58.86/69.20 "
    "70.82/67.74/87.67/76.43",
    "Claude-3.5-sonnet": "70.82/69.66/81.36/75.05 71.90/83.44/59.78/69.66 72.98/77.65/70.11/73.68 73.82/84.22/63.33/72.30 "
    "79.05/79.67/82.13/80.88",
    "VILA-13b": "46.05/0/0/0 68.41/68.45/76.89/72.42 67.17/69.18/70.57/69.87 65.59/75.82/53.16/62.50",
}
PUBLISHED = [
    Published(model, style, *map(float, numbers.split("/")))
    for model, row in _PRINTED.items()
    for style, numbers in zip(STYLES, row.split(), strict=False)  # VILA-13b has no reflective chain
]
MEMORIES_S0 = Published("Memories-S0", "zero_shot", 71.33, 73.04, 86.51, 79.21)
SEED_TABLE = [  # the four rows Memories-S0's README prints side by side
    MEMORIES_S0,
    *[row for row in PUBLISHED if (row.model, row.style) == ("VILA-13b", "few_shot_cot")],
    *[row for row in PUBLISHED if row.model in ("GPT-4o", "Gemini-1.5-pro") and row.style == "zero_shot"],
]


def fitting(row: Published, *, positives: int, negatives: int) -> list[tuple[int, int, int, int]]:
    """Return every (tn, fp, fn, tp) on exactly these numbers of clips that rounds to the row's four numbers."""
    tp, fp = np.meshgrid(np.arange(positives + 1), np.arange(negatives + 1), indexing="ij")
    tn, fn = negatives - fp, positives - tp
    kept = _rounds(row, tn, fp, fn, tp)
    return [tuple(int(part[kept][k]) for part in (tn, fp, fn, tp)) for k in range(int(kept.sum()))]


def fitting_subsets(row: Published, *, positives: int, negatives: int) -> list[tuple[int, int, int, int]]:
    """Return every (tn, fp, fn, tp) that rounds to the row on ANY subset of at most these numbers of clips.

    Recall bounds tp for a number of positives, precision bounds fp for a tp: few are left to try against accuracy and F1.
    A row of zeros fits nearly everything and is refused.
    """
    if not row.recall or not row.precision:
        raise ValueError(f"{row.model} {row.style} found no anomaly (recall {row.recall}): every subset fits")
    found = []
    for size in range(1, positives + 1):
        for tp in _between(size * (row.recall - 0.01) / 100, size * (row.recall + 0.01) / 100, size):
            least, most = tp * (100 / (row.precision + 0.01) - 1), tp * (100 / (row.precision - 0.01) - 1)
            for fp in _between(least, most, negatives):
                tn = np.arange(negatives - fp + 1)
                kept = tn[_rounds(row, tn, fp, size - tp, tp)]
                found += [(int(one), fp, size - tp, tp) for one in kept]
    return found


def _between(low: float, high: float, most: int) -> range:
    return range(max(0, int(np.ceil(low))), min(most, int(np.floor(high))) + 1)


def _rounds(row: Published, tn, fp, fn, tp) -> np.ndarray:
    """Return where counts give the four printed numbers, half a hundredth either way; 0/0 counts as 0."""
    pairs = (
        (tn + tp, tn + fp + fn + tp, row.accuracy), (tp, tp + fp, row.precision), (tp, tp + fn, row.recall),
        (2 * tp, 2 * tp + fp + fn, row.f1),
    )  # fmt: skip
    near = [np.abs(100 * np.asarray(part) / np.maximum(whole, 1) - printed) for part, whole, printed in pairs]
    return np.all(np.broadcast_arrays(*[gap <= 0.005 + 1e-9 for gap in near]), axis=0)
