"""Drawings of the systems: every word stands inside its box, no two boxes meet, every arrow has two ends."""

import itertools

import pytest
from matplotlib.patches import FancyBboxPatch

from vau_lib.detectors.memtsm import MemTSMConfig
from vau_lib.plots import schematics


@pytest.mark.parametrize("name", schematics.SYSTEMS)
def test_a_drawing_can_be_read(name):
    figure = schematics.draw(name)
    figure.canvas.draw()
    axis, system = figure.axes[0], schematics.SYSTEMS[name]
    boxes = [patch.get_window_extent() for patch in axis.patches if isinstance(patch, FancyBboxPatch)]
    assert len(boxes) == len(system.boxes)
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    words = {text.get_text(): text.get_window_extent() for text in axis.texts if text.get_text()}
    for box, extent in zip(system.boxes.values(), boxes, strict=True):
        inside = words[box.words]
        assert extent.x0 <= inside.x0 and inside.x1 <= extent.x1 and extent.y0 <= inside.y0 and inside.y1 <= extent.y1, box.words
    for start, end, _ in system.arrows:
        assert start in system.boxes and end in system.boxes
    reached = {end for _, end, _ in system.arrows} | {start for start, _, _ in system.arrows}
    assert reached == system.boxes.keys() and repr(figure) == system.title


def test_the_drawing_counts_what_the_model_has():
    assert f"{MemTSMConfig().slots} slots" in schematics.SYSTEMS["memtsm"].boxes["memory"].words


def test_an_unknown_system_is_named():
    with pytest.raises(ValueError, match="memtsm, lshma, holmes_vau, memories_s0, got 'x'"):
        schematics.draw("x")
