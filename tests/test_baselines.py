"""Baselines are computed by hand on a few numbers."""

import numpy as np
import pytest

from vau_lib.detectors import baselines


def test_norm_and_temporal_difference_by_hand():
    rows = np.array([[3.0, 4.0], [3.0, 4.0], [0.0, 0.0]])
    assert baselines.energy(rows).tolist() == [5.0, 5.0, 0.0]
    assert baselines.difference(rows).tolist() == [0.0, 0.0, 5.0]
    assert baselines.difference(rows[:1]).tolist() == [0.0]


def test_distance_to_the_nearest_normal_features_in_their_own_units():
    """Normal features at 0, 1, 2: std is sqrt(2/3), the two nearest of 10 are 2 and 1."""
    normal = np.array([[0.0], [1.0], [2.0]])
    found = baselines.neighbour_distance(normal, np.array([[10.0], [1.0]]), neighbours=2)
    assert found == pytest.approx(np.array([8.5, 0.5]) / np.sqrt(2 / 3))


def test_own_distance_leaves_each_feature_out():
    """Features at 0, 1, 2, 10: without itself 10 is 8 from the nearest, in units of the others' standard deviation."""
    found = baselines.own_distance(np.array([[0.0], [1.0], [2.0], [10.0]]), neighbours=1)
    assert found[3] == pytest.approx(8 / np.std([0, 1, 2])) and found[0] == pytest.approx(1 / np.std([1, 2, 10]))


def test_peaks_are_the_highest_local_maxima_and_a_flat_top_is_one():
    assert baselines.peaks(np.array([5.0, 1.0, 3.0, 3.0, 2.0, 4.0]), count=2) == [0, 5]
    assert baselines.peaks(np.array([1.0, 3.0, 3.0, 2.0]), count=5) == [1]
    assert baselines.peaks(np.zeros(0), count=3) == []
