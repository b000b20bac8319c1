"""Near places for a tiny model that sees motion: pairs of frames, instruction rows of the demo's videos, truth per cell.

- a moment is a pair of frames 0.2 s apart; a question shows twelve, as one video of 24 frames, whose pairs Qwen2.5-VL's patch
  embedding reads together (temporal_patch_size 2): a fight, a fall and vandalism differ from a walk by motion
- the videos are those of notebook 02 and the story that every notebook shows (`records.story`)
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from vau_lib.data.records import VideoRecord
from vau_lib.synthetic.dataset import Truth
from vau_lib.synthetic.scenarios import DIFFICULTIES, HARD_NEGATIVES, NORMAL_EVENTS
from vau_lib.toy import dataset as toy_dataset
from vau_lib.vlm import chat, finetuning
from vau_lib.vlm.instruction_data import VIDEO_FPS, InstructionSamples, judgement_question
from vau_lib.vlm.models import VLM

EVENTS = DIFFICULTIES["easy"].events
HAPPENINGS = (*EVENTS, *NORMAL_EVENTS, *(HARD_NEGATIVES[event] for event in EVENTS))
MOMENTS = 12  # pairs a question shows
LAG = 2  # frames between the two of a pair, at 10 frames a second
TOKEN_PX = 28  # pixels of a visual token's side
MIN_COVERAGE = 0.04  # an actor is in a cell when it covers more than this fraction of it
PIXELS, TOKENS = "pixel_values_videos", "visual_tokens"  # of a sample: its pixels, or what the tower made of them
NOBODY, SOMEBODY, FIRST_EVENT = 0, 1, 2  # classes of a cell; event n of EVENTS is FIRST_EVENT + n


def picture_size(px: int, height: int = 240, width: int = 320) -> tuple[int, int]:
    """Return the (height, width) that Qwen's processor makes of a larger picture when px**2 pixels are allowed."""
    scale = (height * width) ** 0.5 / px
    return int(height / scale // TOKEN_PX) * TOKEN_PX, int(width / scale // TOKEN_PX) * TOKEN_PX


def cells(truth: Truth, size: tuple[int, int]) -> np.ndarray:
    """Return what happens in each cell of a picture of that size, uint8 (T, rows, columns)."""
    rows, columns = (side // TOKEN_PX for side in size)
    height, width = truth.masks.shape[1:]

    def covered(mask: np.ndarray) -> np.ndarray:
        blocks = mask.reshape(len(mask), rows, height // rows, columns, width // columns)
        return blocks.mean((2, 4)) > MIN_COVERAGE

    classes = np.where(covered(truth.masks > 0), SOMEBODY, NOBODY)
    if truth.events:
        event, times_s = truth.scenario.event, (np.arange(len(classes)) + 0.5) / truth.scenario.fps
        active = (times_s >= truth.events[0].start_s) & (times_s < truth.events[0].end_s)
        leading = (truth.masks > 0) & (truth.masks <= toy_dataset.LEADING[event])
        classes = np.where(covered(leading) & active[:, None, None], FIRST_EVENT + EVENTS.index(event), classes)
    return classes.astype(np.uint8)


def moments(num_frames: int, count: int = MOMENTS, rng: np.random.Generator | None = None) -> np.ndarray:
    """Return the first frames of `count` pairs, one of each equal part of a video: middles, or with `rng` drawn; int (count,)."""
    inside = 0.5 if rng is None else rng.random(count)
    return ((np.arange(count) + inside) / count * num_frames).astype(int)


def pairs(index: Sequence[int], num_frames: int, *, lag: int = LAG) -> np.ndarray:
    """Return the frames of the pairs that begin at `index` (N,), int (2 N,); the last frame stands for what lies behind it."""
    index = np.asarray(index, int)
    return np.stack([index, np.minimum(index + lag, num_frames - 1)], 1).reshape(-1)


def clock(count: int) -> np.ndarray:
    """Return the nominal times of `count` frames that a row names itself, seconds (count,): chosen frames have no even clock."""
    return np.arange(count) / VIDEO_FPS


def instructions(found: Sequence[VideoRecord], *, draws: int = 1, seed: int = 0) -> list[dict]:
    """Return instruction rows that name their frames: pairs at the middles of equal parts, and with `draws` above 1 at drawn ones.

    Rows are those of `toy_dataset.instructions`; test and validation videos have one draw each.
    """
    rng, lengths, rows = np.random.default_rng(seed), {record.path: record.num_frames for record in found}, []
    for row in toy_dataset.instructions(found, seed=seed):
        count = lengths[row["video"]]
        for draw in range(draws if row["split"] == "train" else 1):
            begin = moments(count, rng=rng if draw else None)
            rows.append({**row, "id": len(rows), "frames": pairs(begin, count)})
    return rows


class PairSamples(InstructionSamples):
    """Rows that name their frames, as samples of one video of pairs each; a video's pixels are made once."""

    def __init__(self, rows: Sequence[dict], root: str | Path, vlm: VLM, **options):
        super().__init__(rows, root, vlm, random=False, as_video=True, **options)
        self._videos, self._texts = {}, {}

    def sample(self, place: int, answer: str | None) -> dict[str, Tensor]:
        """Return a row's question with another answer, or none."""
        row = self.rows[place]
        shown, text = (row["video"], tuple(row["frames"])), (row["question"], answer)
        if shown not in self._videos or text not in self._texts:
            encoded = super().sample(place, answer)
            if shown not in self._videos:
                self._videos[shown] = self._kept(encoded)
            self._texts[text] = {name: value for name, value in encoded.items() if name != PIXELS}
        return self._texts[text] | self._videos[shown]

    def _kept(self, encoded: dict[str, Tensor]) -> dict[str, Tensor]:
        return {PIXELS: encoded[PIXELS]}


class TokenSamples(PairSamples):
    """The same with visual tokens (1, N, C) instead of pixels: the frozen tower reads a video once.

    Train with `fit(..., wrap_model=partial(ReadTokens, vlm))`, ask with `answers`.
    """

    @torch.inference_mode()
    def _kept(self, encoded: dict[str, Tensor]) -> dict[str, Tensor]:
        return {TOKENS: chat.visual_tokens(self.vlm, encoded)[0].clone()[None].cpu()}


class ReadTokens(nn.Module):
    """A model that takes visual tokens (B, N, C), one video for each question, instead of pixels."""

    def __init__(self, vlm: VLM, model: nn.Module):
        super().__init__()
        self.model, self.config, self._vlm = model, model.config, vlm

    def forward(self, visual_tokens: Tensor, **inputs):
        """Return the model's own output."""
        inputs["mm_encoder_outputs"] = chat.encoder_outputs(self._vlm, tuple(visual_tokens), videos=len(visual_tokens))
        return self.model(**inputs)


def tune(vlm: VLM, rows: Sequence[dict], root: str | Path, *, plan: finetuning.LoraPlan, r: int = 64) -> tuple[VLM, pd.DataFrame]:
    """Return the model with a LoRA adapter tuned on rows that name their frames, and the loss curve."""
    kind = ", ".join(part for part in (vlm.kind, "LoRA") if part)
    samples = TokenSamples(rows, root, vlm)
    for place in range(len(samples)):  # before there is an adapter: it changes the language model only
        samples[place]
    model = finetuning.lora(vlm.model, r=r, alpha=2 * r, seed=plan.seed)
    tuned = vlm.replace(model=model, kind=kind, question=judgement_question(rows), num_frames=2 * MOMENTS)
    return tuned, finetuning.fit(tuned, samples, plan=plan, wrap_model=partial(ReadTokens, tuned))


@torch.inference_mode()
def answers(vlm: VLM, samples: TokenSamples, *, batch_size: int = 32, max_new_tokens: int = 24) -> list[str]:
    """Return the model's greedy answer to every row, in order."""
    texts = []
    for first in range(0, len(samples), batch_size):
        batch = chat.collate_prompts(vlm, [samples.sample(n, None) for n in range(first, min(first + batch_size, len(samples)))])
        texts += answer_tokens(vlm, batch, tuple(batch.pop(TOKENS)), max_new_tokens=max_new_tokens)
    return texts


def answer_tokens(vlm: VLM, prompts: dict[str, Tensor], tokens: Sequence[Tensor], *, max_new_tokens: int) -> list[str]:
    """Return the greedy answers to collated prompts, one for each video's visual tokens (N, C), given instead of pixels."""
    outputs = chat.encoder_outputs(vlm, tokens, videos=len(tokens))
    options = dict(do_sample=False, max_new_tokens=max_new_tokens, suppress_tokens=vlm.visual_token_ids)
    ids = vlm.model.generate(**prompts, mm_encoder_outputs=outputs, **options)
    return chat.decode(vlm, ids[:, prompts["input_ids"].shape[1] :])
