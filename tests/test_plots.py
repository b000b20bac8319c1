"""Figures say what they were given: marks, bars and bands are where the data are."""

import shutil

import matplotlib.colors as colors
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from vau_lib.data import records
from vau_lib.plots import confusion, curves, distributions, filmstrip, ranking, style, timeline


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
    titles = ["".join(axis.get_title(loc=place) for place in ("left", "center", "right")) for axis in (still, cut)]
    assert titles == ["still: keeps 12%, 38%", "cut: keeps 25%, 38%"]
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
    table = pd.DataFrame({"x": [0, 1], "y": [0.2, 0.4], "k": ["a", "a"]})
    drawn = [curves.lines(table, x="x", y="y", hue="k", title="a") for _ in range(2)]
    first, second = (style.save(one, tmp_path / str(n))[1].read_bytes() for n, one in enumerate(drawn))
    assert first == second and b"dc:date" not in first


LONG = "a data set of few videos: video AUC of the mean score of the seeds, 95 % over videos (XFeat, and what else it was)"


def test_a_long_title_lies_within_its_figure():
    table = pd.DataFrame({"x": [0.2, 0.4], "y": ["a", "b"], "k": ["a", "b"]})
    figures = [ranking.bars(table, x="x", y="y", title=LONG), confusion.matrix(1, 2, 3, 4, title=LONG)]
    figures += [curves.lines(table, x="x", y="x", hue="k", title=LONG), distributions.runs(table, x="x", y="k", title=LONG)]
    for figure in figures:
        figure.draw_without_rendering()
        box = figure._suptitle.get_window_extent()
        assert 0 <= box.x0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height
        assert repr(figure) == LONG


def test_names_of_several_lines_do_not_touch():
    table = pd.DataFrame({"x": [0.2, 0.4, 0.6], "y": [LONG, LONG + " too", "short"]})
    figure = ranking.bars(table, x="x", y="y")
    figure.draw_without_rendering()
    boxes = sorted((label.get_window_extent() for label in figure.axes[0].get_yticklabels()), key=lambda box: box.y0)
    assert all(lower.y1 <= upper.y0 for lower, upper in zip(boxes, boxes[1:], strict=False))
    assert [bar.get_width() for bar in sorted(figure.axes[0].patches, key=lambda bar: -bar.get_y())] == [0.2, 0.4, 0.6]


def test_an_interval_is_where_it_is_even_where_it_excludes_its_bar():
    rows = [["a", "which first", 0.9, 0.5, 0.8], ["b", "which first", 0.4, 0.3, 0.5], ["a", "nobody asked", np.nan, np.nan, np.nan]]
    table = pd.DataFrame(rows, columns=["method", "question", "accuracy", "low", "high"])
    figure = ranking.before_after(table, order=["a", "b"], guess={"which first": 0.5, "nobody asked": 0.1})
    (axis,) = figure.axes
    drawn = [tuple(np.round(part[:, 1], 6)) for container in axis.collections for part in container.get_segments()]
    assert drawn == [(0.5, 0.8), (0.3, 0.5)] and [label.get_text() for label in axis.get_xticklabels()] == ["which first"]


def test_a_panel_of_zeros_is_left_out():
    table = pd.DataFrame({"n": [8, 16], "recall": [0.1, 0.4], "duplicates": [0, 0], "rule": ["a", "a"]})
    figure = curves.by_number(table, x="n", columns=["recall", "duplicates"], hue="rule")
    assert [axis.get_ylabel() for axis in figure.axes] == ["recall"]


def test_a_story_shows_the_kinds_and_the_worst_two(tmp_path, clip):
    """The worst by score: the anomalous video that scores lowest, the normal one that scores highest."""
    shutil.copy(clip, tmp_path / "v.mp4")
    span = records.Span(0.4, 1.2, "fight")

    def made(name, label):
        return records.VideoRecord(name, "v.mp4", "x", "test", label, ("fight",) * label, (span,) * label, 25.0, 50)

    found = [made("a1", 1), made("a2", 1), made("n1", 0), made("n2", 0)]
    saved = {n: {"video": v, "scores": [v] * 10} for n, v in (("a1", 0.9), ("a2", 0.2), ("n1", 0.1), ("n2", 0.7))}
    shown, worst = timeline.story(found, saved, tmp_path, snippet_frames=5)
    assert [one.title for one in shown] == ["a1", "n1"] and [one.title for one in worst] == ["missed: a2", "false alarm: n2"]
    assert all(len(one.scores["score"]) == 50 and len(one.frames) == 5 for one in shown + worst)
    figure = timeline.panels(shown, title="story")
    curves = [axis for axis in figure.axes if axis.get_xlabel() == "time (s)"]
    assert len(curves) == 2 and len({axis.get_ylim() for axis in curves}) == 1  # one scale of scores
    assert timeline.story(found, saved, tmp_path / "nowhere", snippet_frames=5) == ([], [])


def test_the_name_of_a_panel_does_not_lie_on_its_seconds():
    frames = np.full((5, 24, 32, 3), 120, np.uint8)
    one = timeline.Panel("0_0124_car_park_barrier_vandalism", frames, np.linspace(0.6, 5.7, 5), {"score": np.ones(60)}, 10.0, ())
    figure = timeline.panels([one, one], title="story")
    figure.draw_without_rendering()
    shown = [axis.title if axis.get_title() else axis._left_title for axis in figure.axes if axis.images]
    boxes = [text.get_window_extent() for text in shown[:5]]
    name = boxes[0].y1 - boxes[0].height / 2  # the middle of two lines: the name is above it
    assert all(box.y1 <= name + 1 or box.x0 >= boxes[0].x1 for box in boxes[1:])
    assert [text.get_text().split("\n")[-1] for text in shown[:2]] == ["0.6 s", "1.9 s"]


def test_every_name_gets_its_line_or_there_is_a_refusal():
    """Eight rules of token selection are drawn; a ninth would have no colour of its own and was left out without a word before."""
    table = pd.DataFrame([(f"rule {n}", x, n) for n in range(9) for x in (0, 1)], columns=["who", "x", "y"])
    eight = table[table["y"] < 8]
    lines = curves.lines(eight, x="x", y="y", hue="who").axes[0].lines
    assert len({line.get_color() for line in lines}) == 8
    with pytest.raises(ValueError, match="at most 8 lines can be told apart, got 9 values of who"):
        curves.lines(table, x="x", y="y", hue="who")
