"""Do faster XFeat features (bfloat16, or ncnn in Winograd's form) change a result? 207 real fights, four folds, video AUC.

- features of 2 frames, pooled (their temporal difference is learned from) and local change; float32 by torch is the reference
- logistic regression as in `local_change.py`, trained and tested on each kind; the same clips are resampled for the difference of
  AUCs, so that its 95 % interval is of the kind of number alone
    VAU_REAL_DATA=... python benchmarks/equal_features.py
"""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import local_change
import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from vau_lib.data import datasets
from vau_lib.detectors import preprocessing
from vau_lib.evaluation import result_tables
from vau_lib.features import extraction
from vau_lib.workspace import presets

REFERENCE, RESAMPLES = "float32", 2000
KINDS = {REFERENCE: {"bfloat16": False}, "bfloat16": {"bfloat16": True}, "ncnn float32": {"runtime": "ncnn"}}


def difference(scores: dict, reference: dict, labels: dict, rng: np.random.Generator) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two AUCs over clips that are drawn again."""
    names = np.array(sorted(labels))
    y, a, b = (np.array([of[n] for n in names]) for of in (labels, scores, reference))
    draws = [d for d in rng.integers(0, len(names), (RESAMPLES, len(names))) if 0 < y[d].sum() < len(d)]
    return tuple(np.quantile([roc_auc_score(y[d], a[d]) - roc_auc_score(y[d], b[d]) for d in draws], (0.025, 0.975)))


def main(place: Path) -> None:
    torch.set_num_threads(1)
    real = Path(os.environ["VAU_REAL_DATA"])
    root, weights = real / "fight_surv", str(real / "weights/xfeat/xfeat_bnfolded.pt")
    parts = [datasets.clip_folder(root, root / "labels.csv", test_fold=k) for k in range(4)]
    folds, table = local_change.Folds(parts), []
    for pooling in ("pooled", "local_change"):
        rows, runs = {}, {}
        for kind, options in KINDS.items():
            options = {"weights": weights, "pooling": pooling, **options}
            recipe = extraction.Recipe("xfeat", local_change.SNIPPET, tuple(options.items()), device="cpu")
            extraction.extract(parts[0], root, place / f"{pooling} {kind}", recipe)
            rows[kind] = extraction.load(place / f"{pooling} {kind}", parts[0])
            learned = rows[kind]
            if pooling == "pooled":
                learned = {n: preprocessing.temporal_difference(x) for n, x in learned.items()}
            runs[kind], _ = folds.logistic(learned)
            x, before = (np.concatenate([rows[k][n] for n in folds.names]) for k in (kind, REFERENCE))
            scores, expected, y = ([of[n] for n in folds.names] for of in (runs[kind], runs[REFERENCE], folds.labels))
            low, high = difference(runs[kind], runs[REFERENCE], folds.labels, np.random.default_rng(0))
            table.append({
                "pooling": pooling, "features": kind, "clips": len(folds.names),
                "features_off": np.linalg.norm(x - before) / np.linalg.norm(before), "video_auc": roc_auc_score(y, scores),
                "auc_difference": roc_auc_score(y, scores) - roc_auc_score(y, expected), "low": low, "high": high,
                "rank_correlation": spearmanr(scores, expected).statistic,
            })  # fmt: skip
            print(table[-1], flush=True)
    studies = presets.project() / "data" / "results" / "studies"
    result_tables.write_curve(studies / "equal_features.csv", pd.DataFrame(table).round(6))


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        main(Path(folder))
