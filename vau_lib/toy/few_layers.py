"""Qwen2.5-VL with few layers and RANDOM weights: its answers mean nothing, its work has the real proportions.

Widths, heads, MLPs and windows are those of Qwen2.5-VL-3B (its config.json: 2048 wide, MLP 11008, 16 heads, 2 of keys and values;
tower 1280 wide, MLP 3420, 16 heads, windows of 112 pixels), or a fraction of them; the width of a head is kept. The 3B model has 36
layers and 32 in its tower, so as many of each keep the balance of the two. For measuring what a prompt costs.
"""

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLVideoProcessor

from vau_lib.toy import tiny_vlm
from vau_lib.vlm.models import VLM

WIDTH, MLP, HEADS, KV_HEADS, HEAD_WIDTH = 2048, 11008, 16, 2, 128
TOWER_WIDTH, TOWER_MLP, TOWER_HEADS = 1280, 3420, 16
FRAME_PX = 448  # side of a square of a frame's area: about 256 tokens for two frames
CONTEXT = 32_768  # tokens


def few_layers(*, scale: float = 0.5, layers: int = 1, frame_px: int = FRAME_PX, seed: int = 0) -> VLM:
    """Return Qwen2.5-VL with `layers` of its language model and of its tower, widths times `scale`; float32, on the CPU.

    `scale` is 1, 1/2, 1/4 or 1/8 (heads stay whole); `frame_px` is the side of the square a frame's area is resized to.
    """
    if scale not in (1, 0.5, 0.25, 0.125):
        raise ValueError(f"scale must be 1, 0.5, 0.25 or 0.125, got {scale}")
    tiny = tiny_vlm.tiny("qwen2_5_vl")
    known, width = tiny.model.config, int(WIDTH * scale)
    ids = {
        name: getattr(known, name) for name in known.to_dict() if name.endswith("_token_id") and getattr(known, name) is not None
    }
    text = dict(
        model_type="qwen2_5_vl_text", vocab_size=known.text_config.vocab_size, hidden_size=width,
        intermediate_size=int(MLP * scale), num_hidden_layers=layers, num_attention_heads=int(HEADS * scale),
        num_key_value_heads=max(1, int(KV_HEADS * scale)),
        max_position_embeddings=CONTEXT, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tiny.tokenizer.eos_token_id, pad_token_id=tiny.tokenizer.pad_token_id,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    )  # fmt: skip
    vision = dict(
        depth=layers, hidden_size=int(TOWER_WIDTH * scale), intermediate_size=int(TOWER_MLP * scale),
        num_heads=int(TOWER_HEADS * scale), out_hidden_size=width, window_size=112,
        fullatt_block_indexes=[],  # of 32 blocks 28 attend within windows
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids))
    area = {"shortest_edge": frame_px**2, "longest_edge": frame_px**2 * 1024}  # of one frame, of a whole video
    tiny.processor.video_processor = Qwen2VLVideoProcessor(size=area, cap_pixels_per_frame=False)
    name = f"Qwen2.5-VL, {layers} of 36 layers, {scale:g} of its width"
    return tiny.replace(model=model.eval(), name=name, kind=tiny_vlm.RANDOM_WEIGHTS.removeprefix("toy, "))
