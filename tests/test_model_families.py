"""Every published kind of model is one of transformers' own classes: a small one is written as published, loaded, asked."""

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
from vau_lib.compression import token_pruning
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


def test_qwen3_reads_a_video_with_its_times_and_is_not_pruned():
    vlm = qwen3_vl()
    sample = chat.encode(vlm, np.concatenate([FRAMES, FRAMES[:1]]), "What?", times_s=[0, 1, 2, 3], as_video=True)
    text = vlm.tokenizer.decode(sample["input_ids"][0])
    assert "<0.5 seconds>" in text and "<2.5 seconds>" in text and "pixel_values_videos" in sample
    with pytest.raises(ValueError, match="cannot be pruned: its tower feeds several layers"):
        token_pruning.prune_tokens(vlm.model, keep_ratio=0.5)


@pytest.mark.parametrize("content", [{"model_type": "llava"}, {"model_type": "qwen2_vl"}, {}, []])
def test_another_kind_of_model_is_one_line(tmp_path, content):
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(artifacts.StoreError) as error:
        models.load(tmp_path, local_only=True)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
