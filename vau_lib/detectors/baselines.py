"""What simple methods score on the same rows: a learned model that does not beat them has learned nothing new.

- training-free: how much a row changes, how large it is; nothing is fitted, nothing can leak
- fitted on normal rows only: distance to the nearest normal rows, distance from their cloud
- fitted on labels: logistic regression on how a video's rows change
Every results table of this workspace has at least one of these rows in it. Rows are (T, D), scores (T,), higher is stranger.
"""

from collections.abc import Mapping

import numpy as np
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def energy(rows: np.ndarray) -> np.ndarray:
    """Return the length of each row, (T,); the published MemTSM checkpoint orders videos by little else."""
    return np.linalg.norm(rows, axis=1)


def difference(rows: np.ndarray) -> np.ndarray:
    """Return the length of each row's change from the row before, (T,); the first repeats the second's."""
    if len(rows) < 2:
        return np.zeros(len(rows))
    steps = np.linalg.norm(np.diff(rows, axis=0), axis=1)
    return np.concatenate([steps[:1], steps])


def neighbour_distance(normal: np.ndarray, rows: np.ndarray, *, neighbours: int = 5) -> np.ndarray:
    """Return the mean distance (T,) to the nearest normal rows, channels standardised by the normal rows (N, D)."""
    scale = StandardScaler().fit(normal)
    near = NearestNeighbors(n_neighbors=neighbours).fit(scale.transform(normal))
    return near.kneighbors(scale.transform(rows))[0].mean(1)


def cloud_distance(normal: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the squared Mahalanobis distance (T,) from the cloud of normal rows (N, D), covariance by Ledoit and Wolf."""
    scale = StandardScaler().fit(normal)
    return LedoitWolf().fit(scale.transform(normal)).mahalanobis(scale.transform(rows))


def logistic_on_difference(
    train: Mapping[str, np.ndarray],
    labels: Mapping[str, int],
    test: Mapping[str, np.ndarray],
    *,
    strength: float = 0.01,
) -> dict[str, float]:
    """Return {id: score in [0, 1]} of `test` videos by logistic regression on mean and max |row - row before|.

    `strength` is scikit-learn's C (small is smooth); it is fixed, not searched.
    """
    names = sorted(train)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
    model.fit([_summary(train[name]) for name in names], [labels[name] for name in names])
    return {name: float(model.predict_proba([_summary(rows)])[0, 1]) for name, rows in test.items()}


def _summary(rows: np.ndarray) -> np.ndarray:
    steps = np.abs(np.diff(rows, axis=0)) if len(rows) > 1 else np.zeros_like(rows)
    return np.concatenate([steps.mean(0), steps.max(0)])
