"""Rows of guard: what an answer depends on decides what is done; confidence, tokens and context are those of what was read."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from vau_lib import cli, guard
from vau_lib.data import answer_parsing, video
from vau_lib.toy import dataset as toy_dataset
from vau_lib.toy import tiny_vlm
from vau_lib.vlm import chat, finetuning, inference, models, video_input
from vau_lib.workspace import artifacts, presets

SMALL = tiny_vlm.TinySizes(width=32, vision_width=32, text_layers=1, vision_layers=1)
PLAN = guard.GuardPlan(num_frames=4, max_new_tokens=4, question="Is anything wrong?")


@pytest.fixture(scope="module")
def qwen():
    return tiny_vlm.tiny("qwen2_5_vl", sizes=SMALL)


@pytest.fixture
def folder(clip, tmp_path):
    place = tmp_path / "videos"
    place.mkdir()
    for name in "ab":
        shutil.copy(clip, place / f"{name}.mp4")
    return place


def watch(vlm, source, out=None, **options):
    return guard.guard(vlm, source, out, **({"plan": PLAN, "log": None, "progress": False} | options))


def lines(out):
    return [json.loads(line) for line in out.read_text().splitlines()]


# What is done


@pytest.mark.parametrize(
    "other",
    [
        dict(question="Who is there?"), dict(num_frames=6), dict(max_new_tokens=5), dict(keep_ratio=0.5), dict(as_video=True),
        dict(max_pixels=4000), dict(window_s=1.0), dict(keep_ratio=0.5, token_rule="spread"),
    ],
)  # fmt: skip
def test_another_question_or_input_is_not_done(qwen, folder, tmp_path, other):
    out = tmp_path / "rows.jsonl"
    first = watch(qwen, folder, out)
    assert watch(qwen, folder, out) == first and len(lines(out)) == 2, "the same is done"
    again = watch(qwen, folder, out, plan=replace(PLAN, **other))
    assert len(lines(out)) == 4 and [row["asked"] for row in again] != [row["asked"] for row in first]
    assert watch(qwen, folder, out) == first and len(lines(out)) == 4, "what was asked first is still there"


def test_the_tower_reads_few_moments_at_a_low_keep_ratio(qwen, folder):
    """Of 16 frames, eight moments, a quarter is encoded; a spread over all moments encodes more."""

    def encoded(**options):
        rows = []
        hook = qwen.model.model.visual.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
        watch(qwen, folder / "a.mp4", plan=replace(PLAN, num_frames=16, as_video=True, max_new_tokens=1, **options))
        hook.remove()
        return sum(rows)

    assert encoded(keep_ratio=0.25) == encoded() // 4 < encoded(keep_ratio=0.25, token_rule="spread")
    with pytest.raises(ValueError, match="token_rule must be one of few moments, spread, got 'many'"):
        watch(qwen, folder, plan=replace(PLAN, token_rule="many"))


def test_the_same_model_trained_anew_is_asked_again(folder, tmp_path):
    vlm = tiny_vlm.tiny("qwen2_5_vl", sizes=tiny_vlm.TinySizes(width=32, vision_width=32, text_layers=1, vision_layers=1))
    plan, ask = guard.GuardPlan(num_frames=2, max_new_tokens=2), guard.asked
    before = ask(vlm, plan)
    assert ask(vlm, plan) == before == ask(vlm.replace(model=vlm.model.to(torch.float32)), plan)
    with torch.no_grad():
        vlm.model.lm_head.weight.add_(0.5)
    assert {key for key, value in ask(vlm, plan).items() if before[key] != value} == {"weights"}


def test_a_file_of_another_models_answers_is_refused(qwen, folder, tmp_path):
    out = tmp_path / "rows.jsonl"
    watch(qwen, folder, out)
    with pytest.raises(artifacts.StoreError, match="rows.jsonl holds answers of tiny-.*; these would be of other .*: take another"):
        watch(qwen.replace(name="other"), folder, out)
    assert len(lines(out)) == 2


def test_another_file_under_the_same_name_is_not_done(qwen, folder, tmp_path):
    out = tmp_path / "rows.jsonl"
    first = watch(qwen, folder, out)
    video.write_video(folder / "b.mp4", np.full((40, 64, 64, 3), 90, np.uint8), fps=20)
    again = watch(qwen, folder, out)
    assert [row["id"] for row in lines(out)] == ["a.mp4", "b.mp4", "b.mp4"]
    assert again[0] == first[0] and again[1]["video_sha256"] != first[1]["video_sha256"]
    (folder / "a.mp4").touch()  # the same bytes at another time
    assert watch(qwen, folder, out) == again and len(lines(out)) == 3


def test_an_error_is_kept_until_retry_and_a_repaired_file_is_asked_anyway(qwen, folder, clip, tmp_path):
    out, said = tmp_path / "rows.jsonl", []
    (folder / "a.mp4").write_bytes(b"no film")
    assert [bool(row["error"]) for row in watch(qwen, folder, out, log=said.append)] == [True, False]
    assert "1 of 2 videos have an error; --retry asks them again" in said
    watch(qwen, folder, out)
    assert len(lines(out)) == 2
    watch(qwen, folder, out, retry=True)
    assert [row["id"] for row in lines(out)] == ["a.mp4", "b.mp4", "a.mp4"]
    shutil.copy(clip, folder / "a.mp4")
    assert not any(row["error"] for row in watch(qwen, folder, out))


@pytest.mark.parametrize("cut", [1, 2, 30, 200])
def test_a_cut_last_line_is_healed_inside_a_character_too(qwen, folder, tmp_path, cut):
    out = tmp_path / "rows.jsonl"
    (folder / "b.mp4").rename(folder / "zé—.mp4")
    whole = watch(qwen, folder, out)
    content = out.read_bytes().rstrip(b"\n")
    if cut == 2:
        cut = len(content) - content.rindex("é".encode()) - 1  # in the middle of é
    out.write_bytes(content[:-cut])
    assert [row["text"] for row in watch(qwen, folder, out)] == [row["text"] for row in whole]
    assert [row["id"] for row in lines(out)] == ["a.mp4", "zé—.mp4"]


def test_an_out_that_cannot_be_written_is_known_before_the_first_answer(qwen, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "generate_answers", lambda *_, **__: pytest.fail("asked"))
    (tmp_path / "file").write_text("x")
    for out in (tmp_path, tmp_path / "file/rows.jsonl"):
        with pytest.raises(artifacts.StoreError, match="^cannot write to "):
            watch(qwen, folder, out)
        words = ["guard", str(folder), "--model", "toy", "--out", str(out)]
        assert "cannot write to" in CliRunner().invoke(cli.app, words).output


def test_a_model_must_be_named(folder):
    done = CliRunner().invoke(cli.app, ["guard", str(folder)])
    assert done.exit_code == 1 and "--model is needed" in done.output and "toy" in done.output
    assert len(done.output.strip().splitlines()) == 1


def test_progress_never_stands_in_streamed_text(qwen, folder, capsys):
    pieces = []
    watch(qwen, folder, stream=pieces.append, progress=True, log=lambda line: None)
    assert pieces and capsys.readouterr().err == ""
    watch(qwen, folder, progress=True)
    assert "watching" in capsys.readouterr().err


# What a row holds


def test_confidence_is_the_probability_of_the_verdicts_tokens(tmp_path):
    """The shipped toy and its judge: probabilities of a plain forward over prompt and answer, visual tokens left out."""
    toy_dataset.make_dataset(tmp_path, num_videos=4, seed=771, splits={"test": 1.0})
    vlm = models.load(presets.project_path("data/toy_models/internvl"))
    vlm = finetuning.with_adapter(vlm, presets.project_path("data/toy_models/judge"), kind="toy")
    rows = guard.guard(vlm, tmp_path / "videos", plan=guard.GuardPlan(max_new_tokens=32, batch_size=4), log=None, progress=False)
    for row in rows:
        assert row["anomaly"] in (0, 1) and 0 < row["confidence"] <= 1
        frames, times_s = inference.uniform_frames(tmp_path / "videos" / row["id"], row["frames"])
        sample = chat.encode(vlm, frames, vlm.question, times_s=times_s, answer=row["text"])
        logits = vlm.model(**chat.to_model(vlm, {k: v for k, v in sample.items() if k != "labels"})).logits[0].float()
        logits[:, vlm.visual_token_ids] = -torch.inf
        ids = vlm.tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        begin = sample["input_ids"].shape[1] - len(ids) - 1  # behind the answer stands the end token
        assert begin == row["prompt_tokens"] and len(ids) == row["new_tokens"]
        each = [logits[begin - 1 + place].softmax(-1)[token].item() for place, token in enumerate(ids)]
        # the fewest tokens that give the verdict: it is the first thing that these answers state
        count = next(k for k in range(1, len(ids) + 1) if answer_parsing.parse_verdict(vlm.tokenizer.decode(ids[:k])) is not None)
        assert row["confidence"] == pytest.approx(np.prod(each[:count]), abs=2e-4)


@pytest.mark.parametrize(
    ("pieces", "verdict_pieces"),
    [
        (["A ", "man. ", '{"', "anomaly", '":', " ", "1", ', "kind": "fall"}'], ["1"]),
        (["Yes", ", a man falls."], ["Yes"]),
        (["The door. ", "There ", "is ", "no ", "anomaly", "."], ["There ", "is ", "no ", "anomaly"]),
        (['{"anomaly": ', "1", "} or rather ", '{"anomaly": ', "0", "}"], ["0"]),
        (["A dog", " runs."], None),
    ],
)
def test_the_tokens_of_a_verdict(pieces, verdict_pieces):
    found = answer_parsing.verdict_tokens(lambda count: "".join(pieces[:count]), len(pieces))
    assert (None if found is None else [pieces[place] for place in found]) == verdict_pieces


def test_each_window_is_asked_and_the_surest_anomaly_decides(qwen, tmp_path, monkeypatch):
    path = tmp_path / "long.mp4"
    video.write_video(path, np.zeros((110, 64, 64, 3), np.uint8), fps=10)  # 11 s
    said = iter(
        [('{"anomaly": 0}', 0.9), ('{"anomaly": 1, "kind": "fire", "from_s": 5, "to_s": 6}', 0.6), ('{"anomaly": 1}', 0.8)]
    )  # fmt: skip
    shown = []

    def answer(vlm, samples, **_):
        shown.append(vlm.tokenizer.decode(samples[0]["input_ids"][0]))
        return [inference.Answer(*next(said), 50, 5, False)]

    monkeypatch.setattr(inference, "generate_answers", answer)
    (row,) = watch(qwen, path, plan=replace(PLAN, window_s=4.0))
    assert [window["window_s"] for window in row["windows"]] == [[0.0, 4.0], [4.0, 8.0], [8.0, 11.0]]
    assert (row["anomaly"], row["confidence"], row["from_s"], row["to_s"]) == (1, 0.8, 8.0, 11.0)
    assert row["frames"] == 12 and (row["prompt_tokens"], row["new_tokens"]) == (150, 15)
    assert "Frame1 at 4.5s" in shown[1] and "Frame4 at 7.5s" in shown[1], "seconds of the whole video"


def test_windows_cover_a_video():
    assert video_input.windows(9, 4, 4) == [(0, 4), (4, 9)] and video_input.windows(3, 4, 4) == [(0, 3)]
    assert video_input.windows(10, 4, 4) == [(0, 4), (4, 8), (8, 10)]
    assert video_input.windows(10, 4, 3) == [(0, 4), (3, 7), (6, 10)]
    for length, step in ((0, 1), (4, 0), (4, 5)):
        with pytest.raises(ValueError, match="a window must be longer"):
            video_input.windows(10, length, step)


def test_frames_chosen_by_a_scorer_are_shown(clip, tmp_path):
    rows = tmp_path / "rows.jsonl"
    words = ["guard", str(clip), "--model", "toy", "--scorer", "data/toy_models/scorer", "--stride", "2", "--frames", "6"]
    done = CliRunner().invoke(cli.app, [*words, "--max-new-tokens", "16", "--out", str(rows)])
    assert done.exit_code == 0, done.output
    (row,) = lines(rows)
    assert row["frames"] == 6 and "stride 2" in row["asked"]["scorer"] and row["times_s"] == sorted(row["times_s"])


# Context and cost after pruning


def test_context_is_counted_after_pruning_and_the_cost_is_of_what_is_read(tmp_path):
    vlm, path = tiny_vlm.tiny("qwen2_5_vl", sizes=SMALL), tmp_path / "still.mp4"
    frames = np.full((40, 112, 112, 3), 120, np.uint8)
    frames[20:, 40:60, 40:60] = 250
    video.write_video(path, frames, fps=10)
    long = guard.GuardPlan(num_frames=16, max_new_tokens=4, question="Is anything wrong?")
    (row,) = watch(vlm, path, plan=long)
    whole = row["prompt_tokens"]
    visual = int(0.3 * 16) * 16  # of 16 frames of 16 tokens no more than .3 are encoded: four frames
    read = whole - 16 * 16 + visual
    vlm.model.config.text_config.max_position_embeddings = read + 4
    with pytest.raises(ValueError, match=str(whole)):
        watch(vlm, path, plan=long)
    said = []
    (row,) = watch(vlm, path, plan=replace(long, keep_ratio=0.3), log=said.append)
    assert row["prompt_tokens"] == read and f"{read} tokens in ({visual} visual)" in said[0]
    vlm.model.config.text_config.max_position_embeddings = read + 3
    with pytest.raises(ValueError, match=f"^{read} tokens that are read of {whole}, and 4 new ones exceed the {read + 3}"):
        watch(vlm, path, plan=replace(long, keep_ratio=0.3))
