"""LoRA changes the language model's projections and learns the answer, nothing else; training can be resumed and pruned."""

import json
import os
import subprocess
import sys
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import damaged_weights
import numpy as np
import pytest
import torch
import two_ranks
from safetensors.torch import load_file, save_file

from vau_lib.compression import token_pruning, token_selection
from vau_lib.data import video
from vau_lib.toy import dataset as toy_dataset
from vau_lib.toy import tiny_vlm
from vau_lib.vlm import chat, finetuning, instruction_data, models
from vau_lib.workspace import artifacts

ROOT = Path(__file__).parents[1]
SMALL = tiny_vlm.TinySizes(width=32, vision_width=32, text_layers=2, vision_layers=1)
SMALLER = tiny_vlm.TinySizes(width=32, vision_width=32, text_layers=1, vision_layers=1)
PLAN = finetuning.LoraPlan(max_steps=5, batch_size=4, log_steps=1, learning_rate=1e-2)
FRAMES = np.random.default_rng(0).integers(0, 255, (3, 56, 56, 3), dtype=np.uint8)


@pytest.fixture(params=models.FAMILIES)
def toy_vlm(request):
    return tiny_vlm.tiny(request.param, sizes=SMALL)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Eight short videos, bright or dark, and a row about each."""
    root = tmp_path_factory.mktemp("rows")
    found = []
    for number in range(8):
        level = 200 if number % 2 else 40
        noise = np.random.default_rng(number).integers(0, 40, (10, 56, 56, 3))
        video.write_video(root / f"{number}.mp4", (noise + level).astype(np.uint8), fps=5)
        answer = "An anomaly exists." if number % 2 else "No anomaly exists in the video."
        found.append(dict(id=number, level="event", task="judgement", video=f"{number}.mp4", span_s=None,
                          question="Are there any anomalies?", answer=answer, split="train"))  # fmt: skip
    return root, found


def samples(toy_vlm, rows, **options):
    return instruction_data.InstructionSamples(rows[1], rows[0], toy_vlm, **{"num_frames": 2, **options})


# What is changed


def test_exactly_the_language_models_projections_are_changed(toy_vlm):
    """Seven projections a layer, by name; the tower has projections of the same names and keeps them."""
    expected = [
        f"model.language_model.layers.{layer}.{part}"
        for layer in range(2)
        for part in (*(f"self_attn.{n}_proj" for n in "qkvo"), *(f"mlp.{n}_proj" for n in ("gate", "up", "down")))
    ]
    assert sorted(finetuning.lora_targets(toy_vlm.model)) == sorted(expected)
    tuned = finetuning.lora(toy_vlm.model)
    changed = {name.split(".lora_")[0] for name, p in tuned.named_parameters() if p.requires_grad}
    assert changed == {f"base_model.model.{name}" for name in expected}


def test_the_trainable_weights_are_the_adapters(toy_vlm):
    """r (in + out) per projection, counted by hand from the layer's shapes."""
    shapes = [dict(toy_vlm.model.named_modules())[name].weight.shape for name in finetuning.lora_targets(toy_vlm.model)]
    whole = sum(p.numel() for p in toy_vlm.model.parameters())
    trains, everything = finetuning.trainable_weights(finetuning.lora(toy_vlm.model))
    assert trains == sum(64 * (out + into) for out, into in shapes)
    assert everything == whole + trains


def test_the_defaults_are_the_papers(toy_vlm):
    config = finetuning.lora(toy_vlm.model).peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (64, 128, 0.05)


def test_a_fresh_adapter_changes_nothing(toy_vlm):
    sample = chat.encode(toy_vlm, FRAMES, "What?", answer="Nothing.")
    with torch.inference_mode():
        before = toy_vlm.model(**sample).logits
        assert torch.equal(finetuning.lora(toy_vlm.model).eval()(**sample).logits, before)


def test_a_model_without_a_language_model_is_refused():
    with pytest.raises(ValueError, match="Linear has no language_model with projections"):
        finetuning.lora(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="r >= 1"):
        finetuning.lora(tiny_vlm.tiny("internvl", sizes=SMALL).model, r=0)


def test_gradients_reach_the_adapter_only(toy_vlm):
    tuned = finetuning.lora(toy_vlm.model)
    tuned(**chat.encode(toy_vlm, FRAMES, "What?", answer="Nothing.")).loss.backward()
    assert all((p.grad is not None) == ("lora_" in name) for name, p in tuned.named_parameters())


# What is learned from


def test_only_the_answer_and_its_end_are_learned(toy_vlm):
    sample = chat.encode(toy_vlm, FRAMES, "What happened?", answer="A fall.")
    learned = sample["input_ids"][sample["labels"] != -100]
    assert toy_vlm.tokenizer.decode(learned) == "A fall.<|im_end|>"
    assert (sample["labels"][0, -len(learned) :] == learned).all(), "the answer stands last"


def test_filling_up_does_not_change_the_loss(toy_vlm):
    """Two samples of different length: mean loss per answer token of the batch is that of both alone."""
    encoded = [chat.encode(toy_vlm, FRAMES[:n], "What?", answer=a) for n, a in ((1, "Yes."), (3, "Nothing at all."))]
    with torch.inference_mode():
        alone = [toy_vlm.model(**sample).loss.item() for sample in encoded]
        both = toy_vlm.model(**chat.collate(toy_vlm, encoded)).loss.item()
    counts = [int((sample["labels"] != -100).sum()) for sample in encoded]
    assert both == pytest.approx(np.average(alone, weights=counts), abs=1e-5)


def test_one_frame_comes_from_each_equal_interval():
    rng = np.random.default_rng(0)
    drawn = np.array([instruction_data.interval_frames(10, 46, 12, rng) for _ in range(300)])
    for n in range(12):
        assert set(drawn[:, n]) == set(range(10 + 3 * n, 13 + 3 * n)), "all three frames of an interval, the last too"
    assert instruction_data.interval_frames(0, 36, 12, None).tolist() == list(range(1, 36, 3))
    assert instruction_data.interval_frames(0, 2, 4, rng).tolist() == [0, 0, 1, 1], "fewer frames than asked repeat, in order"
    with pytest.raises(ValueError, match="need frames to choose from"):
        instruction_data.interval_frames(5, 5, 2, rng)


def test_clips_show_six_to_twelve_frames_events_twelve(toy_vlm, rows):
    clips = [{**row, "level": "clip"} for row in rows[1]]
    data = instruction_data.InstructionSamples(clips, rows[0], toy_vlm)
    seen = set()
    for data.epoch in range(12):
        seen |= {len(data.index(place)) for place in range(8)}
    assert seen == set(range(6, 13))
    assert len(samples(toy_vlm, rows, num_frames=None).index(0)) == 12


def test_an_epoch_draws_other_frames_and_the_same_when_it_comes_again(toy_vlm, rows):
    data = samples(toy_vlm, rows, num_frames=5)
    first = data.index(3).tolist()
    data.epoch = 1
    other = data.index(3).tolist()
    data.epoch = 0
    assert data.index(3).tolist() == first != other


def test_a_row_s_frames_or_span_decide_what_is_shown(toy_vlm, rows):
    named = instruction_data.InstructionSamples([{**rows[1][0], "frames": [1, 4, 4, 9]}], rows[0], toy_vlm)
    assert named.frames(0)[1] == pytest.approx([0.2, 0.8, 0.8, 1.8])
    inside = instruction_data.InstructionSamples([{**rows[1][0], "span_s": [1.0, 1.6]}], rows[0], toy_vlm, num_frames=3)
    assert set(inside.index(0)) == {5, 6, 7}


def test_blind_samples_are_black_and_questions_hold_no_answer(toy_vlm, rows):
    seen, blind = (samples(toy_vlm, rows, answers=False, random=False, blind=b)[1] for b in (False, True))
    assert "labels" not in seen and blind["pixel_values"].unique(dim=0).shape[0] < seen["pixel_values"].shape[0]
    assert torch.equal(seen["input_ids"], blind["input_ids"])


@pytest.mark.parametrize("key", ["video", "question", "answer", "level"])
def test_a_row_without_what_it_needs_is_named(toy_vlm, rows, key):
    with pytest.raises(ValueError, match=f"instruction 0 has no {key}"):
        instruction_data.InstructionSamples([{**rows[1][0], key: ""}], rows[0], toy_vlm)


def test_shuffled_answers_stay_within_their_task():
    rows = [{"task": task, "answer": f"{task} {n}", "video": n} for task in ("a", "b") for n in range(9)]
    shuffled = instruction_data.shuffle_answers(rows, seed=0)
    assert [row["task"] for row in shuffled] == [row["task"] for row in rows] and shuffled != rows
    assert all(row["answer"].startswith(row["task"]) for row in shuffled)
    assert sorted(row["answer"] for row in shuffled) == sorted(row["answer"] for row in rows)


# Training


def test_a_copy_of_a_tuned_model_computes_with_its_own_weights(toy_vlm, rows):
    """TRL replaces a model's forward while it trains; a copy would go on calling the original's."""
    tuned = toy_vlm.replace(model=finetuning.lora(toy_vlm.model))
    finetuning.fit(tuned, samples(tuned, rows), plan=finetuning.LoraPlan(max_steps=1))
    other = deepcopy(tuned.model)
    for part in other.parameters():
        part.data.zero_()
    sample = chat.encode(toy_vlm, FRAMES, "What?")
    with torch.inference_mode():
        assert not other(**sample).logits.any() and tuned.model(**sample).logits.any()


def test_a_few_steps_lower_the_loss(toy_vlm, rows):
    tuned = toy_vlm.replace(model=finetuning.lora(toy_vlm.model))
    plan = finetuning.LoraPlan(max_steps=9, learning_rate=1e-2, batch_size=8, log_steps=3)
    data = samples(tuned, rows)
    curve = finetuning.fit(tuned, data, data, plan=plan)
    assert list(curve.columns) == ["step", "loss", "val_loss"] and curve["step"].tolist() == [3, 6, 9]
    assert curve["loss"].iloc[-1] < 0.9 * curve["loss"].iloc[0]


def test_a_stopped_run_goes_on_to_the_same_weights(rows, tmp_path):
    def train(folder):
        toy_vlm = tiny_vlm.tiny("internvl", sizes=SMALL)
        tuned = toy_vlm.replace(model=finetuning.lora(toy_vlm.model))
        plan = finetuning.LoraPlan(max_steps=4, learning_rate=1e-3, batch_size=4, save_steps=2, log_steps=1)
        finetuning.fit(tuned, samples(tuned, rows), plan=plan, folder=folder)
        return load_file(folder / "adapter_model.safetensors")

    whole = train(tmp_path / "run")
    for file in (tmp_path / "run" / "checkpoint-4").iterdir():
        file.unlink()
    (tmp_path / "run" / "checkpoint-4").rmdir()
    resumed = train(tmp_path / "run")
    assert all(torch.allclose(whole[name], resumed[name], atol=1e-6) for name in whole)


def test_checkpointing_activations_changes_no_gradient(toy_vlm, rows):
    """Memory is saved, not learning: the same two steps with and without end in the same adapter."""
    ends = []
    for checkpointing in (False, True):
        fresh = tiny_vlm.tiny(toy_vlm.family, sizes=SMALL)
        tuned = fresh.replace(model=finetuning.lora(fresh.model, dropout=0.0))
        plan = finetuning.LoraPlan(max_steps=2, learning_rate=1e-2, batch_size=4, checkpointing=checkpointing)
        finetuning.fit(tuned, samples(tuned, rows), plan=plan)
        ends.append({name: p.detach().clone() for name, p in tuned.model.named_parameters() if p.requires_grad})
    assert any("lora_B" in name and p.abs().max() > 0 for name, p in ends[0].items())
    assert all(torch.allclose(ends[0][name], ends[1][name], atol=1e-6) for name in ends[0])


def test_a_long_video_is_not_cached(toy_vlm, rows, monkeypatch):
    monkeypatch.setattr(instruction_data, "MAX_CACHED_VIDEO_BYTES", 10 * 56 * 56 * 3 - 1)
    data, cached = samples(toy_vlm, rows, random=False), samples(toy_vlm, rows, random=False)
    frames, times_s = data.frames(0)
    monkeypatch.setattr(instruction_data, "MAX_CACHED_VIDEO_BYTES", 10 * 56 * 56 * 3)
    assert (cached.frames(0)[0] == frames).all() and cached._cache and not data._cache and times_s == cached.frames(0)[1]


def test_kept_videos_stay_within_the_limit_and_the_oldest_leaves(toy_vlm, rows, monkeypatch):
    size = 10 * 56 * 56 * 3
    monkeypatch.setattr(instruction_data, "CACHE_BYTES", 2 * size + 1)
    data = samples(toy_vlm, rows, random=False)
    names = [str(rows[0] / f"{n}.mp4") for n in range(8)]
    for place in (0, 1, 0, 2, 3):
        frames, _ = data.frames(place)
        assert (frames == video.read_frames(rows[0] / f"{place}.mp4", data.index(place))).all()
        assert sum(one.nbytes for one in data._cache.values()) <= 2 * size
    assert list(data._cache) == [names[2], names[3]]
    monkeypatch.setattr(instruction_data, "CACHE_BYTES", size - 1)
    assert not samples(toy_vlm, rows)._cache and data.frames(5)[0].shape == (2, 56, 56, 3)


@pytest.mark.parametrize(("first", "last", "count"), [(0, 60, 16), (7, 20, 4), (0, 5, 16), (3, 4, 8), (0, 16, 16)])
def test_frames_of_a_video_stand_at_one_distance(first, last, count):
    for rng in (None, np.random.default_rng(0)):
        for _ in range(8):
            index = instruction_data.even_frames(first, last, count, rng)
            assert len(index) == min(count, last - first) and len(set(np.diff(index))) <= 1
            assert first <= index[0] and index[-1] < last
    spread = {instruction_data.even_frames(0, 60, 16, np.random.default_rng(n))[0] for n in range(40)}
    assert len(spread) > 5, "another epoch shows other frames"


def test_a_video_is_tuned_on_as_a_video(rows, tmp_path):
    """Half the tokens of pictures, one grid of two temporal patches, and the answer's loss falls."""
    qwen = tiny_vlm.tiny("qwen2_5_vl", sizes=SMALL)
    shown, pictures = (samples(qwen, rows, num_frames=4, as_video=one, random=False)[0] for one in (True, False))
    assert shown["video_grid_thw"].tolist() == [[2, 8, 8]] and "pixel_values" not in shown
    assert (shown["input_ids"] == qwen.processor.video_token_id).sum() == 32
    assert (pictures["input_ids"] == qwen.processor.image_token_id).sum() == 64
    tuned = qwen.replace(model=finetuning.lora(qwen.model))
    plan = finetuning.LoraPlan(max_steps=8, learning_rate=1e-2, batch_size=4, log_steps=4)
    curve = finetuning.fit(tuned, samples(tuned, rows, num_frames=4, as_video=True), plan=plan)
    assert curve["loss"].iloc[-1] < curve["loss"].iloc[0]
    counted = samples(qwen, rows, num_frames=8, as_video=True, fps=1.0, random=False)  # ten frames at 5 a second are 2 s
    assert len(counted.index(0)) == 2
    with pytest.raises(ValueError, match="as_video is for Qwen"):
        samples(tiny_vlm.tiny("internvl", sizes=SMALL), rows, as_video=True)


def test_a_shuffled_video_has_no_clock_of_its_own(rows):
    """Frames that a row names run at one rate, whatever their places: the times would give the order away."""
    qwen = tiny_vlm.tiny("qwen2_5_vl", sizes=SMALL)
    found = [{**row, "frames": order} for row, order in zip(rows[1], ([0, 1, 6, 8], [6, 8, 0, 1]), strict=False)]
    clocks = [samples(qwen, (rows[0], found), as_video=True)[n]["second_per_grid_ts"].tolist() for n in range(2)]
    assert clocks == [[1.0], [1.0]]


def test_nothing_to_train_is_refused(toy_vlm, rows):
    toy_vlm.model.requires_grad_(False)
    with pytest.raises(ValueError, match="every weight of tiny-"):
        finetuning.fit(toy_vlm, samples(toy_vlm, rows), plan=finetuning.LoraPlan(max_steps=1))


def test_another_number_of_processes_than_asked_is_refused(toy_vlm, rows):
    tuned = toy_vlm.replace(model=finetuning.lora(toy_vlm.model))
    with pytest.raises(RuntimeError, match="1 processes train together, 2 were asked for"):
        finetuning.fit(tuned, samples(tuned, rows), plan=finetuning.LoraPlan(max_steps=1), expect_processes=2)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    found = toy_dataset.make_dataset(root, num_videos=4, seed=3, splits={"train": 1.0})
    return root, toy_dataset.instructions(found)


@pytest.mark.parametrize(("family", "pruning"), [("internvl", False), ("qwen2_5_vl", True)])
def test_loss_falls_and_only_the_adapter_changes(world, family, pruning, tmp_path):
    root, rows = world
    toy_vlm = tiny_vlm.tiny(family, sizes=SMALLER)
    vlm = toy_vlm.replace(model=finetuning.lora(toy_vlm.model, r=4, alpha=8, seed=0))
    frozen = {n: p.clone() for n, p in vlm.model.named_parameters() if not p.requires_grad}
    samples = instruction_data.InstructionSamples(rows, root, vlm, num_frames=4)

    def pruned(model):
        return token_pruning.prune_tokens(model, keep_ratio=0.5)

    losses = finetuning.fit(vlm, samples, plan=PLAN, folder=tmp_path / "adapter", wrap_model=pruned if pruning else None)
    assert losses["loss"].iloc[-1] < losses["loss"].iloc[0]
    assert all(torch.equal(frozen[n], p) for n, p in vlm.model.named_parameters() if n in frozen)
    again = finetuning.load_adapter(tiny_vlm.tiny(family, sizes=SMALLER).model, tmp_path / "adapter")
    ours, theirs = dict(vlm.model.named_parameters()), dict(again.named_parameters())
    assert all(torch.allclose(ours[n], theirs[n]) for n in ours if "lora" in n)


def _stops_after(count):
    """Return a `__getitem__` that is interrupted after so many items, and the list of what it gave."""
    places, get = [], instruction_data.InstructionSamples.__getitem__

    def item(self, place):
        if len(places) == count:
            raise KeyboardInterrupt
        places.append(place)
        return get(self, place)

    return item, places


@pytest.mark.parametrize("pruning", [False, True])
def test_a_stopped_run_goes_on_where_it_was(world, tmp_path, pruning):
    root, rows = world
    wrap_model = (lambda model: token_pruning.prune_tokens(model, keep_ratio=0.5)) if pruning else None

    def learn(folder, *stops):
        for steps in stops:
            toy_vlm = tiny_vlm.tiny("qwen2_5_vl", sizes=SMALLER)
            vlm = toy_vlm.replace(model=finetuning.lora(toy_vlm.model, r=4, alpha=8, dropout=0.0, seed=0))
            samples, plan = (
                instruction_data.InstructionSamples(rows, root, vlm, num_frames=4),
                replace(PLAN, max_steps=6, save_steps=3),
            )
            item, places = _stops_after(steps * plan.batch_size)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(instruction_data.InstructionSamples, "__getitem__", item)
                if steps == plan.max_steps:
                    losses = finetuning.fit(vlm, samples, plan=plan, folder=folder, wrap_model=wrap_model)
                    continue
                with pytest.raises(KeyboardInterrupt):
                    finetuning.fit(vlm, samples, plan=plan, folder=folder, wrap_model=wrap_model)
        adapted = finetuning.load_adapter(tiny_vlm.tiny("qwen2_5_vl", sizes=SMALLER).model, folder)
        return losses["loss"].tolist(), adapted.state_dict(), len(places)

    once, twice = learn(tmp_path / "once", 6), learn(tmp_path / "twice", 4, 6)
    assert once[0] == pytest.approx(twice[0], abs=1e-5)
    assert (once[2], twice[2]) == (20, 10), "what was learned before the last checkpoint is not shown again"
    assert all(torch.allclose(value, twice[1][name], atol=1e-6) for name, value in once[1].items())


def test_a_finished_run_is_loaded_and_another_one_refused(world, tmp_path):
    root, rows = world

    def learn(part=rows, plan=PLAN, **facts):
        toy_vlm = tiny_vlm.tiny("internvl", sizes=SMALLER)
        vlm = toy_vlm.replace(model=finetuning.lora(toy_vlm.model, r=4, alpha=8, dropout=0.0, seed=0))
        samples = instruction_data.InstructionSamples(part, root, vlm, num_frames=4)
        losses = finetuning.fit(vlm, samples, plan=plan, folder=tmp_path, facts=facts)
        return losses, vlm.model.state_dict()

    first, again = learn(keep_ratio=1), learn(keep_ratio=1)
    assert first[0].equals(again[0]) and all(torch.equal(value, again[1][name]) for name, value in first[1].items())
    for other in ({"part": rows[:3]}, {"plan": replace(PLAN, learning_rate=1e-3)}, {"keep_ratio": 0.5}):
        with pytest.raises(artifacts.StoreError, match=" was made with "):
            learn(**{"keep_ratio": 1} | other)


def test_a_checkpoint_cut_short_is_passed_over(world, tmp_path):
    for step, whole in ((3, True), (12, True), (20, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if whole:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    assert artifacts.last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-12")
    assert artifacts.last_checkpoint(tmp_path / "none") is artifacts.last_checkpoint(None) is None


def test_rows_of_several_files_keep_their_own_folders(world, tmp_path):
    root, rows = world
    video_path = rows[0]["video"]
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({**row, "video": video_path}) for row in rows[:3]))
    (tmp_path / video_path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / video_path).write_bytes((root / video_path).read_bytes())
    found = instruction_data.read_rows({tmp_path / "one.jsonl": root, tmp_path / "two.jsonl": tmp_path})
    assert [row["video"] for row in found] == [str(root / video_path)] * 3 + [str(tmp_path / video_path)] * 3
    with pytest.raises(ValueError, match=r"one.jsonl: none of 3 rows is of split 'val'"):
        instruction_data.read_rows({tmp_path / "one.jsonl": root}, split="val")
    with pytest.raises(ValueError, match="one.jsonl: 1 videos are not under .*nowhere"):
        instruction_data.read_rows({tmp_path / "one.jsonl": tmp_path / "nowhere"})
    (tmp_path / "out.jsonl").write_text(json.dumps({**rows[0], "video": "../away.mp4"}) + "\n")
    with pytest.raises(ValueError, match="out.jsonl line 1 is no instruction row: .*leaves its root"):
        instruction_data.read_rows({tmp_path / "out.jsonl": root})
    (tmp_path / "broken.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match="broken.jsonl line 1 is no instruction row: "):
        instruction_data.read_rows({tmp_path / "broken.jsonl": root})


def test_random_ratios_lie_between_two_bounds():
    torch.manual_seed(1)
    frames, rule = torch.randn(8, 4, 4, 3), token_selection.random_ratio(0.25)
    keep_ratios = [rule(frames, keep_ratio=1.0).float().mean().item() for _ in range(40)]
    assert min(keep_ratios) >= 0.24 and max(keep_ratios) > 0.6 and len(set(keep_ratios)) > 20
    few = token_selection.random_ratio(0.25, token_selection.few_moments)
    moments = [int(few(frames, keep_ratio=1.0).flatten(1).any(1).sum()) for _ in range(40)]
    assert min(moments) == 2 and max(moments) > 5, "the rule that guard asks with leaves whole moments out"


# Merging


def perturbed(toy_vlm):
    tuned = finetuning.lora(toy_vlm.model, dropout=0.0).eval()
    generator = torch.Generator().manual_seed(0)
    for name, p in tuned.named_parameters():
        if "lora_" in name:
            p.data = torch.randn(p.shape, generator=generator) * 0.05
    return tuned


def test_merged_equals_adapter_and_survives_a_round_trip(toy_vlm, tmp_path):
    sample = chat.encode(toy_vlm, FRAMES, "What?", answer="Nothing.")
    with torch.inference_mode():
        plain = toy_vlm.model(**sample).logits
        tuned = perturbed(toy_vlm)
        tuned.save_pretrained(tmp_path / "adapter")
        adapted = tuned(**sample).logits
        merged = finetuning.merge(tuned)
        assert (adapted - plain).abs().max() > 1e-2, "the adapter does something"
        assert (merged(**sample).logits - adapted).abs().max() < 1e-4
        models.save(toy_vlm.replace(model=merged), tmp_path / "merged")
        back = models.load(tmp_path / "merged", dtype=torch.float32)
        assert (back.model(**sample).logits - adapted).abs().max() < 1e-4
        again = finetuning.merge(tiny_vlm.tiny(toy_vlm.family, sizes=SMALL).model, tmp_path / "adapter")
        assert (again(**sample).logits - adapted).abs().max() < 1e-4


def test_a_missing_or_foreign_adapter_is_refused(toy_vlm, tmp_path):
    with pytest.raises(artifacts.StoreError, match="no adapter at"):
        finetuning.merge(toy_vlm.model, tmp_path)
    with pytest.raises(ValueError, match="nothing to merge"):
        finetuning.merge(toy_vlm.model)
    perturbed(toy_vlm).save_pretrained(tmp_path)
    other = tiny_vlm.tiny(toy_vlm.family, sizes=tiny_vlm.TinySizes(width=64, vision_layers=1))
    with pytest.raises(artifacts.StoreError, match="does not fit"):
        finetuning.load_adapter(other.model, tmp_path)


@pytest.mark.parametrize(("anomalous", "normal"), [(8, 4), (4, 8), (7, 2), (5, 5), (10, 1)])
def test_balanced_rows_have_as_many_of_both_verdicts(anomalous, normal):
    """Nothing is lost, captions stay once, each judgement of the rarer class comes as often as another, give or take one."""
    texts = ["An anomaly exists, specifically, the anomaly is named Fall."] * anomalous + [
        "No anomaly exists in the video."
    ] * normal
    rows = [{"id": n, "task": "judgement", "answer": text} for n, text in enumerate(texts)]
    rows += [{"id": 100, "task": "description", "answer": "Nothing unusual happens."}]
    found = instruction_data.balanced(rows, seed=1)
    times = Counter(row["id"] for row in found)
    more = max(anomalous, normal)
    assert sum(times[n] for n in range(anomalous)) == sum(times[n] for n in range(anomalous, anomalous + normal)) == more
    rarer = range(anomalous) if anomalous < normal else range(anomalous, anomalous + normal)
    assert times[100] == 1 and max(times[n] for n in rarer) - min(times[n] for n in rarer) <= 1
    assert found == instruction_data.balanced(rows, seed=1)
    alone = [row for row in rows if row["id"] >= anomalous]
    assert instruction_data.balanced(alone) == alone


def test_a_tuned_model_carries_the_question_of_its_judgements(toy_vlm, rows, tmp_path):
    """Through `tune_lora`, an adapter's folder, `fit`'s folder and a saved model; a caption's question is no judgement's."""
    root, found = rows
    captions = [{**row, "task": "caption", "question": "What is it?", "answer": "A wall."} for row in found] * 2
    once = replace(PLAN, max_steps=1)
    tuned, _ = finetuning.tune_lora(toy_vlm, [*captions, *found], root, plan=once, r=2, num_frames=2, folder=tmp_path / "run")
    finetuning.save_adapter(tuned, tmp_path / "adapter", rows=len(found))
    for place in ("adapter", "run"):
        fresh = tiny_vlm.tiny(toy_vlm.family, sizes=SMALL)
        merged = finetuning.with_adapter(fresh, tmp_path / place)
        assert (fresh.question, tuned.question, merged.question) == ("", "Are there any anomalies?", "Are there any anomalies?")
    models.save(merged, tmp_path / "merged")
    again = models.load(tmp_path / "merged", local_only=True)
    assert (again.question, again.num_frames) == ("Are there any anomalies?", merged.num_frames)
    assert instruction_data.judgement_question(captions) == ""


@pytest.mark.parametrize("fault", ["other names", "12 fewer", "one more", "half the bytes", "no bytes", "other shape"])
def test_an_adapter_that_does_not_fit_is_one_error_line(toy_vlm, tmp_path, fault):
    perturbed(toy_vlm).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    stored, whole = load_file(path), path.read_bytes()
    names = sorted(stored)
    changed = {
        "other names": {name.replace(".layers.", ".blocks."): part for name, part in stored.items()},
        "12 fewer": {name: stored[name] for name in names[12:]},
        "one more": stored | {names[0].replace("layers.0", "layers.99"): stored[names[0]].clone()},
        "other shape": stored | {names[0]: torch.zeros(3, 3)},
    }
    if fault in changed:
        save_file(changed[fault], path, metadata={"format": "pt"})
    else:
        path.write_bytes(whole[: len(whole) // 2] if fault == "half the bytes" else b"")
    with pytest.raises(artifacts.StoreError, match="^the adapter at .* does not fit: ") as caught:
        finetuning.merge(tiny_vlm.tiny(toy_vlm.family, sizes=SMALL).model, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", damaged_weights.FAULTS)
def test_weights_that_do_not_fit_are_one_error_line(toy_vlm, tmp_path, fault):
    models.save(toy_vlm, tmp_path / "model")
    assert models.load(tmp_path / "model").family == toy_vlm.family
    damaged_weights.damage(tmp_path / "model" / "model.safetensors", fault)
    with pytest.raises(artifacts.StoreError) as caught:
        models.load(tmp_path / "model")
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.fixture(scope="module")
def two_ranks_out(rows, tmp_path_factory):
    """The rows, with answers of unlike length, and what torchrun's two processes (gloo) left of tuning every family on them."""
    out, rows_file = tmp_path_factory.mktemp("two"), rows[0] / "rows.jsonl"
    found = [{**row, "answer": row["answer"] + " It is dark, and somebody waits." * (row["id"] % 3)} for row in rows[1]]
    rows_file.write_text("".join(json.dumps(row) + "\n" for row in found))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, two_ranks.__file__, rows_file, out]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*map(str, command), *models.FAMILIES], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-1500:]
    return rows_file, out


@pytest.mark.slow
@pytest.mark.parametrize("family", models.FAMILIES)
def test_two_processes_learn_what_one_learns(family, two_ranks_out, tmp_path):
    """Four rows each against eight at once, answers of unlike length: the same losses, the same adapter in both processes."""
    rows_file, out = two_ranks_out
    two_ranks.train(family, rows_file, tmp_path, 1)
    losses = [json.loads((place / f"{family}.0.json").read_text()) for place in (tmp_path, out)]
    assert len(losses[0]) == 4 and losses[0][-1] < losses[0][0]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    places = (tmp_path / f"{family}.0.pt", out / f"{family}.0.pt", out / f"{family}.1.pt")
    alone, first, second = (torch.load(place, weights_only=True) for place in places)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(alone, first, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_gradients_add_up_over_small_batches(toy_vlm, rows):
    """One batch of eight, and four of two: the same two steps end in the same adapter, though answers are of unlike length."""
    found = [{**row, "answer": row["answer"] + " And nothing else." * (row["id"] % 3)} for row in rows[1]]
    ends = []
    for batch_size, accumulation in ((8, 1), (2, 4)):
        fresh = tiny_vlm.tiny(toy_vlm.family, sizes=SMALL)
        tuned = fresh.replace(model=finetuning.lora(fresh.model, dropout=0.0))
        plan = finetuning.LoraPlan(max_steps=2, learning_rate=1e-3, batch_size=batch_size, accumulation=accumulation)
        finetuning.fit(tuned, samples(tuned, (rows[0], found), random=False), plan=plan)
        ends.append({name: p.detach().clone() for name, p in tuned.model.named_parameters() if p.requires_grad})
    assert all(torch.allclose(ends[0][name], ends[1][name], atol=1e-4) for name in ends[0])


def test_workers_read_what_the_process_itself_reads(rows):
    """Other frames each epoch, the same ones with and without workers."""
    curves = []
    for workers in (0, 2):
        fresh = tiny_vlm.tiny("internvl", sizes=SMALLER)
        tuned = fresh.replace(model=finetuning.lora(fresh.model, r=4, alpha=8, dropout=0.0))
        plan = finetuning.LoraPlan(epochs=3, learning_rate=1e-2, batch_size=4, log_steps=1, workers=workers)
        curves.append(finetuning.fit(tuned, samples(tuned, rows), plan=plan)["loss"].tolist())
    assert len(curves[0]) == 6 and curves[0] == pytest.approx(curves[1], abs=1e-6)


# Where a model lies, and in how many bits


def test_under_a_launcher_each_process_has_its_own_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    alone = models._options("auto", "auto", "sdpa", None)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    fourth = models._options("auto", "auto", "sdpa", None)
    assert (alone["device_map"], fourth["device_map"]) == ("auto", {"": 3})
    assert models._options("auto", "cuda:1", "sdpa", None)["device_map"] == "cuda:1"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "device_map" not in models._options("auto", "auto", "sdpa", None)


def test_few_bits_are_refused_in_one_line_where_they_cannot_run(toy_vlm, tmp_path, monkeypatch):
    models.save(toy_vlm, tmp_path / "model")
    monkeypatch.setattr(models, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(ValueError, match="^model: bits=4 needs the package bitsandbytes, which is not installed: pip install -e "):
        models.load(tmp_path / "model", bits=4)
    monkeypatch.setattr(models, "is_bitsandbytes_available", lambda: True)
    monkeypatch.setattr(models, "_quantised_on", lambda: {"cuda"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="^model: bits=8 needs a CUDA device, there is none here$"):
        models.load(tmp_path / "model", bits=8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = models._options(torch.bfloat16, "auto", "sdpa", 4)["quantization_config"]
    assert (config.load_in_4bit, config.bnb_4bit_quant_type, config.bnb_4bit_compute_dtype) == (True, "nf4", torch.bfloat16)


def test_a_model_of_few_bits_is_prepared_before_its_adapter(toy_vlm):
    """peft's preparation: what is not quantised becomes float32 and is frozen; only the adapter trains."""
    model = toy_vlm.model.to(torch.bfloat16)
    model.is_loaded_in_8bit = True
    tuned = finetuning.lora(model, r=2, alpha=4)
    trains = {name: part for name, part in tuned.named_parameters() if part.requires_grad}
    assert trains and all("lora_" in name for name in trains)
    assert all(part.dtype == torch.float32 for part in tuned.parameters())


@pytest.mark.parametrize("bits", [8, 4])
def test_a_model_of_few_bits_is_near_the_whole_one_and_in_eight_learns_by_its_adapter_only(bits, rows, tmp_path):
    """Really quantised, on the processor; random weights of toy width lose much in 4 bits, so their logits only correlate."""
    pytest.importorskip("bitsandbytes", reason="extra `bits` is not installed")
    whole = tiny_vlm.tiny("qwen2_5_vl", sizes=tiny_vlm.TinySizes(width=128, vision_width=64, text_layers=2, vision_layers=1))
    few = models.load(models.save(whole, tmp_path / "model"), bits=bits, device="cpu", dtype=torch.float32)
    sample = samples(few, rows)[0]
    with torch.no_grad():
        logits = [vlm.model(**sample).logits.flatten() for vlm in (whole, few)]
    assert finetuning.is_quantised(few.model) and torch.corrcoef(torch.stack(logits))[0, 1] > (0.98 if bits == 8 else 0.7)
    if bits == 4:  # bitsandbytes 0.50 packs 4 bits for asking on a processor; these do not train (it fails in its own matmul_4bit)
        return
    tuned = few.replace(model=finetuning.lora(few.model, r=2, alpha=4))
    before = {name: part.detach().clone() for name, part in tuned.model.named_parameters()}
    losses = finetuning.fit(tuned, samples(tuned, rows), plan=replace(PLAN, max_steps=2, batch_size=2))
    changed = {name for name, part in tuned.model.named_parameters() if not torch.equal(part, before[name])}
    assert np.isfinite(losses["loss"]).all() and changed and all("lora_" in name for name in changed)


def test_configurations_of_several_gpus_reach_the_trainer_or_are_refused(tmp_path, monkeypatch):
    (tmp_path / "fsdp.json").write_text('{"version": 2, "cpu_offload": true}')
    (tmp_path / "list.json").write_text("[1]")
    settings = finetuning.training_arguments(tmp_path, finetuning.LoraPlan(fsdp=str(tmp_path / "fsdp.json")), False)
    assert settings.fsdp is True and settings.fsdp_plugin_args["cpu_offload"] is True
    shipped = Path(__file__).parents[1] / "params"
    settings = finetuning.training_arguments(tmp_path, finetuning.LoraPlan(fsdp=str(shipped / "fsdp.json")), False)
    assert (
        settings.fsdp is True
        and settings.fsdp_plugin_args["fsdp_version"] == 2
        and not settings.fsdp_plugin_args.get("cpu_offload")
    )
    zero = artifacts.read_json(shipped / "deepspeed_zero2.json")
    assert zero["zero_optimization"]["stage"] == 2 and zero["train_micro_batch_size_per_gpu"] == "auto"  # the Trainer fills it
    for name, why in (("list.json", "it holds a list, not a table"), ("none.json", "no file at")):
        with pytest.raises(ValueError, match=f"{name} is no configuration: .*{why}"):
            finetuning.training_arguments(tmp_path, finetuning.LoraPlan(fsdp=str(tmp_path / name)), False)
    monkeypatch.setattr(finetuning, "is_deepspeed_available", lambda: False)
    with pytest.raises(ValueError, match="zero.json needs the package deepspeed, which is not installed"):
        finetuning.training_arguments(tmp_path, finetuning.LoraPlan(deepspeed="zero.json"), False)
    for wrong in ({"batch_size": 0}, {"accumulation": 0}, {"workers": -1}, {"deepspeed": "a.json", "fsdp": "b.json"}):
        with pytest.raises(ValueError, match="got"):
            finetuning.LoraPlan(**wrong)
