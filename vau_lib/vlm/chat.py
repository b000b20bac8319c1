"""Frames and a question as the inputs of a vision-language model, for training and for generation.

- every frame stands in the prompt with its number and its time, so that an answer can say when; the released system
  gives numbers only, and its training and inference prompts differ by one newline (`released=` reproduces either)
- frames go in as images, one tile each, for both families, because chosen frames are not evenly spaced;
  `as_video=True` (Qwen2.5-VL, Qwen3-VL) is for evenly spaced frames and takes half the tokens
- an answer's tokens are appended to the prompt's, so that training learns what is generated after the same prompt
Source: Holmes-VAU code, holmesvau_utils.py:63-65 and internvl_chat/finetune.py:460-462 for the released formats.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.video_utils import VideoMetadata

from vau_lib.compression.token_pruning import TokenPrunedModel
from vau_lib.vlm.models import VLM

MAX_FRAMES = 32  # images in one prompt; the released system hands over 12
IMAGE_TOKEN = "<image>"  # stands for one frame in a prompt, whatever the family calls it
IGNORED = -100  # label of a token that is given, not learned
EVEN_TOLERANCE = 0.5  # of a step, by which a frame of a video may be off its time: frames are chosen among those there are
TIME_TOLERANCE_S = 1e-6  # times that differ by less are equal
IMAGE_INPUTS = ("pixel_values", "image_grid_thw")
VIDEO_INPUTS = ("pixel_values_videos", "video_grid_thw")


def frame_prompt(num_frames: int, question: str, *, times_s: Sequence[float] | None = None, released: str | None = None) -> str:
    """Return the text of one prompt: a line per frame with `<image>` in its place, then the question.

    Default: "Frame1 at 2.5s: <image>" and a newline after every frame; without `times_s` (num_frames,) the time is
    left out. `released` "train" or "inference" gives the released bytes: no times, and in training no newline after
    the last frame. ValueError for a question that is empty or holds `<image>`.
    """
    if num_frames < 1:
        raise ValueError(f"a prompt needs at least one frame, got {num_frames}")
    if released not in (None, "train", "inference"):
        raise ValueError(f'released must be None, "train" or "inference", got {released!r}')
    if not question.strip() or IMAGE_TOKEN in question:
        raise ValueError(f"a question must say something and hold no {IMAGE_TOKEN}, got {question!r}")
    moments = [""] * num_frames
    if times_s is not None and released is None:
        moments = [f" at {time:.1f}s" for time in _rising(times_s, num_frames)]
    lines = "\n".join(f"Frame{n}{moment}: {IMAGE_TOKEN}" for n, moment in enumerate(moments, 1))
    return lines + ("" if released == "train" else "\n") + question


def _rising(times_s: Sequence[float], num_frames: int) -> list[float]:
    times = [float(time) for time in times_s]
    if len(times) != num_frames:
        raise ValueError(f"{num_frames} frames need as many times, got {len(times)}")
    for before, after in zip([0.0, *times], times, strict=False):
        if not after >= before - TIME_TOLERANCE_S:  # also refuses NaN
            raise ValueError(f"times must rise from 0, got {after} after {before}")
    return times


def encode(
    vlm: VLM,
    frames: np.ndarray,
    question: str,
    *,
    times_s: Sequence[float] | None = None,
    answer: str | None = None,
    released: str | None = None,
    max_frames: int = MAX_FRAMES,
    max_new_tokens: int = 0,
    as_video: bool = False,
    max_pixels: int | None = None,
) -> dict[str, Tensor]:
    """Return one sample, a batch of 1: the tensors of frames and a question, and labels where an answer is given.

    Args:
        frames: uint8 (T, H, W, 3), RGB.
        question: text without `<image>` and without the tokenizer's special tokens.
        times_s: seconds of the frames, rising.
        answer: text to learn; labels are -100 everywhere but on its tokens and the end token.
        released: the released prompt's bytes, "train" or "inference".
        max_frames: more frames are refused.
        max_new_tokens: tokens that must still fit behind the prompt.
        as_video: give evenly spaced frames as one video (Qwen only).
        max_pixels: largest area of a frame, which is made smaller (Qwen only); the processor's own by default.

    Raises ValueError in one line for too many frames, a prompt beyond the context, an empty answer.
    """
    check_frames(frames, max_frames)
    check_max_pixels(vlm, max_pixels)
    if as_video:
        inputs = _encode_video(vlm, frames, question, times_s, max_pixels)
    else:
        text = frame_prompt(len(frames), question, times_s=times_s, released=released)
        text = _chat_template(vlm, question, text.replace(IMAGE_TOKEN, _placeholder(vlm)))
        size = {"images_kwargs": {"size": _area(vlm.processor.image_processor, max_pixels)}} if max_pixels else {}
        inputs = vlm.processor(images=to_images(frames), text=[text], return_tensors="pt", **_one_tile(vlm), **size)
    inputs = {key: value for key, value in inputs.items() if isinstance(value, Tensor)}
    if answer is not None:
        inputs = _append_answer(vlm, inputs, answer)
    needed = inputs["input_ids"].shape[1] + max_new_tokens
    if needed > vlm.context_length and not isinstance(vlm.model, TokenPrunedModel):  # which counts what it keeps
        raise ValueError(
            f"{len(frames)} frames and the question need {needed} tokens with the answer, "
            f"{vlm.name} has {vlm.context_length}: take fewer frames or smaller ones"
        )
    return inputs


def encode_text(vlm: VLM, question: str) -> dict[str, Tensor]:
    """Return one sample, a batch of 1, of a question without pictures."""
    inputs = vlm.tokenizer([_chat_template(vlm, question, question)], return_tensors="pt")
    return {key: inputs[key] for key in ("input_ids", "attention_mask")}


def check_frames(frames: np.ndarray, max_frames: int = MAX_FRAMES) -> None:
    """Refuse what is no stack of RGB frames, or more of them than `max_frames`; ValueError."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames must be uint8 (T, H, W, 3) with T at least 1, got {frames.dtype} {frames.shape}")
    if len(frames) > max_frames:
        raise ValueError(f"{len(frames)} frames are more than max_frames={max_frames}: choose fewer")


def check_max_pixels(vlm: VLM, max_pixels: int | None) -> None:
    """Refuse another area of frames where a family has one size of them, and one that is not positive; ValueError."""
    if max_pixels is not None and (vlm.family == "internvl" or max_pixels < 1):
        raise ValueError(
            f"max_pixels is positive, for Qwen2.5-VL and Qwen3-VL; got {max_pixels} for {vlm.family}, which may have one size only"
        )


def to_images(frames: np.ndarray) -> list[Tensor]:
    """Return frames uint8 (T, H, W, 3) as a list of images (3, H, W)."""
    return list(torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2))


def _one_tile(vlm: VLM) -> dict:
    return {"crop_to_patches": False} if vlm.family == "internvl" else {}


def prepare_images(vlm: VLM, images: Sequence[Tensor], *, max_pixels: int | None = None) -> dict[str, Tensor]:
    """Return images uint8 (3, H, W) as the family's image processor prepares them for the vision tower, of at most `max_pixels`."""
    processor = vlm.processor.image_processor
    size = {"size": _area(processor, max_pixels)} if max_pixels else {}
    inputs = processor(images=list(images), return_tensors="pt", **_one_tile(vlm), **size)
    return {key: inputs[key] for key in IMAGE_INPUTS if key in inputs}


def encode_images(model: nn.Module, inputs: Mapping[str, Tensor]) -> BaseModelOutputWithPooling:
    """Run the vision tower and projector on a batch's images.

    `pooler_output` of the result holds the visual tokens (N, C) of each image, as the language model reads them;
    `last_hidden_state` is the tower's own.
    """
    return model.get_image_features(**{key: inputs[key] for key in IMAGE_INPUTS if key in inputs})


def visual_tokens(vlm: VLM, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Return the visual tokens (N, C) of every image of a batch, then of every video; the vision tower is called once for each."""
    batch, tokens = to_model(vlm, batch), ()
    if "pixel_values" in batch:
        tokens += image_tokens(encode_images(vlm.model, batch))
    if "pixel_values_videos" in batch:
        tokens += image_tokens(vlm.model.get_video_features(**{key: batch[key] for key in VIDEO_INPUTS}))
    return tokens


def image_tokens(output: BaseModelOutputWithPooling) -> tuple[Tensor, ...]:
    """Return the visual tokens of each image of `encode_images`, (N, C).

    Qwen3-VL's language model also takes features of some layers of the tower (deepstack); they stand behind, (N, (1 + layers) C).
    """
    deep = getattr(output, "deepstack_features", None) or ()
    return tuple(torch.cat(parts, -1) for parts in zip(output.pooler_output, *deep, strict=True))


def encoder_outputs(vlm: VLM, tokens: Sequence[Tensor], *, videos: int = 0) -> dict[str, BaseModelOutputWithPooling]:
    """Return visual tokens, one entry per image, as a forward's `mm_encoder_outputs`; a fresh one per call of generate.

    The last `videos` entries are of videos.
    """
    if vlm.family == "internvl":
        return {"image": BaseModelOutputWithPooling(pooler_output=torch.stack(tuple(tokens)))}
    parts = {"image": tuple(tokens)[: len(tokens) - videos], "video": tuple(tokens)[len(tokens) - videos :]}
    return {kind: _encoder_output(vlm, part) for kind, part in parts.items() if part}


def _encoder_output(vlm: VLM, tokens: Sequence[Tensor]) -> BaseModelOutputWithPooling:
    layers = 1 + len(getattr(vlm.model.config.vision_config, "deepstack_visual_indexes", ()))
    own, *deep = zip(*(part.chunk(layers, -1) for part in tokens), strict=True)
    output = BaseModelOutputWithPooling(pooler_output=own)
    if deep:
        output.deepstack_features = list(deep)
    return output


def _placeholder(vlm: VLM) -> str:
    if vlm.family != "internvl":
        return f"<|vision_start|>{vlm.processor.image_token}<|vision_end|>"
    return vlm.processor.image_token


def _chat_template(vlm: VLM, question: str, text: str) -> str:
    """Return the conversation up to the model's answer; a question may not forge images or messages."""
    forged = [token for token in vlm.tokenizer.all_special_tokens if token in question]
    if forged:
        raise ValueError(f"the question holds {forged[0]!r}, a mark the model takes for structure: {question!r}")
    messages = [{"role": "user", "content": text}]
    return vlm.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def _area(processor, max_pixels: int, frames: int = 1) -> dict[str, int]:
    """Return a processor's smallest and largest area with another largest one; `frames` where it counts a whole video."""
    size = {"shortest_edge": processor.size["shortest_edge"], "longest_edge": max_pixels * frames}
    return size | {"shortest_edge": min(size.values())}


def _encode_video(vlm: VLM, frames: np.ndarray, question: str, times_s, max_pixels: int | None) -> dict:
    """Encode evenly spaced frames as one video: pairs of frames share tokens, their times go in as positions."""
    if vlm.family == "internvl":
        raise ValueError(f"as_video is for Qwen2.5-VL and Qwen3-VL; {vlm.family} reads frames as images")
    if times_s is None or len(frames) < 2:
        raise ValueError("as_video needs times_s and two frames or more: without a clock positions are wrong")
    times = np.array(_rising(times_s, len(frames)))
    steps, even = np.diff(times), np.linspace(times[0], times[-1], len(times))
    if steps.min() <= 0 or np.abs(times - even).max() > EVEN_TOLERANCE * steps.mean():
        raise ValueError(f"as_video needs evenly spaced frames, got steps from {steps.min():.2f} to {steps.max():.2f} s")
    fps, count = float(1 / steps.mean()), len(frames)
    text = _chat_template(vlm, question, f"<|vision_start|>{vlm.processor.video_token}<|vision_end|>{question}")
    metadata = VideoMetadata(total_num_frames=count, fps=fps, duration=count / fps, frames_indices=list(range(count)))
    processor = vlm.processor.video_processor
    options = {"do_sample_frames": False}
    if getattr(processor, "cap_pixels_per_frame", False) is None:
        options["cap_pixels_per_frame"] = True  # as the authors' own reader does; the library warns until it is its default
    if max_pixels:
        options["size"] = _area(processor, max_pixels, count if vlm.family == "qwen3_vl" else 1)
    return vlm.processor(
        videos=[torch.stack(to_images(frames))], text=[text], return_tensors="pt", video_metadata=[metadata], **options
    )


def _append_answer(vlm: VLM, inputs: dict[str, Tensor], answer: str) -> dict[str, Tensor]:
    if not answer.strip():
        raise ValueError("an answer to learn must say something, got an empty one")
    ids = vlm.tokenizer(answer, add_special_tokens=False)["input_ids"] + [vlm.tokenizer.eos_token_id]
    answer_ids, prompt_ids = torch.tensor([ids]), inputs["input_ids"]
    longer = {
        "input_ids": torch.cat([prompt_ids, answer_ids], 1),
        "attention_mask": torch.ones(1, prompt_ids.shape[1] + len(ids), dtype=torch.long),
        "labels": torch.cat([torch.full_like(prompt_ids, IGNORED), answer_ids], 1),
    }
    if "mm_token_type_ids" in inputs:
        longer["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(answer_ids)], 1)
    return inputs | longer


def collate(vlm: VLM, samples: Sequence[dict[str, Tensor]], *, side: str = "right") -> dict[str, Tensor]:
    """Return samples of `encode` as one batch: texts padded on `side`, images one after another, and videos."""
    if side not in ("left", "right"):
        raise ValueError(f'side must be "left" or "right", got {side!r}')
    padding = {"input_ids": vlm.tokenizer.pad_token_id, "labels": IGNORED, "attention_mask": 0, "mm_token_type_ids": 0}
    longest = max(sample["input_ids"].shape[1] for sample in samples)
    batch = {}
    for key in dict.fromkeys(key for sample in samples for key in sample):  # some may show images, others a video
        parts = [sample[key] for sample in samples if key in sample]
        if key in padding:
            gaps = [longest - part.shape[1] for part in parts]
            parts = [
                F.pad(part, (gap, 0) if side == "left" else (0, gap), value=padding[key])
                for part, gap in zip(parts, gaps, strict=True)
            ]
        batch[key] = torch.cat(parts)
    return batch


def collate_prompts(vlm: VLM, samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return samples as one batch to generate from: padded on the left, without labels."""
    return collate(vlm, [{k: v for k, v in sample.items() if k != "labels"} for sample in samples], side="left")


def to_model(vlm: VLM, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the batch on the model's device, pixels in the model's number format."""
    model = vlm.model
    moved = {key: value.to(model.device) for key, value in batch.items()}
    return {key: v.to(model.dtype) if v.is_floating_point() and "pixel" in key else v for key, v in moved.items()}


def decode(vlm: VLM, ids: Tensor) -> list[str]:
    """Return token ids (B, N) as texts, without special tokens."""
    return [text.strip() for text in vlm.tokenizer.batch_decode(ids, skip_special_tokens=True)]
