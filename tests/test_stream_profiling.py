"""Probes measure what they say: time per call, bytes that stay, what the past still does, how deep a stream looked."""

import numpy as np
import pytest
import torch

from vau_lib.data import records
from vau_lib.detectors import lshma, lshma_state, preprocessing, stream_profiling, trained_detector
from vau_lib.synthetic import feature_streams

WORLD = {"width": 16, "directions": 2, "rows": 240, "events": 1}
CONFIG = lshma_state.LSHMAConfig.ucf(width=16, exit_threshold=1.0)


@pytest.fixture(scope="module")
def cameras():
    return feature_streams.drifting_world(2, rng=np.random.default_rng(0), **WORLD)


def untrained(config):
    torch.manual_seed(0)
    fitted = preprocessing.Preprocessing.fit(
        {"a": np.random.default_rng(0).normal(size=(50, 16))}, steps=None, temporal_difference=False
    )
    return trained_detector.TrainedDetector(lshma.LSHMA(config).eval(), fitted, None)


def test_streams_together_score_as_alone(cameras):
    trained = untrained(CONFIG)
    together = stream_profiling.scores(trained, cameras)
    for camera in cameras:
        np.testing.assert_allclose(together[camera.id], trained.score(camera.features), atol=1e-5)
    longer = stream_profiling.scores(trained, cameras, memory=9)
    assert np.abs(longer[cameras[0].id] - together[cameras[0].id]).max() > 1e-6  # the memory's length is a choice


def test_the_past_stops_mattering_at_the_reach_and_never_when_frozen(cameras):
    reach_min = CONFIG.reach_snippets * records.ROW_S / 60
    forgets = stream_profiling.head_effect(untrained(CONFIG), *cameras, first=8)
    assert forgets["change"].iloc[0] > 1e-4
    assert forgets.loc[forgets["minute"] > reach_min + 8 * records.ROW_S / 60, "change"].max() < 1e-5
    frozen = lshma_state.LSHMAConfig.ucf(width=16, exit_threshold=1.0, frozen_memory=True)
    assert stream_profiling.head_effect(untrained(frozen), *cameras, first=8)["change"].iloc[-1] > 1e-5


def test_latency_is_the_time_of_a_call_per_stream(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(stream_profiling.time, "perf_counter", lambda: clock[0])

    class State:
        def num_bytes(self):
            return 40

    def step(clip, state):
        clock[0] += 0.004
        return clip, State()

    said = stream_profiling.latency(step, (4, 2, 2), calls=14)
    assert said["streams"] == 4 and said["state_bytes"] == 10 and said["p50_ms"] == pytest.approx(1.0)


def test_endurance_shows_a_state_that_grows():
    class State:
        def __init__(self, clips):
            self.clips = clips

        def num_bytes(self):
            return 8 * self.clips

    grows, _ = stream_profiling.endure(lambda c, s: (c, State(1 if s is None else s.clips + 1)), (1, 1, 1), clips=80, clip_s=1)
    assert grows["state_bytes"].is_monotonic_increasing and grows["state_bytes"].iloc[-1] == 640
    model = untrained(CONFIG).model
    steady, _ = stream_profiling.endure(model.step, (1, 4, 16), clips=80, clip_s=2)
    assert steady["state_bytes"].nunique() == 1 and steady["clips"].iloc[-1] == 80


def test_depths_are_shares(cameras):
    share = stream_profiling.exit_depths(untrained(CONFIG), cameras, (0.0, 1.0), snippets=42)
    assert share.loc[0.0, 1] == 1.0 and share.loc[1.0, 4] == 1.0
