"""What HIVAU-70k says arrives whole, with its seconds; what does not fit is numbered; files are cut and checked."""

import json
import os
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pandas as pd
import pytest
from conftest import moving_square

from vau_lib.data import answer_parsing, datasets, hivau, hivau_clips, records, video
from vau_lib.data.records import RecordError, Span
from vau_lib.plots import distributions

TEST_ROW = {"id": 3, "type": "clip", "task": "caption", "video": "ucf-crime/clips/test/A_E0C1.mp4", "prompt": "What?",
            "anwser": "A dog."}  # fmt: skip
TRAIN_ROW = {"id": 4, "type": "event", "task": "judgement", "video": "xd-violence/events/train/v=1__#1_label_A_E2.mp4",
             "conversations": [{"from": "human", "value": "<video>\nIs it?"}, {"from": "gpt", "value": "No."}]}  # fmt: skip
PART = {"judgement": "An anomaly exists.", "description": "A dog bites."}


def written(tmp_path, *rows, name="rows.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def raw(tmp_path, **changes):
    """A raw annotation of two videos, 50 frames at 25 per second: the second is normal and has events all the same."""
    entry = {"n_frames": 50, "fps": 25.0, "label": ["Abuse"], "events": [[0.4, 1.2]], "clips": [[[0.4, 0.8], [0.8, 1.6]]],
             "clips_caption": [["One.", "Two."]], "events_summary": ["An anomaly exists. A dog bites."],
             "video_summary": "x", "events_summary_split": [PART], "video_summary_split": PART} | changes  # fmt: skip
    return written(tmp_path, {"A": entry, "N": entry | {"label": []}}, name="ucf_database_test.json")


def test_both_schemas_give_the_same_kind_of_row(tmp_path):
    clip, event = hivau.hivau_instructions(written(tmp_path, TEST_ROW, TRAIN_ROW))
    assert (clip.id, clip.level, clip.task, clip.answer, clip.event, clip.clip) == ("3", "clip", "caption", "A dog.", 0, 1)
    assert clip.video == "ucf-crime/videos/test/A.mp4" and clip.split == "test" and clip.dataset == "ucf_crime"
    assert (event.question, event.answer, event.event, event.clip) == ("Is it?", "No.", 2, None)
    assert event.video_id == "v=1__#1_label_A" and event.split == "train"


def test_the_right_spelling_is_read_too(tmp_path):
    row = {key: value for key, value in TEST_ROW.items() if key != "anwser"} | {"answer": "A cat."}
    assert hivau.hivau_instructions(written(tmp_path, row))[0].answer == "A cat."


@pytest.mark.parametrize(
    "row, said",
    [
        ('{"id": 1, "type"', "broken json"),
        ("[1]", "expected an object, got list"),
        (TEST_ROW | {"task": "poem"}, "got task 'poem'"),
        (TEST_ROW | {"type": "scene"}, "got 'scene'"),
        (TEST_ROW | {"task": "analysis"}, "got task 'analysis'"),
        (TEST_ROW | {"anwser": "  "}, "answer is empty"),
        (TEST_ROW | {"prompt": None}, "question is empty"),
        (TEST_ROW | {"video": "ucf-crime/events/test/A_E0.mp4"}, "does not fit its file"),
        (TEST_ROW | {"video": "ucf-crime/../test/A_E0C1.mp4"}, "expected <subset>"),
        (TRAIN_ROW | {"conversations": []}, "one message of human and one of gpt"),
        ({"id": 1}, "no 'type'"),
        (TEST_ROW | {"id": 9}, "id 9 is there twice"),
    ],
)
def test_a_bad_row_is_numbered_and_the_rest_goes_on(row, said, tmp_path):
    path = written(tmp_path, TEST_ROW | {"id": 9}, row, TRAIN_ROW)
    found = hivau.hivau_instructions(path)
    assert [r.id for r in found] == ["9", "4"] and len(found.problems) == 1
    assert found.problems[0].startswith("rows.jsonl line 2: ") and said in found.problems[0]
    with pytest.raises(RecordError, match="rows.jsonl line 2: "):
        hivau.hivau_instructions(path, strict=True)


def test_only_a_labelled_video_has_positive_frames(tmp_path):
    anomalous, normal = hivau.hivau_raw(raw(tmp_path))
    assert records.frame_labels(anomalous).nonzero()[0].tolist() == list(range(10, 30))
    assert not records.frame_labels(normal).any() and len(normal.segments) == 1
    assert anomalous.classes == ("abuse",) and anomalous.clips[0][1].text == "Two."


def test_a_raw_video_that_does_not_add_up_is_named(tmp_path):
    found = hivau.hivau_raw(raw(tmp_path, clips_caption=[["One."]]))
    assert not found and found.problems[0].startswith("ucf_database_test.json, A: event 0 has 2 clips and 1 captions")
    assert "lists of different lengths" in hivau.hivau_raw(raw(tmp_path, events_summary=[])).problems[0]
    assert "no 'fps'" in hivau.hivau_raw(written(tmp_path, {"A": {"events": []} | dict.fromkeys(
        ("clips", "clips_caption", "events_summary", "events_summary_split"), []) | {"video_summary_split": PART,
        "label": []}}, name="xd_database_train.json")).problems[0]  # fmt: skip
    with pytest.raises(RecordError, match="say subset"):
        hivau.hivau_raw(written(tmp_path, {}, name="mine.json"))


def test_a_clip_is_seconds_of_its_source(tmp_path):
    rows = hivau.hivau_instructions(written(tmp_path, TEST_ROW, TEST_ROW | {"id": 5, "video": "ucf-crime/clips/test/A_E0C7.mp4"}))
    found = hivau.with_spans(rows, hivau.hivau_raw(raw(tmp_path)))
    assert (found[0].span.start_s, found[0].span.end_s) == (0.8, 1.6)
    assert found.problems == ("5: A has no event 0 clip 7",)


def test_samples_come_back_as_they_were(tmp_path):
    rows = hivau.with_spans(hivau.hivau_instructions(written(tmp_path, TEST_ROW)), hivau.hivau_raw(raw(tmp_path)))
    hivau.write_samples(tmp_path / "out.jsonl", rows)
    again = hivau.read_samples(tmp_path / "out.jsonl")
    assert [(r.id, r.answer, r.span.end_s, r.video) for r in again] == [("3", "A dog.", 1.6, rows[0].video)]
    keys = {"id", "level", "task", "video", "span_s", "question", "answer", "split"}
    assert keys <= set(json.loads((tmp_path / "out.jsonl").read_text()))
    with pytest.raises(records.RecordError, match=r"^\S+none.jsonl is not made yet: notebook 08 makes it \(vau run .*--with-needs"):
        hivau.read_samples(tmp_path / "none.jsonl")


def test_quality_names_what_is_odd(tmp_path):
    denied = {"judgement": "No anomaly exists.", "description": "x"}
    found = hivau.quality(hivau.hivau_raw(raw(tmp_path, video_summary_split=denied)))
    assert found.clips_outside_event == ("A E0C1", "N E0C1")  # the clip ends at 1.6, its event at 1.2
    assert found.anomalous_judged_normal == ("A",) and found.normal_judged_anomalous == ()


def test_the_released_script_loses_the_last_frame():
    span = Span(0.4, 2.0)
    assert hivau_clips.segment_frames(span, 25, 50) == range(10, 50)
    assert hivau_clips.segment_frames(span, 25, 50, released=True) == range(10, 49)


@pytest.fixture
def tree(tmp_path):
    """A folder as HIVAU's: one video on its place, one that is no video, one missing."""
    root = tmp_path / "videos"
    video.write_video(root / "ucf-crime/videos/test/A.mp4", moving_square(50, 33 * 2, 48), fps=25)
    (root / "ucf-crime/videos/test/N.mp4").write_bytes(b"nothing")
    return root


def test_files_are_cut_kept_and_playable(tree, tmp_path):
    import av

    anomalous = hivau.hivau_raw(raw(tmp_path))[:1]
    first = hivau_clips.split(anomalous, tree, tree)
    assert [(o.status, o.num_frames) for o in first] == [("written", 20), ("written", 10), ("written", 20)]
    with av.open(str(tree / first[1].file)) as file:
        assert (file.streams.video[0].codec_context.name, file.streams.video[0].pix_fmt) == ("h264", "yuv420p")
    source = video.read_frames(tree / anomalous[0].path, [10, 29]).astype(int)
    cut = video.read_frames(tree / first[0].file, [0, 19]).astype(int)
    assert np.abs(source - cut).mean() < 6  # coded twice
    (tree / first[1].file).write_bytes(b"half a file")
    assert [o.status for o in hivau_clips.split(anomalous, tree, tree)] == ["kept", "written", "kept"]


def test_what_cannot_be_cut_is_reported_and_the_rest_goes_on(tree, tmp_path):
    found = hivau.hivau_raw(raw(tmp_path, clips=[[[0.40, 0.41], [0.8, 1.2]]]))
    (tree / "ucf-crime/videos/test/N.mp4").write_bytes(b"nothing")
    done = hivau_clips.split(found, tree, tree, engine="processes")
    status = {o.file.split("/")[-1]: o.status for o in done}
    assert status == {"A_E0.mp4": "written", "A_E0C0.mp4": "empty", "A_E0C1.mp4": "written", "N_E0.mp4": "broken",
                      "N_E0C0.mp4": "broken", "N_E0C1.mp4": "broken"}  # fmt: skip
    assert {o.why for o in done if o.status == "empty"} == {"no frame in 0.4-0.41 s"}


def test_check_says_what_is_missing_and_why(tree, tmp_path):
    names = ["clips/test/A_E0C0", "clips/test/A_E0C1", "events/test/A_E0"]
    kinds = [("clip", "caption"), ("clip", "caption"), ("event", "judgement")]
    rows = [TEST_ROW | {"id": n, "type": kind, "task": task, "video": f"ucf-crime/{name}.mp4"}
            for n, (name, (kind, task)) in enumerate(zip(names, kinds, strict=True))]  # fmt: skip
    rows += [TEST_ROW | {"id": 8, "type": "video", "task": "judgement", "video": f"ucf-crime/videos/test/{v}.mp4"} for v in "N"]
    rows += [TEST_ROW | {"id": 9, "type": "video", "task": "judgement", "video": "ucf-crime/videos/test/Z.mp4"}]
    videos = hivau.hivau_raw(raw(tmp_path))
    hivau_clips.split(videos[:1], tree, tree, levels=["clip"])
    video.write_video(tree / "ucf-crime/clips/test/A_E0C1.mp4", moving_square(7), fps=25)
    found = hivau_clips.check(hivau.hivau_instructions(written(tmp_path, *rows)), tree, videos=videos)
    assert [o.status for o in found] == ["right", "wrong", "missing", "broken", "missing"]
    assert found[1].why == "7 frames, annotated 20" and found[2].why == "not cut yet, its source A.mp4 is there"
    assert found[4].why == "no file ucf-crime/videos/test/Z.mp4"
    assert {"split": "test", "level": "clip"}.items() <= hivau_clips.summary(found)[0].items()


def test_a_link_to_nowhere_is_called_so(tmp_path):
    (tmp_path / "ucf-crime").mkdir()
    os.symlink("/home/nobody/videos", tmp_path / "ucf-crime" / "videos")
    row = TEST_ROW | {"type": "video", "task": "judgement", "video": "ucf-crime/videos/test/Z.mp4"}
    (found,) = hivau_clips.check(hivau.hivau_instructions(written(tmp_path, row)), tmp_path)
    assert found.status == "missing" and "a link to nowhere" in found.why


@pytest.fixture(scope="session")
def released(real_data):
    folder = real_data / "annotations" / "hivau70k"
    rows = hivau.hivau_instructions(folder / "merge_instruction_test_final.jsonl", strict=True)
    return rows, hivau.hivau_raw(folder / "ucf_database_test.json", strict=True)


@pytest.mark.real
def test_every_released_test_row_is_read(released):
    rows, _ = released
    assert len(rows) == 3339
    assert hivau.counts(rows) == {  # counted in the released file, and the sums of the paper's section 5.1
        ("clip", "caption"): 2207, ("event", "judgement"): 276, ("event", "description"): 276, ("event", "analysis"): 182,
        ("video", "judgement"): 150, ("video", "description"): 150, ("video", "analysis"): 98,
    }  # fmt: skip
    assert len(hivau.distinct(r for r in rows if r.level == "clip")) == 943
    judged = [r.answer for r in rows if r.task == "judgement"]
    assert sum(answer_parsing.parse_verdict(text) == 0 for text in judged) == 170
    assert sum(answer_parsing.parse_verdict(text) == 1 for text in judged) == len(judged) - 170


@pytest.mark.real
def test_the_seventeen_released_train_rows_are_read(real_data):
    rows = hivau.hivau_instructions(real_data / "annotations/hivau70k/instruction_train_first17.jsonl", strict=True)
    assert len(rows) == 17 and {r.split for r in rows} == {"train"} and not any("<video>" in r.question for r in rows)


@pytest.mark.real
def test_instructions_and_raw_annotation_agree(released):
    """Every UCF answer of the instruction file is the text the raw annotation has at the place its file name says."""
    rows, videos = released
    known = {v.id: v for v in videos}
    for row in (r for r in rows if r.dataset == "ucf_crime"):
        v = known[row.video_id]
        if row.level == "clip":
            assert v.clips[row.event][row.clip].text == row.answer
        else:
            assert (v.part if row.level == "video" else v.parts[row.event])[row.task] == row.answer


@pytest.mark.real
def test_frame_labels_agree_with_the_official_list_where_hivau_does(released, real_data):
    official = {r.id: r for r in datasets.ucf_crime(real_data / "gt/ucf_crime/UCF_Annotation_with_nframes.txt")}
    anomalous, same_events, same_frames = [v for v in released[1] if v.label], set(), set()
    for v in anomalous:
        theirs, ours = [[(round(e.start_s * 30), round(e.end_s * 30)) for e in r.events] for r in (official[v.id], v)]
        if theirs == ours:
            same_events.add(v.id)
        if np.array_equal(records.frame_labels(v), records.frame_labels(official[v.id], v.num_frames)):
            same_frames.add(v.id)
    # 12 of 128 have other events; 6 of those only repeat a tail that lies outside the video, so no frame differs
    assert (len(anomalous), len(same_events), len(same_frames)) == (128, 116, 122) and same_events <= same_frames
    assert not any(records.frame_labels(v).any() for v in released[1] if not v.label)


@pytest.mark.real
def test_the_quality_report_finds_what_was_counted(released):
    found = hivau.quality(released[1], released[0])
    assert (len(found.clips_outside_event), len(found.events_judged_normal)) == (80, 11)
    assert found.anomalous_judged_normal == ("RoadAccidents128_x264", "Shooting024_x264", "Shooting033_x264")
    assert found.normal_judged_anomalous == ("Normal_Videos_210_x264",)
    assert (found.clip_rows, found.clip_files) == (2207, 943)


@pytest.mark.real
def test_a_real_crime_video_is_cut_and_checked(released, real_data, tmp_path):
    (record,) = [v for v in released[1] if v.id == "Robbery102_x264"]
    place = tmp_path / record.path
    place.parent.mkdir(parents=True)
    place.write_bytes((real_data / "videos/ucf_crime/Robbery102_x264.mp4").read_bytes())
    done = hivau_clips.split([record], tmp_path, tmp_path, levels=["clip"])
    assert {o.status for o in done} == {"written"}
    frames = video.probe(place).num_frames
    for outcome, clip in zip(done, (c for of in record.clips for c in of), strict=True):
        wanted = len(hivau_clips.segment_frames(clip, record.fps, frames))
        assert abs(video.probe(tmp_path / outcome.file).num_frames - wanted) <= 1


def test_the_figure_counts_each_segment_once(tmp_path):
    table = pd.DataFrame(
        [{"level": "event", "task": task, "words": 5, "seconds": 2.0} for task in hivau.TASKS["event"]]
        + [{"level": "clip", "task": "caption", "words": 9, "seconds": float("nan")}]
    )
    bars, seconds, words = distributions.instruction_statistics(table, title="toy").axes
    assert [patch.get_width() for patch in bars.patches] == [1, 1, 1, 1]
    assert [text.get_text() for text in seconds.get_legend().get_texts()] == ["event (median 2)"]
    assert len(words.get_legend().get_texts()) == 2


def test_a_dead_worker_is_no_silence(tree, tmp_path, monkeypatch):
    def dying(*_, **__):
        raise BrokenProcessPool("a process was killed")
        yield

    monkeypatch.setattr(hivau_clips.parallel, "map_videos", dying)
    with pytest.raises(RuntimeError, match="a worker died, 2 videos are unfinished .A, ….; run again"):
        hivau_clips.split(hivau.hivau_raw(raw(tmp_path)), tree, tree)
