"""Pre-fill costs what its tokens cost: counts and bytes are exact; which variant is faster no test asks."""

import math

import numpy as np
import pytest
import torch

from vau_lib.compression import prefill, token_selection
from vau_lib.toy import few_layers, tiny_vlm
from vau_lib.vlm import chat

FRAMES = 6  # three moments of Qwen2.5-VL


def clip(frames=FRAMES, seed=0):
    """A still wall with a bright square that appears in the last third."""
    rng = np.random.default_rng(seed)
    video = np.repeat(rng.integers(90, 120, (1, 84, 112, 3)), frames, axis=0).astype(np.uint8)
    video[-frames // 3 :, 20:50, 30:70] = 240
    return video


@pytest.fixture(scope="module")
def measured():
    vlm = few_layers.few_layers(scale=0.125, layers=2, frame_px=112)
    prompt = chat.encode(vlm, clip(), "What happens?", times_s=np.arange(FRAMES) / 2, as_video=True)
    table = prefill.cost(vlm.model, prompt, keep_ratios=[1.0, 0.5], after_tower=[0.5], repeats=2)
    return vlm, prompt, table


def test_tokens_are_the_words_and_the_kept_cells(measured):
    vlm, prompt, table = measured
    visual = int((prompt["input_ids"] == vlm.processor.video_token_id).sum())
    moments, height, width = (int(n) for n in prompt["video_grid_thw"][0])
    assert (moments, visual) == (FRAMES // 2, moments * height * width // 4)  # 2 frames, 2 x 2 patches a token
    words = prompt["input_ids"].numel() - visual
    kept = max(visual // moments, math.floor(visual / 2))  # the first moment is always whole
    assert list(table["tokens_before"]) == [words + visual] * 4
    assert list(table["tokens_after"]) == [words + visual, words + visual, words + kept, words + kept]


def test_the_cache_holds_a_key_and_a_value_of_every_token_layer_and_head(measured):
    _, _, table = measured
    per_token = 2 * 2 * 1 * 128 * 4  # key and value, two layers, one head of keys and values, 128 wide, four bytes
    assert list(table["cache_bytes"]) == [per_token * count for count in table["tokens_after"]]


def test_the_first_row_is_the_model_alone_and_ratios_are_to_it(measured):
    _, _, table = measured
    assert list(table["place"]) == ["whole prompt", "before the tower", "before the tower", "after the tower"]
    assert list(table["keep_ratio"]) == [1.0, 1.0, 0.5, 0.5] and table["ratio"].iloc[0] == 1
    assert (table["seconds"] > 0).all() and np.allclose(table["ratio"] * table["seconds"].iloc[0], table["seconds"])


def test_a_round_too_few_is_refused(measured):
    vlm, prompt, _ = measured
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        prefill.cost(vlm.model, prompt, keep_ratios=[0.5], repeats=0)


def test_any_rule_and_either_family_can_be_measured():
    vlm = tiny_vlm.tiny("internvl")
    prompt = chat.encode(vlm, clip(4), "What happens?")
    rule = token_selection.RULES["uniform frames"]
    table = prefill.cost(vlm.model, prompt, keep_ratios=[0.5], rule=rule, repeats=1)
    visual = int((prompt["input_ids"] == vlm.processor.image_token_id).sum())
    assert table["tokens_before"].iloc[1] - table["tokens_after"].iloc[1] == visual // 2


def test_few_layers_have_the_real_proportions():
    vlm = few_layers.few_layers(scale=0.125)
    text, tower = vlm.model.config.text_config, vlm.model.config.vision_config
    # Qwen/Qwen2.5-VL-3B-Instruct, config.json: 2048, 11008, 16 heads of 128; tower 1280, 3420, 16 heads
    assert (text.hidden_size, text.intermediate_size, text.hidden_size // text.num_attention_heads) == (256, 1376, 128)
    assert (tower.hidden_size, tower.intermediate_size, tower.hidden_size // tower.num_heads) == (160, 427, 80)
    assert "random weights" in vlm.label and "1 of 36 layers" in vlm.label
    other = few_layers.few_layers(scale=0.125, seed=1).model.state_dict()
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    assert torch.equal(vlm.model.state_dict()[name], few_layers.few_layers(scale=0.125).model.state_dict()[name])
    assert not torch.equal(vlm.model.state_dict()[name], other[name])
    with pytest.raises(ValueError, match="scale must be .* got 0.3"):
        few_layers.few_layers(scale=0.3)
