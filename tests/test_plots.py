"""Figures say what they were given: marks, bars and bands are where the data are."""

import matplotlib.colors as colors
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from vau_lib.plots import curves, distributions, filmstrip, style, timeline


def trace():
    rows = [
        {"scene": scene, "rule": rule, "clip": clip, "ratio": 3.0 if clip == cut else 0.5, "kept": clip in kept}
        for scene, cut in (("still", 0), ("cut", 5)) for rule, kept in (("ours", {0, cut}), ("theirs", {0, 1, 2}))
        for clip in range(8)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_key_clips_marks_what_each_rule_keeps():
    figure = timeline.key_clips(trace(), title="t")
    still, cut = figure.axes
    assert still.get_title() == "still: keeps 12%, 38%" and cut.get_title() == "cut: keeps 25%, 38%"
    assert [list(line.get_xdata()) for line in cut.lines[1:]] == [[0, 5], [0, 1, 2]]
    high = [bar for bar in cut.patches if bar.get_height() > 1]
    assert len(high) == 1 and colors.same_color(high[0].get_facecolor(), style.ANOMALOUS)


def test_lines_draw_one_line_per_name_and_the_truth_below():
    table = pd.DataFrame({"x": [1, 10, 1, 10], "y": [1.0, 2.0, 3.0, 4.0], "who": ["a", "a", "b", "b"]})
    figure = curves.lines(table, x="x", y="y", hue="who", logx=True, spans=[(2, 4)], marks=True)
    (axis,) = figure.axes
    assert [line.get_label() for line in axis.lines] == ["a", "b"] and axis.get_xscale() == "log"
    assert len(axis.patches) == 1 and isinstance(figure, Figure)


def test_a_spread_has_a_guide_only_where_chance_means_something():
    table = pd.DataFrame({"v": [0.1, 0.2, 0.4], "k": ["a", "a", "b"]})
    with_guide, without = (distributions.runs(table, x="v", y="k", guide=guide).axes[0] for guide in (0.5, None))
    assert len(with_guide.lines) == len(without.lines) + 1


def test_saved_figures_are_whole_and_in_two_formats(tmp_path):
    figure = filmstrip.frames(np.zeros((3, 12, 16, 3), np.uint8), ["a", "b", "c"])
    png, svg = style.save(figure, tmp_path / "deep" / "strip")
    assert Image.open(png).size[0] > 100 and svg.read_text().rstrip().endswith("</svg>")
