"""A language model sees a video as numbered, dated pictures in a conversation; training and asking use the same words.

- every frame stands in the prompt with its number and its time, so an answer can say when; the released system gives
  numbers only, and another newline in training than at inference (`released=` reproduces either)
- frames go in as pictures, one tile each, for both families: chosen frames are not evenly spaced, and a video input would
  tell the model they are; `as_video=True` (Qwen2.5-VL) is for evenly spaced ones, half the tokens
- the answer's tokens are appended to the prompt's, so what is learned is exactly what is generated after a prompt
Source: Holmes-VAU code, holmesvau_utils.py:63-65 and internvl_chat/finetune.py:460-462 for the released formats.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers.video_utils import VideoMetadata

from vau_lib.vlm.models import VLM

MAX_FRAMES = 32  # pictures in one prompt; the released system hands over 12

IMAGE_TOKEN = "<image>"  # stands for one frame in a prompt, whatever the family calls it

IGNORED = -100  # label of a token that is given, not learned

CLOCK_S = 1e-6  # times that differ by less are one


def frame_prompt(
    num_frames: int, question: str, *, times_s: Sequence[float] | None = None, released: str | None = None
) -> str:
    """Return the text of one turn: a line per frame, `<image>` standing for it, then the question.

    Default: "Frame1 at 2.5s: <image>" and a newline after every frame, the time left out where `times_s` (num_frames,) is.
    `released` "train" or "inference" gives the released bytes: no times, and after the last frame no newline in training.
    ValueError for a question that is empty or holds `<image>`.
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
        if not after >= before - CLOCK_S:  # also refuses NaN
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
    room: int = 0,
    as_video: bool = False,
) -> dict[str, Tensor]:
    """Return one turn as tensors, batch of 1: frames uint8 (T, H, W, 3) and a question; with `answer`, labels too.

    `room` is how many tokens must still fit behind the prompt. Labels are -100 everywhere but on the answer and its end.
    ValueError in one line for too many frames, a prompt beyond the context, an empty answer.
    """
    check_frames(frames, max_frames)
    if as_video:
        inputs = _encode_video(vlm, frames, question, times_s)
    else:
        text = frame_prompt(len(frames), question, times_s=times_s, released=released)
        text = _turn(vlm, question, text.replace(IMAGE_TOKEN, _placeholder(vlm)))
        one_tile = {"crop_to_patches": False} if vlm.family == "internvl" else {}
        pictures = [torch.from_numpy(frame).permute(2, 0, 1) for frame in np.ascontiguousarray(frames)]
        inputs = vlm.processor(images=pictures, text=[text], return_tensors="pt", **one_tile)
    inputs = {key: value for key, value in inputs.items() if isinstance(value, Tensor)}
    if answer is not None:
        inputs = _with_answer(vlm, inputs, answer)
    needed = inputs["input_ids"].shape[1] + room
    if needed > vlm.context:
        raise ValueError(
            f"{len(frames)} frames and the question need {needed} tokens with the answer, "
            f"{vlm.name} has {vlm.context}: take fewer frames or smaller ones"
        )
    return inputs


def prepare_images(vlm: VLM, pictures: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return pictures uint8 (3, H, W) as the family's image processor prepares them."""
    one_tile = {"crop_to_patches": False} if vlm.family == "internvl" else {}
    seen = vlm.processor.image_processor(images=list(pictures), return_tensors="pt", **one_tile)
    return {key: seen[key] for key in ("pixel_values", "image_grid_thw") if key in seen}


def check_frames(frames: np.ndarray, max_frames: int = MAX_FRAMES) -> None:
    """Refuse what is no stack of RGB frames, or more of them than `max_frames`; ValueError."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames must be uint8 (T, H, W, 3) with T at least 1, got {frames.dtype} {frames.shape}")
    if len(frames) > max_frames:
        raise ValueError(f"{len(frames)} frames are more than max_frames={max_frames}: choose fewer")


def _placeholder(vlm: VLM) -> str:
    if vlm.family == "qwen2_5_vl":
        return f"<|vision_start|>{vlm.processor.image_token}<|vision_end|>"
    return vlm.processor.image_token


def _turn(vlm: VLM, question: str, text: str) -> str:
    """Return the conversation up to where the model speaks; a question may not forge pictures or turns."""
    forged = [token for token in vlm.tokenizer.all_special_tokens if token in question]
    if forged:
        raise ValueError(f"the question holds {forged[0]!r}, a mark the model takes for structure: {question!r}")
    turn = [{"role": "user", "content": text}]
    return vlm.processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)


def _encode_video(vlm: VLM, frames: np.ndarray, question: str, times_s) -> dict:
    """Encode evenly spaced frames as one video: pairs of frames share tokens, their times go in as positions."""
    if vlm.family != "qwen2_5_vl":
        raise ValueError(f"as_video is for qwen2_5_vl; {vlm.family} reads frames as pictures")
    if times_s is None or len(frames) < 2:
        raise ValueError("as_video needs times_s and two frames or more: without a clock positions are wrong")
    steps = np.diff(_rising(times_s, len(frames)))
    if steps.min() <= 0 or np.ptp(steps) > 0.1 * steps.mean():
        raise ValueError(
            f"as_video needs evenly spaced frames, got steps from {steps.min():.2f} to {steps.max():.2f} s"
        )
    fps = float(1 / steps.mean())
    text = _turn(vlm, question, f"<|vision_start|>{vlm.processor.video_token}<|vision_end|>{question}")
    count = len(frames)
    metadata = VideoMetadata(total_num_frames=count, fps=fps, duration=count / fps, frames_indices=list(range(count)))
    return vlm.processor(
        videos=[torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)], text=[text], return_tensors="pt",
        video_metadata=[metadata], do_sample_frames=False,
    )  # fmt: skip


def _with_answer(vlm: VLM, inputs: dict[str, Tensor], answer: str) -> dict[str, Tensor]:
    if not answer.strip():
        raise ValueError("an answer to learn must say something, got an empty one")
    ids = vlm.tokenizer(answer, add_special_tokens=False)["input_ids"] + [vlm.tokenizer.eos_token_id]
    learned = torch.tensor([ids])
    given = inputs["input_ids"]
    longer = {
        "input_ids": torch.cat([given, learned], 1),
        "attention_mask": torch.ones(1, given.shape[1] + len(ids), dtype=torch.long),
        "labels": torch.cat([torch.full_like(given, IGNORED), learned], 1),
    }
    if "mm_token_type_ids" in inputs:
        longer["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(learned)], 1)
    return inputs | longer


def collate(vlm: VLM, turns: Sequence[dict[str, Tensor]], *, side: str = "right") -> dict[str, Tensor]:
    """Return turns of `encode` as one batch: texts filled up on `side` ("left" to generate), pictures one after another."""
    if side not in ("left", "right"):
        raise ValueError(f'side must be "left" or "right", got {side!r}')
    filling = {
        "input_ids": vlm.tokenizer.pad_token_id,
        "labels": IGNORED,
        "attention_mask": 0,
        "mm_token_type_ids": 0,
    }
    longest = max(turn["input_ids"].shape[1] for turn in turns)
    batch = {}
    for key in turns[0]:
        parts = [turn[key] for turn in turns]
        if key in filling:
            gaps = [longest - part.shape[1] for part in parts]
            parts = [
                torch.nn.functional.pad(part, (gap, 0) if side == "left" else (0, gap), value=filling[key])
                for part, gap in zip(parts, gaps, strict=True)
            ]
        batch[key] = torch.cat(parts)
    return batch


def to_model(vlm: VLM, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the batch where the model is, pixels in the model's number format."""
    model = vlm.model
    moved = {key: value.to(model.device) for key, value in batch.items()}
    return {key: v.to(model.dtype) if v.is_floating_point() and "pixel" in key else v for key, v in moved.items()}


def decode(vlm: VLM, ids: Tensor) -> list[str]:
    """Return token ids (B, N) as texts, without marks."""
    return [text.strip() for text in vlm.tokenizer.batch_decode(ids, skip_special_tokens=True)]
