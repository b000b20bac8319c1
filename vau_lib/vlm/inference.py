"""One door to models that see and speak: load one (or a toy twin), ask it, tune it, and know what an answer cost.

- native transformers classes of InternVL 2.5/3 (`-hf` checkpoints) and Qwen2.5-VL; code from a hub runs only when told so
- nothing is generated before tokens and memory are counted and said, and nothing beyond the context or the frame cap
- a toy's answers carry a label that says toy: with random weights an answer is noise in the shape of an answer
- judgement, description and analysis are three questions: asked for all at once, the released model answers one of them
Source: Holmes-VAU, CVPR 2025 (arXiv 2412.06171), sections 4 and 5.1, and its released pipeline, holmesvau_utils.py:12-66.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor
from transformers import TextStreamer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vau_lib.data import video
from vau_lib.data.answer_parsing import parse_verdict
from vau_lib.vlm import chat
from vau_lib.vlm.chat import MAX_FRAMES, collate, encode
from vau_lib.vlm.instruction_data import InstructionSamples
from vau_lib.vlm.models import REMOTE, VLM

QUESTIONS = {  # one of the paper's ten of each kind
    "judgement": "Are there any anomaly events detected in the video?",
    "description": "Could you describe the anomaly events observed in the video?",
    "analysis": "Why do you judge this event to be anomalous?",
}

NUM_FRAMES = 12  # of the released pipeline


@dataclass(frozen=True)
class Cost:
    """What one call of generate needs: tokens, and bytes of weights, of the cache at its longest, of the widest layer."""

    prompt_tokens: int
    picture_tokens: int
    new_tokens: int
    weight_bytes: int
    cache_bytes: int
    work_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.cache_bytes + self.work_bytes

    def __str__(self) -> str:
        return (
            f"{self.prompt_tokens} tokens in ({self.picture_tokens} of pictures), up to {self.new_tokens} out; about "
            f"{_size(self.total_bytes)} (weights {_size(self.weight_bytes)}, cache {_size(self.cache_bytes)})"
        )


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.2f} MiB"


@dataclass(frozen=True)
class Explanation:
    """What a model said about one video and what it was shown; `scores` (N,) of the chosen frames, None without a scorer.

    `anomalous` is read off the judgement: False where it denies an anomaly, True where it states one, None where it
    gives no verdict. `model` carries the label of a toy. `analysis` is "" where the judgement was that nothing is.
    """

    video: str
    model: str
    anomalous: bool | None
    judgement: str
    description: str
    analysis: str
    index: tuple[int, ...]
    times_s: tuple[float, ...]
    scores: tuple[float, ...] | None
    questions: dict[str, str]
    prompt_tokens: int
    seconds: float

    def as_row(self) -> dict:
        """Return it as one JSON object."""
        return asdict(self)


def cost(vlm: VLM, batch: dict[str, Tensor], max_new_tokens: int) -> Cost:
    """Return what generating up to `max_new_tokens` after this batch takes; the cache is exact, the work an estimate.

    Cache: 2 x layers x key-value heads x head width x tokens x batch. Work: the widest layer's activations over the prompt
    and over the vision tower's patches (MLP and residual), which is what peaks in one forward pass.
    """
    model, text = vlm.model, vlm.model.config.get_text_config()
    rows, prompt = batch["input_ids"].shape
    size = torch.finfo(model.dtype).bits // 8
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * head * size
    marks = [getattr(vlm.processor, name, None) for name in ("image_token_id", "video_token_id")]
    pictures = int(sum((batch["input_ids"] == mark).sum() for mark in marks if mark is not None))
    vision = model.config.vision_config
    patches = pictures * _patches_per_token(vlm)
    work = rows * prompt * (2 * text.intermediate_size + 4 * text.hidden_size)
    work = max(work, patches * (2 * vision.intermediate_size + 4 * vision.hidden_size))
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    # the last new token is never fed back, so it has no place in the cache
    cache = rows * (prompt + max_new_tokens - 1) * per_token
    return Cost(rows * prompt, pictures, rows * max_new_tokens, weights, cache, work * size)


def _patches_per_token(vlm: VLM) -> int:
    config = vlm.model.config
    if vlm.family == "internvl":
        return round(1 / config.downsample_ratio) ** 2
    return config.vision_config.spatial_merge_size**2


@torch.inference_mode()
def generate(
    vlm: VLM,
    turns: Sequence[dict[str, Tensor]],
    *,
    max_new_tokens: int = 128,
    seen: Sequence[Tensor] | None = None,
    tell: Callable[[str], object] | None = print,
    **options,
) -> list[str]:
    """Answer turns of `encode` as one batch, greedily unless `options` for transformers' generate say otherwise.

    `seen`, from `see`, are the picture tokens of turns that all show the same frames: nothing is looked at again.

    `tell` is told tokens and memory before anything runs (print; None for silence). ValueError where a prompt and its
    answer do not fit the context.
    """
    batch = collate(vlm, [{k: v for k, v in turn.items() if k != "labels"} for turn in turns], side="left")
    length = batch["input_ids"].shape[1]
    if length + max_new_tokens > vlm.context:
        raise ValueError(f"{length} tokens and {max_new_tokens} new ones exceed the {vlm.context} of {vlm.name}")
    if tell is not None:
        tell(f"{vlm.label}: {cost(vlm, batch, max_new_tokens)}")
    marks = {getattr(vlm.processor, name, None) for name in ("image_token_id", "video_token_id")} - {None}
    settings = dict(do_sample=False, max_new_tokens=max_new_tokens, suppress_tokens=sorted(marks)) | options
    vlm.model.eval()
    if seen is not None:
        del batch["pixel_values"]
        # a fresh object per call: generate changes it
        settings["mm_encoder_outputs"] = {
            "image": BaseModelOutputWithPooling(pooler_output=_of_all(vlm, seen, len(turns)))
        }
    out = vlm.model.generate(**chat.to_model(vlm, batch), **settings)
    return chat.decode(vlm, out[:, length:])


class _Pieces(TextStreamer):
    """Hands on text as it is made."""

    def __init__(self, tokenizer, write):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.write(text)


def streamer(vlm: VLM, write: Callable[[str], object]) -> TextStreamer:
    """Return what `generate` takes as `streamer`: `write` gets pieces of an answer as they are made; one turn at a time."""
    return _Pieces(vlm.tokenizer, write)


@torch.inference_mode()
def image_features(vlm: VLM, turn: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Return a turn's pictures as the tokens the language model reads, one (tokens, width) per frame: one call of the tower."""
    inputs, core = chat.to_model(vlm, turn), vlm.model
    if vlm.family == "internvl":
        return tuple(core.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output)
    return tuple(core.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output)


def _of_all(vlm: VLM, seen: Sequence[Tensor], times: int) -> Tensor | tuple[Tensor, ...]:
    """Return the frames' tokens once per turn, as the family's forward takes them."""
    tokens = tuple(seen) * times
    return torch.stack(tokens) if vlm.family == "internvl" else tokens


def ask(
    vlm: VLM,
    frames: np.ndarray,
    question: str,
    *,
    times_s: Sequence[float] | None = None,
    max_new_tokens: int = 128,
    tell: Callable[[str], object] | None = print,
    **how,
) -> str:
    """Answer one question about frames uint8 (T, H, W, 3); `how` goes to `encode` (released, max_frames, as_video)."""
    if vlm.family in REMOTE:
        raise ValueError(f"{vlm.family} speaks through its own code: call vlm.model.chat")
    turn = encode(vlm, frames, question, times_s=times_s, room=max_new_tokens, **how)
    return generate(vlm, [turn], max_new_tokens=max_new_tokens, tell=tell)[0]


def uniform_frames(path: str | Path, num_frames: int) -> tuple[np.ndarray, None]:
    """Return the middles of `num_frames` equal parts of a video, and no scores: what `explain` does without a sampler."""
    return video.sample_index(video.probe(path).num_frames, num_frames), None


def explain(
    path: str | Path,
    vlm: VLM,
    *,
    choose: Callable[[Path, int], tuple[np.ndarray, np.ndarray | None]] = uniform_frames,
    look: Callable[[np.ndarray], Sequence[Tensor]] | None = None,
    num_frames: int = NUM_FRAMES,
    questions: dict[str, str] | None = None,
    max_new_tokens: int = 128,
    max_frames: int = MAX_FRAMES,
    tell: Callable[[str], object] | None = print,
) -> Explanation:
    """Choose frames of a video, ask for judgement, description and analysis one by one, return it all as one record.

    `choose(path, num_frames)` gives frame places (N,) and their scores (N,) or None; the anomaly-focused sampler fits.
    `look(index)` gives the chosen frames' picture tokens where somebody has seen them before; else the tower is asked once.
    The analysis is not asked where nothing anomalous was judged: "why is this anomalous" would contradict it. VideoError
    for a file that is none; ValueError for more than `max_frames` frames and for scores that are not one per frame.
    """
    started, questions = time.perf_counter(), QUESTIONS | (questions or {})
    if num_frames > max_frames:
        raise ValueError(f"{num_frames} frames are more than max_frames={max_frames}: choose fewer")
    index, scores = choose(Path(path), num_frames)
    index = np.asarray(index, int)
    if scores is not None and np.shape(scores) != index.shape:
        raise ValueError(
            f"choose gave {index.shape} frames and scores {np.shape(scores)}: one score per frame is needed"
        )
    frames, told = video.read_frames(path, index), []
    times_s = tuple(video.frame_times(path)[index].round(3).tolist())
    asking = dict(times_s=times_s, room=max_new_tokens, max_frames=max_frames)
    turns = {name: encode(vlm, frames, question, **asking) for name, question in questions.items()}

    # once: the frames are the same in all three
    seen = image_features(vlm, turns["judgement"]) if look is None else tuple(look(index))

    def say(*names):
        chosen = [turns[name] for name in names]
        told.append(sum(turn["input_ids"].numel() for turn in chosen))
        return generate(vlm, chosen, max_new_tokens=max_new_tokens, seen=seen, tell=tell)

    judgement, description = say("judgement", "description")
    verdict = parse_verdict(judgement)
    anomalous = None if verdict is None else bool(verdict)
    analysis = say("analysis")[0] if verdict != 0 else ""
    return Explanation(
        video=Path(path).name, model=vlm.label, anomalous=anomalous, judgement=judgement, description=description,
        analysis=analysis, index=tuple(index.tolist()), times_s=times_s,
        scores=None if scores is None else tuple(float(score) for score in scores), questions=questions,
        prompt_tokens=sum(told), seconds=round(time.perf_counter() - started, 3),
    )  # fmt: skip


def answers(vlm: VLM, samples: InstructionSamples, *, batch_size: int = 16, max_new_tokens: int = 32) -> list[str]:
    """Return what the model answers to every row of `samples` (made with answers=False), in order, greedily."""
    if samples.answers:
        raise ValueError("samples hold the answers: make them with answers=False to ask")
    said = []
    for start in range(0, len(samples), batch_size):
        turns = [samples[place] for place in range(start, min(start + batch_size, len(samples)))]
        said += generate(vlm, turns, max_new_tokens=max_new_tokens, tell=None)
    return said


@torch.inference_mode()
def likeliest_answers(
    vlm: VLM, samples: InstructionSamples, candidates: Sequence[str], *, batch_size: int = 16
) -> list[str]:
    """Return which of the candidate answers the model finds likeliest for every row: a choice forced on it.

    Likelihood is the mean of the log-probabilities of an answer's tokens, its end too. What a model would say when it may
    not say anything else: the fair way to ask one that was never taught the form of an answer.
    """
    likelihood = np.empty((len(samples), len(candidates)))
    for start in range(0, len(samples), batch_size):
        places = range(start, min(start + batch_size, len(samples)))
        for column, candidate in enumerate(candidates):
            batch = chat.to_model(vlm, collate(vlm, [samples.turn(place, candidate) for place in places]))
            labels = batch.pop("labels")[:, 1:]
            scores = vlm.model(**batch).logits[:, :-1].float().log_softmax(-1)
            learned = labels != chat.IGNORED
            said = scores.gather(-1, labels.clamp_min(0)[..., None])[..., 0]
            likelihood[places, column] = ((said * learned).sum(1) / learned.sum(1)).cpu().numpy()
    return [candidates[best] for best in likelihood.argmax(1)]


def judgement_accuracy(said: Sequence[str], rows: Sequence[dict]) -> dict[str, float]:
    """Return how often judgements are right: `judgement` on anomalous or not, with `low` and `high`, `name` with its name.

    The interval is Wilson's, 95 % over videos; an answer that says neither counts as wrong. ValueError where answers and
    rows are not one to one.
    """
    if len(said) != len(rows) or not rows:
        raise ValueError(f"need an answer per row, got {len(said)} answers and {len(rows)} rows")
    right = [parse_verdict(a) == parse_verdict(row["answer"]) for a, row in zip(said, rows, strict=True)]
    named = [a.strip() == row["answer"].strip() for a, row in zip(said, rows, strict=True)]
    share = binomtest(sum(right), len(right)).proportion_ci(method="wilson")
    return {
        "judgement": float(np.mean(right)), "low": float(share.low), "high": float(share.high),
        "name": float(np.mean(named)), "rows": len(rows),
    }  # fmt: skip
