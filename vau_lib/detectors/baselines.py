"""Baselines on the same features: norm, temporal difference, nearest neighbours, Mahalanobis distance, logistic regression.

- without training: the norm of a feature and its temporal difference; nothing is fitted, nothing can leak
- fitted on normal features only: distance to the nearest ones, distance from their distribution
- fitted on labels: logistic regression on a video's temporal differences
A learned detector that does not beat them has learned nothing new: every results table here holds at least one of them.
Features are (T, D), scores (T,), higher is more anomalous.
"""

from collections.abc import Mapping

import numpy as np
from scipy.signal import find_peaks
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def energy(features: np.ndarray) -> np.ndarray:
    """Return the norm of each feature, (T,); the published MemTSM checkpoint orders videos by little else."""
    return np.linalg.norm(features, axis=1)


def difference(features: np.ndarray) -> np.ndarray:
    """Return the norm of each temporal difference x[t] - x[t - 1], (T,); the first repeats the second's."""
    if len(features) < 2:
        return np.zeros(len(features))
    steps = np.linalg.norm(np.diff(features, axis=0), axis=1)
    return np.concatenate([steps[:1], steps])


def own_distance(normal: np.ndarray, *, neighbours: int = 5) -> np.ndarray:
    """Return the distance (N,) of each normal feature (N, D) from the others, as `neighbour_distance` measures it.

    What is usual among them: a stated unit for the distances of other features.
    """
    return np.concatenate([
        neighbour_distance(np.delete(normal, n, axis=0), normal[n : n + 1], neighbours=min(neighbours, len(normal) - 1))
        for n in range(len(normal))
    ])  # fmt: skip


def peaks(scores: np.ndarray, *, count: int) -> list[int]:
    """Return the places of the highest local maxima of scores (T,), at most `count`, highest first; a flat top counts once."""
    places, _ = find_peaks(np.pad(scores, 1, constant_values=-np.inf))
    return sorted((int(place) - 1 for place in places), key=lambda place: -scores[place])[:count]


def neighbour_distance(normal: np.ndarray, features: np.ndarray, *, neighbours: int = 5) -> np.ndarray:
    """Return the mean distance (T,) to the nearest normal features (N, D); channels are standardised by the normal ones."""
    scale = StandardScaler().fit(normal)
    near = NearestNeighbors(n_neighbors=neighbours).fit(scale.transform(normal))
    return near.kneighbors(scale.transform(features))[0].mean(1)


def cloud_distance(normal: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Return the squared Mahalanobis distance (T,) from normal features (N, D), covariance by Ledoit and Wolf."""
    scale = StandardScaler().fit(normal)
    return LedoitWolf().fit(scale.transform(normal)).mahalanobis(scale.transform(features))


def logistic_on_difference(
    train: Mapping[str, np.ndarray], labels: Mapping[str, int], test: Mapping[str, np.ndarray], *, strength: float = 0.01,
    temporal_difference: bool = True,
) -> dict[str, float]:  # fmt: skip
    """Return {id: score in [0, 1]} of `test` videos: logistic regression on mean and maximum of |x[t] - x[t - 1]|.

    `strength` is scikit-learn's C (small is smooth); it is fixed, not searched. `temporal_difference` False takes mean and
    maximum of the features themselves, for those that are changes already (local change).
    """
    names = sorted(train)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
    model.fit([_summary(train[name], temporal_difference) for name in names], [labels[name] for name in names])
    return {name: float(model.predict_proba([_summary(x, temporal_difference)])[0, 1]) for name, x in test.items()}


def _summary(features: np.ndarray, temporal_difference: bool) -> np.ndarray:
    if temporal_difference:
        features = np.abs(np.diff(features, axis=0)) if len(features) > 1 else np.zeros_like(features)
    return np.concatenate([features.mean(0), features.max(0)])
