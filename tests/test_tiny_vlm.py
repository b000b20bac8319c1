"""A tiny model is of the real class, saves, loads and generates; its vision is pretrained on frames."""

import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import InternVLForConditionalGeneration, Qwen2_5_VLForConditionalGeneration

from vau_lib.data import annotation, answer_parsing, hivau, records, video
from vau_lib.toy import benchmark as toy_benchmark
from vau_lib.toy import dataset as toy_dataset
from vau_lib.toy import pretraining, tiny_vlm
from vau_lib.vlm import chat, inference, instruction_data, models
from vau_lib.workspace import artifacts

FRAMES = np.random.default_rng(0).integers(0, 255, (4, 56, 56, 3), dtype=np.uint8)
SMALL = tiny_vlm.TinySizes(width=32, vision_width=32, text_layers=1, vision_layers=1)


@pytest.fixture(params=models.FAMILIES)
def tiny(request):
    return tiny_vlm.tiny(request.param, sizes=SMALL)


def test_a_tiny_model_is_of_the_real_class_and_says_that_it_is_random(tiny):
    real = {"internvl": InternVLForConditionalGeneration, "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration}
    assert type(tiny.model) is real[tiny.family]
    assert sum(p.numel() for p in tiny.model.parameters()) < 1_000_000
    assert tiny.label == f"tiny-{tiny.family} (toy, random weights)"


def test_an_unknown_family_is_refused():
    with pytest.raises(ValueError, match="family must be one of internvl, qwen2_5_vl, got 'llava'"):
        tiny_vlm.tiny("llava")


def test_the_seed_decides_the_weights_and_leaves_the_outer_generator_alone():
    torch.manual_seed(1)
    outside = torch.rand(1)
    torch.manual_seed(1)
    first, again, other = (tiny_vlm.tiny("internvl", sizes=SMALL, seed=seed).model.lm_head.weight for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.rand(1), outside)


def test_save_and_load_give_the_same_tokens_and_logits(tiny, tmp_path):
    place = models.save(tiny, tmp_path / "model", note="nothing")
    back = models.load(place, dtype=torch.float32, local_only=True)
    turns = [chat.encode(s, FRAMES, "What happened?", times_s=range(4), answer="A fall.") for s in (tiny, back)]
    assert all(torch.equal(turns[0][key], turns[1][key]) for key in turns[0])
    assert back.label == tiny.label and back.family == tiny.family
    with torch.inference_mode():
        assert torch.equal(tiny.model(**turns[0]).logits, back.model(**turns[1]).logits)


def test_saving_does_not_replace_what_is_no_model(tiny, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ValueError, match="holds something else"):
        models.save(tiny, tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_the_tokenizer_loses_no_text(tiny):
    for text in ("An anomaly exists, specifically, the anomaly is named Car Accident.", "Überfall at 12.5s: 异常 \n\n x"):
        ids = tiny.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tiny.tokenizer.decode(ids) == text
    assert len(tiny.tokenizer(toy_dataset.NEGATIVE)["input_ids"]) < 12, "its own world's answers are short"


def test_a_frame_is_sixteen_tokens_for_both_families(tiny):
    turn = chat.encode(tiny, FRAMES, "What happened?")
    mark = tiny.processor.image_token_id
    assert (turn["input_ids"] == mark).sum() == 4 * 16


def test_templates_take_parts_too(tiny):
    parts = [{"type": "image"}, {"type": "text", "text": "What happened?"}]
    text = tiny.processor.apply_chat_template([{"role": "user", "content": parts}], tokenize=False)
    assert text.count(tiny.processor.image_token) == 1 and "What happened?<|im_end|>" in text


@pytest.mark.parametrize(("step_s", "expected"), [(0.5, [0, 2]), (1.0, [0, 4]), (0.25, [0, 1])])
def test_a_video_input_carries_its_clock(step_s, expected):
    """Qwen2.5-VL places a pair of frames at seconds x tokens_per_second (2 here): pairs 2 x step apart."""
    tiny = tiny_vlm.tiny("qwen2_5_vl", sizes=SMALL)
    turn = chat.encode(tiny, FRAMES, "What?", times_s=np.arange(4) * step_s, as_video=True)
    grid = dict(video_grid_thw=turn["video_grid_thw"], second_per_grid_ts=turn["second_per_grid_ts"])
    position, _ = tiny.model.model.get_rope_index(
        turn["input_ids"], mm_token_type_ids=turn["mm_token_type_ids"], attention_mask=turn["attention_mask"], **grid
    )
    inside = turn["input_ids"] == tiny.processor.video_token_id
    when = position[0][inside]
    assert sorted(set((when - when.min()).tolist())) == expected


def test_a_video_input_needs_even_steps_and_the_right_family():
    qwen, intern = (tiny_vlm.tiny(family, sizes=SMALL) for family in ("qwen2_5_vl", "internvl"))
    with pytest.raises(ValueError, match="evenly spaced"):
        chat.encode(qwen, FRAMES, "What?", times_s=[0, 1, 2, 7], as_video=True)
    with pytest.raises(ValueError, match="without a clock"):
        chat.encode(qwen, FRAMES, "What?", as_video=True)
    with pytest.raises(ValueError, match="reads frames as images"):
        chat.encode(intern, FRAMES, "What?", times_s=range(4), as_video=True)


# The close-ups


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("closeups")
    return root, toy_dataset.make_dataset(root, num_videos=12, splits={"train": 0.5, "val": 0.25, "test": 0.25})


def test_worlds_stay_whole_and_every_split_has_both_classes(world):
    _, video_records = world
    assert not records.leaks(video_records)
    for split in ("train", "val", "test"):
        assert {r.label for r in video_records if r.split == split} == {0, 1}


def test_truth_marks_an_event_only_in_its_videos_and_while_it_lasts(world):
    root, video_records = world
    _, truth = pretraining.read_frames_and_truth(root, video_records)
    for record, cells in zip(video_records, truth, strict=True):
        has_event = (cells >= toy_dataset.FIRST_EVENT).any((1, 2))
        assert has_event.any() == bool(record.label), record.id
        assert not has_event[records.frame_labels(record) == 0].any()


def test_a_finished_world_is_kept_and_another_is_made_anew(world):
    root, video_records = world
    file = root / video_records[0].path
    before = file.stat().st_mtime_ns
    splits = {"train": 0.5, "val": 0.25, "test": 0.25}
    assert toy_dataset.make_dataset(root, num_videos=12, splits=splits) == video_records
    assert file.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="events must be of"):
        toy_dataset.make_dataset(root, num_videos=12, events=("picnic",))


def test_notebook_08_s_rows_of_close_ups_are_those_a_toy_learns(world, tmp_path):
    _, video_records = world
    rows = toy_dataset.samples(video_records, seed=3)
    hivau.write_samples(tmp_path / "rows.jsonl", rows)
    again = [hivau.as_sample(row) for row in hivau.read_samples(tmp_path / "rows.jsonl", strict=True)]
    learned = toy_dataset.instructions(video_records, seed=3)
    assert [{**row, "id": None} for row in learned] == [{name: {**row, "id": None}[name] for name in learned[0]} for row in again]
    assert len({row.id for row in rows}) == len(rows) and annotation.flags(rows, video_records) == {}
    wrong = [replace(row, answer=toy_dataset.NEGATIVE) if row.task == "judgement" else row for row in rows]
    assert len(annotation.flags(wrong, video_records)) == sum(record.label for record in video_records)


def test_close_ups_are_ordinary_videos(world):
    root, video_records = world
    info = video.probe(root / video_records[0].path)
    assert (info.num_frames, info.height, info.width) == (12, 56, 56)


def test_instructions_ask_why_only_where_something_is_wrong(world):
    rows = toy_dataset.instructions(world[1])
    tasks = {r.path: [row["task"] for row in rows if row["video"] == r.path] for r in world[1]}
    assert all(("analysis" in tasks[r.path]) == bool(r.label) for r in world[1])
    judged = [(answer_parsing.parse_verdict(row["answer"]), row["video"]) for row in rows if row["task"] == "judgement"]
    labels = {r.path: bool(r.label) for r in world[1]}
    assert all(labels[path] == answer for answer, path in judged)


def test_vision_pretraining_lowers_the_loss(tiny, world):
    """Forty steps on 12 videos bring the loss well below a blank guess, for both families."""
    root, video_records = world
    samples = pretraining.FrameSamples(*pretraining.read_frames_and_truth(root, video_records[:4]), tiny)
    plan = pretraining.PretrainingPlan(frame_epochs=20, frame_learning_rate=5e-3)
    before = tiny.model.model.language_model.layers[0].mlp.up_proj.weight.clone()
    _, curve = pretraining.pretrain_vision(tiny, samples, samples, plan=plan)
    assert curve["loss"].iloc[-1] < 0.7 * curve["loss"].iloc[0]
    assert torch.equal(before, tiny.model.model.language_model.layers[0].mlp.up_proj.weight), "words wait"


def test_mirrored_frames_have_mirrored_truth(world):
    root, video_records = world
    frames, truth = pretraining.read_frames_and_truth(root, video_records[:1])
    samples = pretraining.FrameSamples(frames, truth, tiny_vlm.tiny("internvl", sizes=SMALL))
    torch.manual_seed(0)
    for place in range(12):
        frame, cells = samples[place]
        mirrored = not torch.equal(frame, samples.frames[place])
        expected = samples.truth[place].flip(-1) if mirrored else samples.truth[place]
        assert torch.equal(cells, expected.flatten())


def test_pretraining_ends_with_a_model_that_says_toy(world):
    root, video_records = world
    tiny = tiny_vlm.tiny("qwen2_5_vl", sizes=SMALL)
    trained, curves = pretraining.pretrain(
        tiny, root, video_records, plan=pretraining.PretrainingPlan(frame_epochs=0.5, caption_steps=2, num_frames=2)
    )
    assert trained.label == "tiny-qwen2_5_vl (toy, trained on drawn close-ups)"
    assert set(curves) == {"frames", "captions"} and all(p.requires_grad for p in trained.model.parameters())


def test_merges_of_the_tokenizer_are_its_own():
    tokenizer = tiny_vlm.make_tokenizer("internvl", ["abab abab"] * 9)
    assert "abab" in tokenizer.get_vocab() and "named" not in tokenizer.get_vocab()


# The saved models

SAVED = Path(__file__).parents[1] / "data" / "toy_models"


@pytest.mark.parametrize("family", models.FAMILIES)
def test_a_saved_tiny_model_says_what_it_is_and_stays_small(family):
    tiny, made_by = models.load(SAVED / family, local_only=True), artifacts.check_made_by(SAVED / family, family=family)
    assert "toy" in tiny.label and sum(file.stat().st_size for file in (SAVED / family).iterdir()) < 5_000_000
    assert made_by["pretraining"] == asdict(pretraining.PretrainingPlan())
    measured = made_by["measured"]
    assert measured["tuned"]["judgement"] >= 0.85
    assert measured["tuned"]["judgement"] - measured["untuned, forced to choose"]["judgement"] >= 0.25
    assert measured["blind"]["judgement"] <= 0.6 and measured["majority"]["judgement"] == 0.5


@pytest.fixture(scope="module")
def unseen(tmp_path_factory):
    root = tmp_path_factory.mktemp("unseen")
    return root, toy_dataset.make_dataset(root, num_videos=48, seed=99, splits={"test": 1.0}, engine="processes")


@pytest.mark.slow
@pytest.mark.parametrize("family", models.FAMILIES)
def test_a_saved_tiny_model_describes_worlds_it_never_saw(family, unseen):
    """Captions of 48 new videos: whether they tell of an event agrees with the truth in 3 of 4 (guessing: 1 of 2)."""
    tiny = models.load(SAVED / family, local_only=True)
    root, video_records = unseen
    rows = toy_dataset.instructions(video_records, ["caption"])
    texts = inference.answers(
        tiny, instruction_data.InstructionSamples(rows, root, tiny, answers=False, random=False, num_frames=6)
    )
    tells = {text: event in toy_dataset.NAMES for event, texts in toy_dataset.CAPTIONS.items() for text in texts}
    right = [tells.get(text) == bool(record.label) for text, record in zip(texts, video_records, strict=True)]
    assert np.mean(right) >= 0.75


@pytest.mark.slow
def test_a_tiny_model_made_anew_is_as_good_as_the_saved_one(tmp_path):
    """What `make toy` does, from nothing; about eight minutes on two quiet cores, so only where asked for."""
    if not os.environ.get("VAU_PRETRAIN"):
        pytest.skip("needs VAU_PRETRAIN=1 and eight minutes")
    saved = artifacts.read_json(SAVED / "internvl" / "made_by.json")["measured"]["tuned"]["judgement"]
    toy_benchmark.make_tiny_model("internvl", tmp_path / "world", tmp_path / "model")
    measured = toy_benchmark.measure(tmp_path / "world", tmp_path / "model")
    assert measured["tuned"]["judgement"] == pytest.approx(saved, abs=0.06)
