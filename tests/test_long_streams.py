"""A stream may run for ever: memory stays flat, the picture of its last hour can be drawn at any time."""

import gc
import weakref
from pathlib import Path
from types import FunctionType, ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from vau_lib import cascade, watch
from vau_lib.detectors import lshma, lshma_state


def tiny() -> lshma.LSHMA:
    return lshma.LSHMA(lshma_state.LSHMAConfig.ucf(width=8, window=2)).eval()


@pytest.mark.parametrize("step", [True, False])
def test_a_state_given_out_holds_no_graph_whoever_asks(step):
    model, state = tiny(), None
    for _ in range(3):
        _, state = model.step(torch.rand(1, 2, 8), state) if step else model.push(torch.rand(1, 3, 8), state)
        assert all(value.grad_fn is None and not value.requires_grad for value in state._tensors().values())
    model.train()
    assert model.push(torch.rand(1, 4, 8))[1]._tensors()["levels"].requires_grad  # training may go on through it


def test_a_thousand_clips_leave_no_tensor_behind():
    model, state, memories = lshma.LSHMA(lshma_state.LSHMAConfig.ucf(width=8, window=1, layers=1)).eval(), None, []
    for _ in range(1000):
        _, state = model.push(torch.rand(1, 1, 8), state)
        memories.append(weakref.ref(state.memory))
    assert sum(memory() is not None for memory in memories) == 1  # a graph held them all, 160 KB a clip


def clip_at(second: float, score: float) -> watch.ScoredClip:
    return watch.ScoredClip(np.array([second]), np.array([score], np.float32), 1, 1.0, 0.0, np.full((36, 64, 3), 90, np.uint8))


def test_a_stream_whose_highest_moments_are_over_an_hour_old_is_still_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "KEPT_SCORES", 40)
    report = watch.StreamReport(0.5)
    for second in range(200):
        report.add(clip_at(float(second), 0.99 if second < 8 else 0.1 + second / 1000))
    assert all(path.stat().st_size for path in report.draw(tmp_path / "hour.png", "camera $0 at $5"))
    assert [moment for moment, *_ in report.top_frames] == [199, 198, 197, 196, 195, 194]  # of what is drawn


def held(root: object) -> int:
    """Return how many objects can be reached from one, without code."""
    seen, ahead = {}, [root]
    while ahead:
        one = ahead.pop()
        if id(one) not in seen and not isinstance(one, type | ModuleType | FunctionType):
            seen[id(one)] = one
            ahead += gc.get_referents(one)
    return len(seen)


@pytest.mark.parametrize("unbounded", ["", "KEPT_SCORES", "KEPT_EVENTS", "KEPT_DELAYS"])
def test_reports_of_a_camera_hold_no_more_after_two_hundred_clips(unbounded, monkeypatch):
    for module, name in ((watch, "KEPT_SCORES"), (cascade, "KEPT_EVENTS"), (cascade, "KEPT_DELAYS")):
        monkeypatch.setattr(module, name, None if name == unbounded else 5)
    detector = cascade.Detector(Path(), SimpleNamespace(), None, 0.5, "by hand", "", "LSHMA", True)
    events, report, sizes = cascade.Cascade(detector, cascade.AnalysisPlan(), live=True), watch.StreamReport(0.5), []
    for number in range(400):
        clip = clip_at(20.0 * number, 0.9 - 0.8 * (number % 2))  # every other one is an event
        list(events.frames([(clip.ends_s[0], clip.frame)]))
        events.push(clip)
        report.add(clip)
        if number in (199, 399):
            sizes.append(held([events, report]))
    events.finish()
    assert sizes[1] - sizes[0] >= 100 if unbounded else abs(sizes[1] - sizes[0]) < 10, sizes  # this test sees a list without an end
