"""Asking a vision-language model: batched generation with a cost estimate, the three questions of Holmes-VAU, accuracy.

- tokens and memory are counted and logged before anything is generated, after pruning where tokens are pruned; nothing runs
  beyond the context or the frame cap
- the probability of each token of an answer is kept on request: how sure a verdict is
- judgement, description and analysis are three prompts: asked for all at once, the released model answers one of them
- frames go through the vision tower once, and their visual tokens serve all three prompts
- a toy's answers carry a label that says toy
Source: Holmes-VAU, CVPR 2025 (arXiv 2412.06171), sections 4 and 5.1, and its released pipeline, holmesvau_utils.py:12-66.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, TextStreamer

from vau_lib.compression.token_pruning import Selection, TokenPrunedModel
from vau_lib.data import answer_parsing, video
from vau_lib.data.answer_parsing import parse_verdict
from vau_lib.vlm import chat
from vau_lib.vlm.instruction_data import InstructionSamples
from vau_lib.vlm.models import VLM

QUESTIONS = {  # one of the paper's ten of each kind
    "judgement": "Are there any anomaly events detected in the video?",
    "description": "Could you describe the anomaly events observed in the video?",
    "analysis": "Why do you judge this event to be anomalous?",
}
NUM_FRAMES = 12  # of the released pipeline
Log = Callable[[str], object]  # takes a line of text, such as print


@dataclass(frozen=True)
class Cost:
    """What one call of generate needs: tokens, and bytes of weights, of the longest cache, of the widest activations."""

    prompt_tokens: int
    visual_tokens: int
    new_tokens: int
    weight_bytes: int
    cache_bytes: int
    activation_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.cache_bytes + self.activation_bytes

    def __str__(self) -> str:
        return (
            f"{self.prompt_tokens} tokens in ({self.visual_tokens} visual), up to {self.new_tokens} out; about "
            f"{_size(self.total_bytes)} (weights {_size(self.weight_bytes)}, cache {_size(self.cache_bytes)})"
        )


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.2f} MiB"


@dataclass(frozen=True)
class Explanation:
    """What a model answers about one video's frames at `times_s`.

    `anomalous` is read off the judgement: True, False, or None where it gives no verdict. `analysis` is "" where the
    judgement denies an anomaly. `model` carries the label of a toy.
    """

    model: str
    anomalous: bool | None
    judgement: str
    description: str
    analysis: str
    times_s: tuple[float, ...]
    prompt_tokens: int
    seconds: float


@dataclass(frozen=True)
class Answer:
    """One answer: its text, the probability of its verdict's tokens (None without a verdict), tokens read and generated.

    `cut` says that the limit ended it, not the model. `confidence` is the product of the probabilities of the words that state
    the verdict: of the label in JSON, of "An anomaly exists" in a sentence.
    """

    text: str
    confidence: float | None
    prompt_tokens: int
    new_tokens: int
    cut: bool


def cost(vlm: VLM, batch: dict[str, Tensor], max_new_tokens: int, selection: Selection | None = None) -> Cost:
    """Estimate what generating up to `max_new_tokens` after this batch takes; the cache is exact.

    With the `selection` of a model that prunes tokens only those that are read count.

    Cache: 2 x layers x key-value heads x head width x tokens x batch. Activations: the widest layer's over the prompt
    and over the vision tower's patches (MLP and residual), which is the peak of one forward pass.
    """
    model, text = vlm.model, vlm.model.config.get_text_config()
    batch_size, prompt = batch["input_ids"].shape
    size = torch.finfo(model.dtype).bits // 8
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * head * size
    visual = int(sum((batch["input_ids"] == token).sum() for token in vlm.visual_token_ids))
    vision = model.config.vision_config
    encoded = visual
    if selection is not None:
        prompt, visual, encoded = selection.read, selection.visual, selection.encoded
    patches = encoded * _patches_per_token(vlm)
    activations = batch_size * prompt * (2 * text.intermediate_size + 4 * text.hidden_size)
    activations = max(activations, patches * (2 * vision.intermediate_size + 4 * vision.hidden_size))
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    # the last new token is never fed back, so it has no place in the cache
    cache = batch_size * (prompt + max_new_tokens - 1) * per_token
    return Cost(batch_size * prompt, visual, batch_size * max_new_tokens, weights, cache, activations * size)


def _patches_per_token(vlm: VLM) -> int:
    config = vlm.model.config
    if vlm.family == "internvl":
        return round(1 / config.downsample_ratio) ** 2
    return config.vision_config.spatial_merge_size**2


def generate(
    vlm: VLM,
    samples: Sequence[dict[str, Tensor]],
    *,
    max_new_tokens: int = 128,
    tokens: Sequence[Tensor] | None = None,
    log: Log | None = print,
    **options,
) -> list[str]:
    """Answer samples of `chat.encode` as one batch, greedily unless `options` for transformers' generate say otherwise.

    `tokens` are the visual tokens of the frames that all samples show: the vision tower is not called again. `log`
    gets tokens and memory before anything runs. ValueError where a prompt and its answer do not fit the context; of a model that
    prunes tokens only those that are read count.
    """
    ids, length, _ = _generate(vlm, samples, max_new_tokens, tokens, log, options)
    return chat.decode(vlm, ids[:, length:])


def generate_answers(
    vlm: VLM, samples: Sequence[dict[str, Tensor]], *, max_new_tokens: int = 128, log: Log | None = print, **options
) -> list[Answer]:
    """Answer like `generate`, one answer per sample, with the confidence of its verdict and the tokens it took."""
    recorder = TokenLogprobs()
    options = {"logits_processor": LogitsProcessorList([recorder]), **options}
    ids, length, read = _generate(vlm, samples, max_new_tokens, None, log, options)
    new = ids[:, length:]
    logprobs = recorder.of(new).tolist()
    ends = {vlm.tokenizer.eos_token_id, vlm.tokenizer.pad_token_id}
    configured = getattr(vlm.model.generation_config, "eos_token_id", None)
    ends |= set(configured if isinstance(configured, list) else [configured])
    answers = []
    for row, row_logprobs, count in zip(new.tolist(), logprobs, read, strict=True):
        size = next((place for place, token in enumerate(row) if token in ends), len(row))

        def prefix(number: int, row=row) -> str:
            return vlm.tokenizer.decode(row[:number], skip_special_tokens=True)

        words = answer_parsing.verdict_tokens(prefix, size)
        confidence = None if words is None else float(np.exp(sum(row_logprobs[place] for place in words)))
        text = chat.decode(vlm, torch.tensor([row]))[0]
        answers.append(Answer(text, confidence, count, size, size == len(row) == max_new_tokens))
    return answers


@torch.inference_mode()
def _generate(vlm, samples, max_new_tokens, tokens, log, options) -> tuple[Tensor, int, list[int]]:
    """Return ids (B, L + new), the prompt's length L with padding, and how many tokens of each prompt are read."""
    batch = chat.collate_prompts(vlm, samples)
    length = batch["input_ids"].shape[1]
    pruned, selection = isinstance(vlm.model, TokenPrunedModel), None
    if not pruned and length + max_new_tokens > vlm.context_length:
        raise ValueError(f"{length} tokens and {max_new_tokens} new ones exceed the {vlm.context_length} of {vlm.name}")
    vlm.model.eval()
    read, settings = batch["attention_mask"], dict(do_sample=False, max_new_tokens=max_new_tokens)
    settings |= dict(suppress_tokens=vlm.visual_token_ids) | options
    if tokens is not None:
        del batch["pixel_values"]
        settings["mm_encoder_outputs"] = chat.encoder_outputs(vlm, tuple(tokens) * len(samples))
    moved = chat.to_model(vlm, batch)
    if pruned and (selection := vlm.model.select(**moved)) is not None:
        settings["selection"], read = selection, selection.keep
        if selection.read + max_new_tokens > vlm.context_length:
            raise ValueError(
                f"{selection.read} tokens that are read of {length}, and {max_new_tokens} new ones exceed the "
                f"{vlm.context_length} of {vlm.name}: lower keep_ratio or show fewer frames"
            )
    if log is not None:
        log(f"{vlm.label}: {cost(vlm, batch, max_new_tokens, selection)}")
    ids = vlm.model.generate(**moved, **settings)
    return ids, length, read.sum(1).tolist()


class TokenLogprobs(LogitsProcessor):
    """Keeps the log-probability of every token that is chosen, after all other processors; only one step's scores wait."""

    def __init__(self):
        self.done: list[Tensor] = []
        self.waiting: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.waiting is not None:
            self._choose(input_ids[:, -1])
        self.waiting = scores.float().log_softmax(-1)
        return scores

    def _choose(self, ids: Tensor) -> None:
        self.done.append(self.waiting.gather(1, ids[:, None].to(self.waiting.device))[:, 0].cpu())
        self.waiting = None

    def of(self, ids: Tensor) -> Tensor:
        """Return the log-probabilities of the tokens that were generated, ids (B, N) -> (B, N)."""
        if self.waiting is not None:
            self._choose(ids[:, -1])
        return torch.stack(self.done, 1)


class AnswerStreamer(TextStreamer):
    """`streamer` of `generate` for one sample at a time: `write` gets pieces of the answer as they are generated."""

    def __init__(self, vlm: VLM, write: Log):
        super().__init__(vlm.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.write(text)


def uniform_frames(path: str | Path, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Read the middles of `num_frames` equal parts of a video: frames uint8 (N, H, W, 3), times in seconds (N,)."""
    index = video.sample_index(video.probe(path).num_frames, num_frames)
    return video.read_frames(path, index, reader="pyav"), video.frame_times(path)[index].round(3)


def explain(
    vlm: VLM,
    frames: np.ndarray,
    times_s: Sequence[float],
    *,
    tokens: Sequence[Tensor] | None = None,
    max_new_tokens: int = 128,
    max_pixels: int | None = None,
    log: Log | None = print,
) -> Explanation:
    """Ask for judgement, description and analysis of a video's frames, one prompt each.

    A judgement is asked for as in the model's tuning, if it carries that question. The analysis is not asked where the
    judgement denies an anomaly: "why is this anomalous" would contradict it.

    Args:
        vlm: the model.
        frames: uint8 (N, H, W, 3).
        times_s: seconds of the frames, rising.
        tokens: the frames' visual tokens (N, tokens, C) where they are known; else the vision tower is called once.
        max_new_tokens: tokens an answer may have.
        max_pixels: largest area of a frame, see `chat.encode`; the one that `tokens` were made with.
        log: gets a line with the cost of each call of generate.
    """
    started = time.perf_counter()
    times_s = tuple(float(second) for second in times_s)
    settings = dict(times_s=times_s, max_new_tokens=max_new_tokens, max_pixels=max_pixels)
    questions = QUESTIONS | ({"judgement": vlm.question} if vlm.question else {})
    samples = {name: chat.encode(vlm, frames, question, **settings) for name, question in questions.items()}
    if tokens is None:
        with torch.inference_mode():
            tokens = chat.visual_tokens(vlm, samples["judgement"])
    shared = dict(max_new_tokens=max_new_tokens, tokens=tokens, log=log)
    names = ["judgement", "description"]
    judgement, description = generate(vlm, [samples[name] for name in names], **shared)
    verdict, analysis = parse_verdict(judgement), ""
    if verdict != 0:
        names.append("analysis")
        (analysis,) = generate(vlm, [samples["analysis"]], **shared)
    return Explanation(
        model=vlm.label,
        anomalous=None if verdict is None else bool(verdict),
        judgement=judgement,
        description=description,
        analysis=analysis,
        times_s=times_s,
        prompt_tokens=sum(samples[name]["input_ids"].numel() for name in names),
        seconds=round(time.perf_counter() - started, 3),
    )


def answers(vlm: VLM, samples: InstructionSamples, *, batch_size: int = 16, max_new_tokens: int = 32) -> list[str]:
    """Return the model's greedy answer to every row of `samples` (made with answers=False), in order."""
    if samples.answers:
        raise ValueError("samples hold the answers: make them with answers=False to ask")
    texts = []
    for start in range(0, len(samples), batch_size):
        batch = [samples[place] for place in range(start, min(start + batch_size, len(samples)))]
        texts += generate(vlm, batch, max_new_tokens=max_new_tokens, log=None)
    return texts


@torch.inference_mode()
def likeliest_answers(vlm: VLM, samples: InstructionSamples, candidates: Sequence[str], *, batch_size: int = 16) -> list[str]:
    """Return which of the candidate answers is likeliest for every row: a forced choice.

    Likelihood is the mean log-probability of an answer's tokens and its end. It measures a model that was never taught
    the form of an answer.
    """
    likelihood = np.empty((len(samples), len(candidates)))
    for start in range(0, len(samples), batch_size):
        places = range(start, min(start + batch_size, len(samples)))
        for column, candidate in enumerate(candidates):
            batch = chat.collate(vlm, [samples.sample(place, candidate) for place in places])
            batch = chat.to_model(vlm, batch)
            labels = batch.pop("labels")[:, 1:]
            logprobs = vlm.model(**batch).logits[:, :-1].float().log_softmax(-1)
            mask = labels != chat.IGNORED
            logprobs = logprobs.gather(-1, labels.clamp_min(0)[..., None])[..., 0]
            likelihood[places, column] = ((logprobs * mask).sum(1) / mask.sum(1)).cpu().numpy()
    return [candidates[best] for best in likelihood.argmax(1)]


def judgement_accuracy(answers: Sequence[str], rows: Sequence[dict]) -> dict[str, float]:
    """Return how often judgements are right: `judgement` (anomalous or not) with `low` and `high`, `name` (exact text).

    The interval is Wilson's, 95 % over videos; an answer that says neither counts as wrong. ValueError where answers
    and rows are not one to one.
    """
    if len(answers) != len(rows) or not rows:
        raise ValueError(f"need an answer per row, got {len(answers)} answers and {len(rows)} rows")
    pairs = list(zip(answers, (row["answer"] for row in rows), strict=True))
    correct = [parse_verdict(answer) == parse_verdict(truth) for answer, truth in pairs]
    exact = [answer.strip() == truth.strip() for answer, truth in pairs]
    interval = binomtest(sum(correct), len(correct)).proportion_ci(method="wilson")
    return {
        "judgement": float(np.mean(correct)), "low": float(interval.low), "high": float(interval.high),
        "name": float(np.mean(exact)), "rows": len(rows),
    }  # fmt: skip


def judge(
    vlm: VLM, rows: Sequence[dict], root: str | Path, *, num_frames: int, blind: bool = False
) -> tuple[dict[str, float], list[str]]:
    """Return (`judgement_accuracy`, answers) on judgement rows, frames from interval middles or, `blind`, black ones."""
    samples = InstructionSamples(rows, root, vlm, answers=False, random=False, num_frames=num_frames, blind=blind)
    texts = answers(vlm, samples)
    return judgement_accuracy(texts, rows), texts
