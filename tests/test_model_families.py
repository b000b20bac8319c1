"""Every published kind of model is one of transformers' own classes: a small one is written as published, loaded, asked."""

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scored_answers import plain_logprobs, samples_of
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from vau_lib import explain
from vau_lib.compression import pruning, token_pruning, token_selection
from vau_lib.toy import tiny_vlm
from vau_lib.vlm import chat, finetuning, inference, models, policy
from vau_lib.workspace import artifacts

FRAMES = np.random.default_rng(0).integers(0, 255, (3, 112, 112, 3), dtype=np.uint8)
TEXT = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2)


def internvl(text_type: str) -> models.VLM:
    """Return InternVL with the text model of a published series: qwen2 (3), qwen3 (3.5), llama (2.5 and HolmesVAU)."""
    tiny = tiny_vlm.tiny("internvl", sizes=tiny_vlm.TinySizes(width=32, vision_width=32, vision_layers=1))
    config = tiny.model.config.to_dict()
    text = TEXT | dict(model_type=text_type, vocab_size=len(tiny.tokenizer), max_position_embeddings=2048)
    config["text_config"] = text | ({"head_dim": 8} if text_type == "qwen3" else {})
    model = InternVLForConditionalGeneration(InternVLConfig(**config))
    return tiny.replace(model=model.eval(), name=f"InternVL-{text_type}")


def qwen3_vl() -> models.VLM:
    """Return Qwen3-VL at toy width, two layers of its tower feeding the language model."""
    tiny = tiny_vlm.tiny("qwen2_5_vl")
    tokens = tiny.tokenizer
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config=TEXT | dict(
            vocab_size=len(tokens), head_dim=8, rope_parameters=rope, max_position_embeddings=2048, tie_word_embeddings=True,
            eos_token_id=tokens.eos_token_id, pad_token_id=tokens.pad_token_id, initializer_range=0.2,
        ),
        vision_config=dict(
            depth=3, hidden_size=32, intermediate_size=64, num_heads=4, patch_size=14, out_hidden_size=32,
            num_position_embeddings=64, deepstack_visual_indexes=[0, 1], initializer_range=0.2,
        ),
        image_token_id=tokens.image_token_id, video_token_id=tokens.video_token_id,
        vision_start_token_id=tokens.vision_start_token_id, vision_end_token_id=tokens.vision_end_token_id,
        tie_word_embeddings=True,
    )  # fmt: skip
    area = {"shortest_edge": 112**2, "longest_edge": 112**2}
    processor = Qwen3VLProcessor(
        Qwen2VLImageProcessor(size=area, patch_size=14), tokens, Qwen3VLVideoProcessor(size=area, patch_size=14),
        chat_template=tiny.processor.chat_template,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(config).eval()
    model.generation_config = tiny.model.generation_config
    return models.VLM(model, processor, "qwen3_vl", "Qwen3-VL", tiny_vlm.RANDOM_WEIGHTS)


KINDS = {
    "InternVL3-hf": lambda: internvl("qwen2"),
    "InternVL3.5-hf": lambda: internvl("qwen3"),
    "InternVL2.5-hf": lambda: internvl("llama"),
    "Qwen2.5-VL": lambda: tiny_vlm.tiny("qwen2_5_vl"),
    "Qwen3-VL": qwen3_vl,
}


@pytest.fixture(scope="module", params=KINDS)
def vlm(request):
    torch.manual_seed(0)
    return KINDS[request.param]()


def test_it_is_loaded_whole_and_answers_the_same(vlm, tmp_path):
    models.save(vlm, tmp_path / "model")
    again = models.load(tmp_path / "model", dtype=torch.float32, local_only=True)
    state = again.model.state_dict()
    assert type(again.model) is type(vlm.model) and again.label == vlm.label
    assert all(torch.equal(state[name], part) for name, part in vlm.model.state_dict().items())
    sample = chat.encode(again, FRAMES, "What?", times_s=[0, 1, 2])
    assert torch.equal(sample["input_ids"], chat.encode(vlm, FRAMES, "What?", times_s=[0, 1, 2])["input_ids"])
    assert inference.generate(again, [sample], log=None, max_new_tokens=5) == inference.generate(
        vlm, [sample], log=None, max_new_tokens=5
    )


def test_a_folder_with_a_tensor_less_or_more_is_refused(vlm, tmp_path):
    path = models.save(vlm, tmp_path / "model") / "model.safetensors"
    stored = load_file(path)
    name = next(name for name in sorted(stored) if "visual" in name or "vision" in name)
    for changed in ({key: part for key, part in stored.items() if key != name}, stored | {f"{name}.odd": torch.zeros(2)}):
        save_file(changed, path, metadata={"format": "pt"})
        with pytest.raises(artifacts.StoreError, match="does not fit its config.json: it (lacks|has unknown) 1 tensors"):
            models.load(tmp_path / "model", local_only=True)


def test_visual_tokens_made_once_give_the_logits_of_pixels(vlm):
    """What waits for the language model is all of what the tower gives it (Qwen3-VL: three layers), so logits are equal."""
    sample = chat.encode(vlm, FRAMES, "What?", times_s=[0, 1, 2])
    with torch.inference_mode():
        tokens = chat.visual_tokens(vlm, sample)
        others = {key: value for key, value in sample.items() if key != "pixel_values"}
        reused = vlm.model(**others, mm_encoder_outputs=chat.encoder_outputs(vlm, tokens)).logits
        whole = vlm.model(**sample).logits
        blank = vlm.model(**sample | {"pixel_values": torch.zeros_like(sample["pixel_values"])}).logits
    assert (reused - whole).abs().max() < 1e-4 < (blank - whole).abs().max()


def test_it_has_places_for_an_adapter_and_explains_a_video(vlm, clip):
    layers = vlm.model.config.get_text_config().num_hidden_layers
    assert len(finetuning.lora_targets(vlm.model)) == 7 * layers  # q, k, v, o, gate, up, down of each
    tower = explain.VisionTower(vlm)
    width = tower.encode_frames(FRAMES)[0].shape[1]
    options = dict(num_frames=3, stride=5, max_new_tokens=3)
    found = [explain.explain_video(clip, vlm, explain.random_scorer(width), reuse=reuse, **options) for reuse in (True, False)]
    assert found[0].explanation.judgement == found[1].explanation.judgement
    assert found[0].explanation.description == found[1].explanation.description


def test_what_is_scored_is_the_models_own_forward(vlm):
    """For reinforcement: pictures, unlike numbers of them, and a video in one batch, where the family has video."""
    samples = samples_of(vlm)
    batch = chat.collate_prompts(vlm, samples)
    torch.manual_seed(0)
    tokens = policy.visual_tokens(vlm, batch)
    answers = policy.sample_answers(vlm, batch, tokens, group_size=2, temperature=1.0, max_new_tokens=5)
    with torch.inference_mode():
        found = policy.logprobs(vlm, batch, tokens, answers, temperature=1.0)
    for row in range(6):
        count = int(answers.mask[row].sum())
        assert torch.allclose(found[row, :count], plain_logprobs(vlm, samples[row // 2], answers.ids[row, :count]), atol=1e-4)


def qwen3_videos(vlm: models.VLM, texts: tuple[str, ...] = ("What?", "Is anything odd here?")) -> dict:
    """Return a left-padded batch of questions about two unlike videos of four and six frames."""
    frames = np.random.default_rng(1).integers(0, 255, (6, 112, 112, 3), dtype=np.uint8)
    samples = [
        chat.encode(vlm, frames[: 4 + 2 * n], text, times_s=np.arange(4 + 2 * n), as_video=True) for n, text in enumerate(texts)
    ]
    return chat.collate_prompts(vlm, samples)


def every_third(features, *, keep_ratio):
    """Keep every third token and nothing of the second moment."""
    mask = torch.arange(features[..., 0].numel()).view(features.shape[:3]) % 3 == 0
    mask[1] = False
    return mask


def test_qwen3_reads_a_video_with_its_times():
    vlm = qwen3_vl()
    text = vlm.tokenizer.decode(qwen3_videos(vlm)["input_ids"][0])
    assert "<0.5 seconds>" in text and "<2.5 seconds>" in text


@pytest.mark.parametrize("before_tower", [True, False])
def test_qwen3_pruned_is_qwen3_that_cannot_see_the_dropped_tokens(before_tower):
    """Right values are of the whole model with these tokens hidden by its attention mask, at the positions of the whole prompt."""
    vlm = qwen3_vl()
    batch = qwen3_videos(vlm)
    small = token_pruning.prune_tokens(vlm.model, keep_ratio=0.5, rule=every_third, before_tower=before_tower)
    rows = []
    hook = vlm.model.model.visual.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    with torch.inference_mode():
        short = small(**batch).logits
        hook.remove()
        keep = small.token_mask
        names = ("input_ids", "video_grid_thw", "mm_token_type_ids", "attention_mask")
        positions = vlm.model.model.get_rope_index(**{name: batch[name] for name in names})[0]
        whole = vlm.model(**{**batch, "attention_mask": keep.long(), "position_ids": positions}).logits
        everything = token_pruning.prune_tokens(vlm.model, keep_ratio=1.0)(**batch).logits
        plain = vlm.model(**batch).logits
        new = small.generate(**batch, max_new_tokens=3, do_sample=False, num_return_sequences=1)[:, -3:]
    assert sum(rows) == batch["pixel_values_videos"].shape[0] * (
        3 / 5 if before_tower else 1
    )  # two moments of five are not encoded
    for row in range(2):
        count = int(keep[row].sum())
        assert count < int(batch["attention_mask"][row].sum())
        assert torch.allclose(short[row, -count:], whole[row][keep[row]], atol=1e-4)
    assert torch.allclose(everything, plain, atol=1e-5) and (short[:, -1] - plain[:, -1]).abs().max() > 1e-2
    assert torch.equal(new[:, 0], whole[:, -1].argmax(-1))


def test_qwen3_is_tuned_and_sampled_on_a_part_of_its_tokens_and_not_reinforced():
    vlm = qwen3_vl()
    batch = qwen3_videos(vlm)
    small = token_pruning.prune_tokens(vlm.model, keep_ratio=0.4, rule=token_selection.few_moments)
    labels = batch["input_ids"].masked_fill(batch["mm_token_type_ids"] > 0, -100).masked_fill(batch["attention_mask"] == 0, -100)
    small(**batch, labels=labels).loss.backward()
    grads = [part.weight.grad for part in (vlm.model.model.visual.deepstack_merger_list[0].linear_fc2, vlm.model.lm_head)]
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads)
    torch.manual_seed(0)
    several = small.generate(**batch, max_new_tokens=2, do_sample=True, num_return_sequences=2)
    assert several.shape == (4, batch["input_ids"].shape[1] + 2)
    with pytest.raises(ValueError, match="Qwen3-VL is not reinforced with pruned tokens"):
        policy.visual_tokens(vlm.replace(model=small), batch)


@pytest.mark.parametrize("way", ["channels and heads", "uniform", "layers of the tower", "layers of the text model", "factors"])
def test_qwen3_compressed_comes_back_the_same(way, tmp_path):
    vlm = qwen3_vl()
    batch, names = (
        qwen3_videos(vlm),
        {"layers of the tower": "model.visual.blocks", "layers of the text model": "model.language_model.layers"},
    )
    if way == "factors":
        model = pruning.factorise(vlm.model, 0.7, [batch])
    elif way in names:
        vlm.model.model.language_model.layers.append(copy.deepcopy(vlm.model.model.language_model.layers[-1]))
        vlm.model.config.text_config.num_hidden_layers = 4
        vlm.model.model.visual.blocks.insert(0, copy.deepcopy(vlm.model.model.visual.blocks[-1]))  # feeds nothing
        vlm.model.config.vision_config.depth, places = 4, [1, 2]
        for owner in (vlm.model.config.vision_config, vlm.model.model.visual):
            owner.deepstack_visual_indexes = list(places)
        vlm.model.model.language_model.layers[3].self_attn.layer_idx = 3
        model = pruning.prune(vlm.model, 0, [batch], num_layers=1, layer_list=names[way])
        assert model.model.visual.deepstack_visual_indexes in ([[0, 1], [1, 2]] if "tower" in way else [[1, 2]])
        with pytest.raises(ValueError, match="can drop 1 to 2 layers, asked for 3"):  # two have their place
            pruning.prune(vlm.model, 0, [batch], num_layers=3, layer_list=names[way])
    else:
        model = pruning.prune(vlm.model, 0.5, [batch], head_ratio=0.5 * (way != "uniform"), uniform=way == "uniform")
        block, merger = model.model.visual.blocks[0].mlp, model.model.visual.merger
        assert block.linear_fc1.out_features < 64 and model.model.language_model.layers[0].mlp.up_proj.out_features <= 64
        assert merger.linear_fc1.out_features == 128 or way != "uniform"  # no config states it
    models.save(vlm.replace(model=model), tmp_path)
    again = models.load(tmp_path, dtype=torch.float32, local_only=True)
    assert sum(p.numel() for p in again.model.parameters()) < sum(p.numel() for p in vlm.model.parameters())
    with torch.inference_mode():
        assert torch.allclose(again.model(**batch).logits, model(**batch).logits, atol=1e-5)
        sides = [token_pruning.prune_tokens(side, keep_ratio=0.4)(**batch).logits for side in (again.model, model)]
    assert torch.allclose(*sides, atol=1e-5)


def test_a_tower_that_lost_a_layer_attends_as_before_after_a_reload(tmp_path):
    """Qwen2.5-VL's list of blocks that attend to the whole picture counts blocks, and they become fewer."""
    vlm = tiny_vlm.tiny("qwen2_5_vl", sizes=tiny_vlm.TinySizes(width=32, vision_width=32, text_layers=2, vision_layers=3))
    for owner in (vlm.model.config.vision_config, vlm.model.model.visual):
        owner.fullatt_block_indexes = [2]
    sample = chat.encode(vlm, FRAMES, "What?")
    model = pruning.prune(vlm.model, 0, [sample], num_layers=1, layer_list="model.visual.blocks")
    places = model.model.visual.fullatt_block_indexes
    models.save(vlm.replace(model=model), tmp_path)
    again = models.load(tmp_path, dtype=torch.float32, local_only=True)
    assert again.model.model.visual.fullatt_block_indexes == places
    with torch.inference_mode():
        assert torch.allclose(again.model(**sample).logits, model(**sample).logits, atol=1e-5)


@pytest.mark.parametrize("content", [{"model_type": "llava"}, {"model_type": "qwen2_vl"}, {}, []])
def test_another_kind_of_model_is_one_line(tmp_path, content):
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(artifacts.StoreError) as error:
        models.load(tmp_path, local_only=True)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
