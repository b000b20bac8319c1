"""One call watches a video, a folder or records; what is done stays done; bad input is one clear line."""

import json
import os
import shutil

import pytest
from typer.testing import CliRunner

from vau_lib import cli, guard
from vau_lib.data import records, video
from vau_lib.toy import dataset as toy_dataset
from vau_lib.toy import tiny_vlm
from vau_lib.vlm import inference, models

SMALL = tiny_vlm.TinySizes(width=32, vision_width=32, text_layers=1, vision_layers=1)
FEW = guard.GuardPlan(num_frames=4, max_new_tokens=4, question="Is anything wrong?")


@pytest.fixture(scope="module", params=models.FAMILIES)
def any_twin(request):
    return tiny_vlm.tiny(request.param, sizes=SMALL)


@pytest.fixture(scope="module")
def toy_vlm():
    return tiny_vlm.tiny("qwen2_5_vl", sizes=SMALL)


@pytest.fixture
def folder(clip, tmp_path):
    place = tmp_path / "videos"
    (place / "inside").mkdir(parents=True)
    for name in ("b.mp4", "a.mp4", "inside/c.mp4"):
        shutil.copy(clip, place / name)
    (place / "notes.txt").write_text("no video")
    return place


def watch(vlm, source, out=None, **options):
    return guard.guard(vlm, source, out, **({"plan": FEW, "log": None, "progress": False} | options))


def test_a_video_a_folder_and_records_are_the_same_call(any_twin, folder):
    (one,) = watch(any_twin, folder / "a.mp4")
    all_of_it = watch(any_twin, folder)
    listed = [
        records.VideoRecord(id=name, path=f"{name}.mp4", dataset="mine", split="test", label=0, fps=25.0, num_frames=50)
        for name in ("b", "a")
    ]
    records.write_records(folder / "records.jsonl", listed)
    by_records = watch(any_twin, folder / "records.jsonl")
    assert [row["id"] for row in all_of_it] == ["a.mp4", "b.mp4", "inside/c.mp4"]
    assert [row["id"] for row in by_records] == ["b", "a"]
    assert {row["text"] for row in [one, *all_of_it, *by_records]} == {one["text"]}
    assert len(one["times_s"]) == 4 and "toy" in one["model"] and one["error"] == ""


def test_videos_in_a_batch_are_answered_as_one_by_one(any_twin, folder):
    one_by_one = [row["text"] for row in watch(any_twin, folder)]
    wide = guard.GuardPlan(num_frames=4, max_new_tokens=4, question=FEW.question, batch_size=3)
    assert [row["text"] for row in watch(any_twin, folder, plan=wide)] == one_by_one


def test_the_text_can_be_watched_as_it_is_made(any_twin, clip):
    pieces = []
    (row,) = watch(any_twin, clip, stream=pieces.append)
    assert "".join(pieces).strip() == row["text"]


@pytest.mark.parametrize("keep_ratio", [0.5, 1.0])
def test_fewer_tokens_are_read_through_the_same_door(toy_vlm, clip, keep_ratio):
    few = guard.GuardPlan(num_frames=4, max_new_tokens=4, keep_ratio=keep_ratio, question=FEW.question)
    (row,) = watch(toy_vlm, clip, plan=few)
    assert row["keep_ratio"] == keep_ratio and isinstance(row["text"], str)


def test_frames_as_one_video_take_half_the_tokens(toy_vlm, clip):
    one_video = guard.GuardPlan(num_frames=4, max_new_tokens=4, question=FEW.question, as_video=True)
    (images,), (frames,) = watch(toy_vlm, clip), watch(toy_vlm, clip, plan=one_video)
    assert frames["prompt_tokens"] < images["prompt_tokens"] - 2 * 16 and isinstance(frames["text"], str)


def test_tokens_and_memory_are_logged_before_anything_is_generated(toy_vlm, clip):
    lines = []
    watch(toy_vlm, clip, log=lines.append)
    assert len(lines) == 1 and "tokens in" in lines[0] and "MiB" in lines[0]


def test_a_stopped_run_goes_on_and_asks_nothing_twice(toy_vlm, folder, tmp_path, monkeypatch):
    out, calls, real = tmp_path / "out.jsonl", [], inference.generate_answers

    def stops(*arguments, **options):
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr(inference, "generate_answers", stops)
    with pytest.raises(KeyboardInterrupt):
        watch(toy_vlm, folder, out)
    out.write_text(out.read_text() + '{"id": "cut of')  # a line the stop left half written
    monkeypatch.setattr(inference, "generate_answers", lambda *a, **o: (calls.append(1), real(*a, **o))[1])
    rows = watch(toy_vlm, folder, out)
    assert len(calls) == 3 and len(rows) == 3
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["a.mp4", "b.mp4", "inside/c.mp4"]


def test_a_broken_video_is_a_line_and_the_rest_goes_on(toy_vlm, folder):
    (folder / "a.mp4").write_bytes(b"no film")
    first, second, _ = watch(toy_vlm, folder)
    assert first["error"] and first["anomaly"] is None and not second["error"]


def test_a_name_that_is_no_text_is_a_line_and_the_rest_goes_on(toy_vlm, folder, tmp_path):
    (folder / "a.mp4").rename(folder / os.fsdecode(b"b_caf\xe9.mp4"))
    rows = watch(toy_vlm, folder, tmp_path / "rows.jsonl")
    assert [row["id"] for row in rows] == ["b.mp4", r"b_caf\xe9.mp4", "inside/c.mp4"]
    assert [bool(row["error"]) for row in rows] == [False, True, False] and "not UTF-8" in rows[1]["error"]
    assert watch(toy_vlm, folder, tmp_path / "rows.jsonl") == rows  # what was written reads back


def test_a_verdict_is_read_from_the_answer(toy_vlm, clip, monkeypatch):
    said = 'A person falls and stays down. {"anomaly": 1, "kind": "fall", "from_s": 1, "to_s": 2}'
    monkeypatch.setattr(inference, "generate_answers", lambda *a, **o: [inference.Answer(said, 0.9, 70, 20, False)])
    row = watch(toy_vlm, clip)[0]
    assert {key: row[key] for key in ("anomaly", "kind", "from_s", "to_s", "confidence")} == {
        "anomaly": 1, "kind": "fall", "from_s": 1.0, "to_s": 2.0, "confidence": 0.9,
    }  # fmt: skip
    assert "0 or 1" in guard.QUESTION and '"anomaly"' in guard.QUESTION


def asked(vlm, source, monkeypatch, **options) -> str:
    """Return the prompt that the model gets, as text."""
    prompts, nothing = [], inference.Answer("", None, 0, 0, False)
    monkeypatch.setattr(inference, "generate_answers", lambda _, samples, **__: prompts.extend(samples) or [nothing] * len(samples))
    watch(vlm, source, plan=guard.GuardPlan(num_frames=2, **options))
    return vlm.tokenizer.decode(prompts[0]["input_ids"][0])


def test_a_model_is_asked_as_in_its_tuning_and_another_as_a_guard_asks(any_twin, clip, monkeypatch):
    tuned = any_twin.replace(question="Did somebody fall?")
    assert "Did somebody fall?" in asked(tuned, clip, monkeypatch) and "JSON" not in asked(tuned, clip, monkeypatch)
    assert "End with one line of JSON" in asked(any_twin, clip, monkeypatch)
    assert "Who is there?" in asked(tuned, clip, monkeypatch, question="Who is there?"), "the user's question goes first"


def test_the_shipped_toy_gives_verdicts_with_the_question_of_its_tuning(tmp_path):
    """Six close-ups of worlds it never saw, through the command line's defaults: a verdict each, and not always the same."""
    toy_dataset.make_dataset(tmp_path, num_videos=6, seed=770, splits={"test": 1.0})
    out = tmp_path / "rows.jsonl"
    words = ["guard", str(tmp_path / "videos"), "--model", "toy", "--out", str(out), "--max-new-tokens", "32", "--batch", "6"]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.output
    verdicts = [json.loads(line)["anomaly"] for line in out.read_text().splitlines()]
    assert len(verdicts) == 6 and None not in verdicts and set(verdicts) == {0, 1}
    assert "no verdict" not in done.output and "toy" in done.output


def test_bad_input_is_one_clear_line(toy_vlm, folder, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="holds no video"):
        watch(toy_vlm, tmp_path / "none")
    with pytest.raises(ValueError, match="^no video, folder or records.jsonl at .*missing.mp4$"):
        watch(toy_vlm, tmp_path / "missing.mp4")
    with pytest.raises(ValueError, match="keep_ratio must be above 0 and at most 1, got 1.5"):
        watch(toy_vlm, folder, plan=guard.GuardPlan(num_frames=4, keep_ratio=1.5))
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        watch(toy_vlm, folder, plan=guard.GuardPlan(num_frames=4, batch_size=0))
    with pytest.raises(ValueError, match="cannot be watched: batch_size must be 1"):
        watch(toy_vlm, folder, plan=guard.GuardPlan(num_frames=4, batch_size=2), stream=print)
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(video.VideoError, match="empty.mp4"):
        watch(toy_vlm, tmp_path / "empty.mp4")
    with pytest.raises(ValueError, match="40 frames are more than max_frames=32"):
        watch(toy_vlm, folder, plan=guard.GuardPlan(num_frames=40))
