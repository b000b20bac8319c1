"""Long videos of the toy data set: joined of short ones, in pairs that only the event tells apart, asked by way of frames."""

import numpy as np
import pandas as pd
import pytest

from vau_lib.data import records, video
from vau_lib.toy import long_videos, tiny_vlm
from vau_lib.vlm import inference

SMALL = tiny_vlm.TinySizes(width=32, vision_width=32, text_layers=1, vision_layers=1)
FPS, FRAMES = 2.0, 6


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Five worlds, a video with a fall from 1 to 2 s and one of a walk each; the brightness is the video's number."""
    root, found = tmp_path_factory.mktemp("worlds"), []
    for number in range(10):
        event = "fall" if number % 2 == 0 else "walk"
        name = f"1_{number:04d}_{event}"
        video.write_video(root / f"{name}.mp4", np.full((FRAMES, 56, 56, 3), 20 * number, np.uint8), fps=FPS, crf=1)
        spans = (records.Span(1.0, 2.0, "fall"),) if event == "fall" else ()
        found.append(records.VideoRecord(
            id=name, path=f"{name}.mp4", dataset="squares", split="test", label=int(event == "fall"), events=spans, fps=FPS,
            num_frames=FRAMES, group=f"world-{number // 2}",
        ))  # fmt: skip
    return root, found


def test_a_pair_differs_in_one_part_and_the_event_is_where_the_row_says(world):
    root, found = world
    rows = long_videos.join(root, found, parts=4)
    assert len(rows) == 10 and [row["label"] for row in rows[:4]] == [1, 0, 1, 0]
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        assert one["world"] == other["world"] and one["question"] == other["question"]
        levels = [video.read_frames(root / row["video"], range(4 * FRAMES)).mean((1, 2, 3)) for row in (one, other)]
        differs = np.abs(levels[0] - levels[1]) > 5
        assert differs.sum() == FRAMES and len(other["event"]) == 0 and not other["events"]
        begin = int(np.flatnonzero(differs)[0])
        assert one["event"].tolist() == [begin + 2, begin + 3]  # 1 to 2 s of the part, two frames a second
        assert one["events"][0].start_s == pytest.approx(begin / FPS + 1.0)
        assert "Fall" in one["answer"] and "No anomaly" in other["answer"]
    assert long_videos.true_span(root, rows[0], 2).tolist() == rows[0]["event"].tolist()
    with pytest.raises(ValueError, match="4 normal videos of other worlds are too few for 9 parts"):
        long_videos.join(root, found, parts=9)


def test_answers_are_counted_by_way_and_the_gain_is_paired(world, monkeypatch):
    """Answers by hand: the first way is right on normal videos only, the second names every fall."""
    root, found = world
    rows = long_videos.join(root, found, parts=4)
    toy_vlm = tiny_vlm.tiny("internvl", sizes=SMALL)
    given = [["No anomaly exists in the video."] * len(rows), [row["answer"] for row in rows]]
    monkeypatch.setattr(inference, "answers", lambda *_, **__: given.pop(0))
    ways = {"evenly": lambda row: np.arange(0, 24, 4), "true": lambda row: long_videos.true_span(root, row, 2)}
    judged = long_videos.judge(toy_vlm, root, rows, ways)
    even, true = (row for _, row in long_videos.summary(judged).iterrows())
    assert (even["judgement"], even["found"], even["no_false_alarm"]) == (0.5, 0.0, 1.0)
    assert (true["judgement"], true["named"], true["inside"], true["gain"]) == (1.0, 1.0, 1.0, 0.5)
    assert even["gain"] == 0 and true["gain_low"] == true["gain_high"] == 0.5, "every world gains a half"


def test_an_interval_is_over_worlds_not_over_videos():
    """Two worlds that disagree: a mean of a half, and nothing between 0 and 1 is excluded; many alike: no width."""
    mean, low, high = long_videos.world_interval([1, 1, 1, 1, 0, 0, 0, 0], list("aaaabbbb"))
    assert (mean, low, high) == (0.5, 0.0, 1.0)
    assert long_videos.world_interval([1, 0, 1, 0, 1, 0], list("aabbcc")) == (0.5, 0.5, 0.5)


def test_a_summary_keeps_the_order_of_the_ways():
    table = pd.DataFrame({
        "frames": ["z", "z", "a", "a"], "id": list("wxwx"), "world": ["u", "u", "u", "u"], "label": [1, 0, 1, 0],
        "answer": "", "right": [True, False, True, True], "named": False, "inside": [0.25, np.nan, 0.5, np.nan],
    })  # fmt: skip
    assert long_videos.summary(table)["frames"].tolist() == ["z", "a"]
    assert long_videos.summary(table)["gain"].tolist() == [0.0, 0.5]
