"""Truth is made in one place, in half-open seconds, and no path leaves its root."""

import numpy as np
import pytest

from vau_lib.data import records
from vau_lib.data.records import Span, VideoRecord


def record(**changes):
    base = dict(id="a", path="v/a.mp4", dataset="toy", split="train", label=1, events=(Span(1.0, 2.0, "fall"),), fps=10.0)
    return VideoRecord(**{**base, "num_frames": 30, **changes})


def test_frames_of_an_event_are_half_open():
    labels = records.frame_labels(record())
    assert labels.dtype == np.uint8 and np.flatnonzero(labels).tolist() == list(range(10, 20))


def test_labels_are_cut_to_the_decoded_length():
    assert records.frame_labels(record(), 15).sum() == 5
    with pytest.raises(records.RecordError, match="a: frame labels need"):
        records.frame_labels(record(num_frames=0))


def test_frames_survive_the_trip_through_seconds():
    for fps in (24.0, 25.0, 29.97, 30.0):
        span = Span(1080 / fps, 1560 / fps)
        assert np.flatnonzero(records.frame_labels(record(events=(span,), fps=fps), 1827))[[0, -1]].tolist() == [1080, 1559]


@pytest.mark.parametrize("path", ["../secret.mp4", "/etc/passwd", "v/../../x.mp4"])
def test_a_path_may_not_climb_out(path, tmp_path):
    with pytest.raises(records.RecordError, match="a: path .* leaves its root"):
        records.locate(record(path=path), tmp_path)


def test_a_link_out_of_the_root_is_refused(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "outside.mp4").write_bytes(b"x")
    (tmp_path / "root" / "in.mp4").symlink_to(tmp_path / "outside.mp4")
    with pytest.raises(records.RecordError):
        records.locate(record(path="in.mp4"), tmp_path / "root")


def test_records_come_back_equal(tmp_path):
    written = [record(classes=("Fall",), group="cam1"), record(id="b", label=0, events=())]
    records.write_records(tmp_path / "records.jsonl", written)
    assert records.read_records(tmp_path / "records.jsonl") == written


@pytest.mark.parametrize("line", ["{", '{"id": "a"}', "[1]", '{"id": "a", "events": [{"start_s": 5, "end_s": 1}]}'])
def test_a_broken_line_is_named(line, tmp_path):
    (tmp_path / "r.jsonl").write_text(line + "\n")
    with pytest.raises(records.RecordError, match="r.jsonl line 1"):
        records.read_records(tmp_path / "r.jsonl")


def test_a_source_in_two_splits_is_a_leak():
    clips = [record(group="cam1"), record(id="b", group="cam1", split="test"), record(id="c", group="cam2", split="test")]
    assert records.leaks(clips) == ["cam1"]
    assert records.leaks(clips[1:]) == []


def test_the_story_is_the_first_test_video_of_each_kind():
    def made(name, split="test", classes=()):
        return records.VideoRecord(name, f"{name}.mp4", "x", split, int(bool(classes)), classes, (), 10.0, 30)

    found = [
        made("d", classes=("fight",)),
        made("b", classes=("fight",)),
        made("c", classes=("fall",)),
        made("z"),
        made("a", "train"),
    ]
    assert [r.id for r in records.story(found)] == ["c", "b", "z"]
    assert [r.id for r in records.story(found, split="train")] == ["a"] and records.story([]) == []
