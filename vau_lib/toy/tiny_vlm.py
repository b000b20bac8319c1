"""Tiny vision-language models: InternVL and Qwen2.5-VL at a width that one core trains.

- The classes and processors are those of transformers; tokenizer and chat template are made here, offline.
- The tokenizer is byte-level with pairs learned from the texts of the close-ups: their answers are short, any other text fits.
- Weights start at random and the label says so. Their standard deviation is .08; with the usual .02 nothing was learned at this
  width.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from vau_lib.toy import dataset as toy_dataset
from vau_lib.vlm.models import FAMILIES, VLM

IMAGE_PX = 112  # 8 x 8 patches, 2 x 2 of them one token: 16 tokens per frame
PATCH_PX = 14  # in both families
PATCH_MERGE = 2  # patches per token and side
VOCAB_SIZE = 640  # 256 bytes, the special tokens, and pairs learned from the texts of the close-ups
RANDOM_WEIGHTS = "toy, random weights"
CHAT_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VISION_TOKENS = {
    "internvl": {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
    "qwen2_5_vl": {
        "vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>",
        "image_token": "<|image_pad|>", "video_token": "<|video_pad|>",
    },
}  # fmt: skip
VISION_TEMPLATES = {
    "internvl": ("<IMG_CONTEXT>\n", "<video>\n"),
    "qwen2_5_vl": ("<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"),
}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% elif part['type'] == 'image' %}IMAGE"
    "{% elif part['type'] == 'video' %}VIDEO{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class TinySizes:
    """Widths of a tiny model; `context` is in tokens. The defaults have under a million weights."""

    width: int = 64
    text_layers: int = 2
    vision_width: int = 64
    vision_layers: int = 3
    heads: int = 4
    context: int = 2048
    init_std: float = 0.08  # of the first weights
    picture_px: int = IMAGE_PX  # side of a square of as many pixels as Qwen's pictures may have


def tiny(family: str, *, sizes: TinySizes | None = None, seed: int = 0) -> VLM:
    """Return a model of the real class at toy width with random weights, with tokenizer, template and processor.

    `family` is "internvl" or "qwen2_5_vl". The same seed gives the same weights; float32, on the CPU.
    """
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    sizes = sizes or TinySizes()
    tokenizer = make_tokenizer(family)
    build = _internvl if family == "internvl" else _qwen
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor = build(sizes, tokenizer)
    end = tokenizer.eos_token_id
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=end, pad_token_id=tokenizer.pad_token_id, max_new_tokens=64
    )
    return VLM(model.eval(), processor, family, f"tiny-{family}", RANDOM_WEIGHTS)


def make_tokenizer(family: str, texts: Iterable[str] | None = None) -> Qwen2Tokenizer:
    """Return a byte-level tokenizer of the class both families use, its pairs learned from `texts` (those of the close-ups)."""
    default = Qwen2Tokenizer()  # for its rule of cutting text into words
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = default.backend_tokenizer.pre_tokenizer
    special = VISION_TOKENS[family]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False,
        special_tokens=[*CHAT_TOKENS, *special.values()],
    )  # fmt: skip
    learner.train_from_iterator(toy_dataset.texts() if texts is None else texts, trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    return Qwen2Tokenizer(
        vocab=learner.get_vocab(), merges=[tuple(pair) for pair in merges], eos_token="<|im_end|>", pad_token="<|endoftext|>",
        unk_token="<|endoftext|>", extra_special_tokens=special,
    )  # fmt: skip


def _template(family: str) -> str:
    image, video = VISION_TEMPLATES[family]
    return TEMPLATE.replace("IMAGE", image).replace("VIDEO", video)


def _text_config(sizes: TinySizes, tokenizer, model_type: str, **more) -> dict:
    return dict(
        model_type=model_type, vocab_size=len(tokenizer), hidden_size=sizes.width, intermediate_size=3 * sizes.width,
        num_hidden_layers=sizes.text_layers, num_attention_heads=sizes.heads, num_key_value_heads=sizes.heads // 2,
        max_position_embeddings=sizes.context, initializer_range=sizes.init_std, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **more,
    )  # fmt: skip


def _internvl(sizes: TinySizes, tokenizer):
    side = {"height": IMAGE_PX, "width": IMAGE_PX}
    tokens = (IMAGE_PX // PATCH_PX // PATCH_MERGE) ** 2
    config = InternVLConfig(
        text_config=_text_config(sizes, tokenizer, "qwen2"),
        vision_config=dict(
            hidden_size=sizes.vision_width, num_hidden_layers=sizes.vision_layers, num_attention_heads=sizes.heads,
            intermediate_size=2 * sizes.vision_width, image_size=IMAGE_PX, patch_size=PATCH_PX,
            initializer_range=sizes.init_std, layer_scale_init_value=1.0,  # the usual .1 would suppress three layers
        ),
        image_token_id=tokenizer.context_image_token_id, image_seq_length=tokens, downsample_ratio=1 / PATCH_MERGE,
        initializer_range=sizes.init_std,
    )  # fmt: skip
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=side, crop_to_patches=False), tokenizer, InternVLVideoProcessor(size=side),
        image_seq_length=tokens, chat_template=_template("internvl"),
    )  # fmt: skip
    return InternVLForConditionalGeneration(config), processor


def _qwen(sizes: TinySizes, tokenizer):
    head = sizes.width // sizes.heads // 2  # pairs of a head's width, divided among time, height, width
    sections = [head - 2 * (head * 3 // 8), head * 3 // 8, head * 3 // 8]
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    config = Qwen2_5_VLConfig(
        text_config=_text_config(sizes, tokenizer, "qwen2_5_vl_text", rope_parameters=rope),
        vision_config=dict(
            depth=sizes.vision_layers, hidden_size=sizes.vision_width, intermediate_size=2 * sizes.vision_width,
            num_heads=sizes.heads, out_hidden_size=sizes.width, patch_size=PATCH_PX, spatial_merge_size=PATCH_MERGE,
            window_size=2 * IMAGE_PX, fullatt_block_indexes=[sizes.vision_layers - 1], tokens_per_second=2,
            initializer_range=sizes.init_std,
        ),
        image_token_id=tokenizer.image_token_id, video_token_id=tokenizer.video_token_id,
        vision_start_token_id=tokenizer.vision_start_token_id, vision_end_token_id=tokenizer.vision_end_token_id,
        tie_word_embeddings=True, initializer_range=sizes.init_std,
    )  # fmt: skip
    area = {"shortest_edge": sizes.picture_px**2, "longest_edge": sizes.picture_px**2}
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(size=area), tokenizer, Qwen2VLVideoProcessor(size=area, cap_pixels_per_frame=False),
        chat_template=_template("qwen2_5_vl"),
    )  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(config), processor
