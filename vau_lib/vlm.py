"""One door to models that see and speak: load one (or a toy twin), ask it, tune it, and know what an answer cost.

- native transformers classes of InternVL 2.5/3 (`-hf` checkpoints) and Qwen2.5-VL; code from a hub runs only when told so
- nothing is generated before tokens and memory are counted and said, and nothing beyond the context or the frame cap
- a toy's answers carry a label that says toy: with random weights an answer is noise in the shape of an answer
- judgement, description and analysis are three questions: asked for all at once, the released model answers one of them
Source: Holmes-VAU, CVPR 2025 (arXiv 2412.06171), sections 4 and 5.1, and its released pipeline, holmesvau_utils.py:12-66.
"""

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BitsAndBytesConfig,
)
from transformers.utils import is_bitsandbytes_available, is_flash_attn_2_available

from vau_lib import dialogue, store, video
from vau_lib.dialogue import MAX_FRAMES, Speaker, collate, encode, frame_prompt
from vau_lib.lora import LoraPlan, Samples, fit, load_adapter, lora, lora_targets, merge, trainable_share
from vau_lib.twins import TinySizes, tiny

__all__ = ["LoraPlan", "Samples", "Speaker", "TinySizes", "collate", "encode", "fit", "frame_prompt", "load_adapter"]
__all__ += ["ask", "explain", "generate", "load", "lora", "lora_targets", "merge", "save", "tiny", "trainable_share"]

QUESTIONS = {  # one of the paper's ten of each kind
    "judgement": "Are there any anomaly events detected in the video?",
    "description": "Could you describe the anomaly events observed in the video?",
    "analysis": "Why do you judge this event to be anomalous?",
}
NEGATIVE = "no anomaly"  # how a judgement says that nothing is wrong, in any case
REMOTE = {"internvl_chat": "InternVL2"}  # model types that have no native class: their own code must run
NUM_FRAMES = 12  # of the released pipeline
GIB = 2**30


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
            f"{self.total_bytes / GIB:.2f} GiB (weights {self.weight_bytes / GIB:.2f}, cache {self.cache_bytes / GIB:.2f})"
        )


@dataclass(frozen=True)
class Explanation:
    """What a model said about one video and what it was shown; `scores` (N,) of the chosen frames, None without a scorer.

    `anomalous` is read off the judgement: False where it says "no anomaly", True where it says something else, None
    where it says neither. `model` carries the label of a toy. `analysis` is "" where the judgement was that nothing is.
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


def load(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device: str = "auto",
    attention: str = "auto",
    bits: int | None = None,
    trust_remote_code: bool = False,
    local_only: bool = False,
) -> Speaker:
    """Return a model from a folder or the hub, ready to speak.

    `dtype` "auto" is bfloat16 on an accelerator, float32 on the CPU; `device` "auto" spreads over what there is;
    `attention` "auto" is FlashAttention where it is installed and runs, else torch's own (SDPA). `bits` 4 or 8 needs
    bitsandbytes. `trust_remote_code` runs code that comes with the weights (InternVL2-2B, HolmesVAU-2B need it).
    StoreError in one line where weights are missing or of another family; ValueError for what cannot be had here.
    """
    config = _config(name_or_path, trust_remote_code, local_only)
    family = config.model_type
    if family in REMOTE and not trust_remote_code:
        raise ValueError(
            f"{name_or_path} ({REMOTE[family]}) runs code of its own: pass trust_remote_code=True to allow it"
        )
    if family not in (*dialogue.FAMILIES, *REMOTE):
        raise store.StoreError(f"{name_or_path} is a {family}, need one of {', '.join((*dialogue.FAMILIES, *REMOTE))}")
    options = _options(dtype, device, attention, bits)
    if family in REMOTE:
        options.pop("attn_implementation")  # their code chooses for itself, and refuses what it does not know
    kind = AutoModel if family in REMOTE else AutoModelForImageTextToText
    asked = dict(trust_remote_code=trust_remote_code, local_files_only=local_only)
    try:
        model = kind.from_pretrained(name_or_path, **options, **asked).eval()
        reader = AutoTokenizer if family in REMOTE else AutoProcessor  # their code prepares pictures itself
        processor = reader.from_pretrained(name_or_path, **asked)
    except (OSError, ValueError, RuntimeError) as error:
        raise store.StoreError(f"{name_or_path} cannot be loaded: {_line(error)}") from error
    made_by = Path(name_or_path) / "made_by.json"
    facts = store.read_json(made_by) if made_by.is_file() else {}
    return Speaker(model, processor, family, facts.get("name", Path(name_or_path).name), facts.get("kind", ""))


def _config(name_or_path, trust_remote_code, local_only):
    path = Path(name_or_path)
    looks_like_a_place = path.is_absolute() or str(name_or_path).startswith(".") or path.is_dir()
    if looks_like_a_place and not (path / "config.json").is_file():
        raise store.StoreError(
            f"no model at {name_or_path}: a folder with config.json, weights and processor files is needed"
        )
    try:
        return AutoConfig.from_pretrained(
            name_or_path, trust_remote_code=trust_remote_code, local_files_only=local_only
        )
    except ValueError as error:
        kind = store.read_json(path / "config.json").get("model_type") if path.is_dir() else None
        if kind in REMOTE or "trust_remote_code" in str(error):
            raise ValueError(f"{name_or_path} runs code of its own: pass trust_remote_code=True to allow it") from error
        raise store.StoreError(f"{name_or_path} has no readable config.json: {_line(error)}") from error
    except OSError as error:
        raise store.StoreError(f"no model {name_or_path} here or on the hub: {_line(error)}") from error


def _options(dtype, device: str, attention: str, bits: int | None) -> dict:
    fast = torch.cuda.is_available()
    if attention == "auto":
        attention = "flash_attention_2" if fast and is_flash_attn_2_available() else "sdpa"
    if dtype == "auto":
        dtype = torch.bfloat16 if fast else torch.float32
    options = dict(dtype=dtype, attn_implementation=attention)
    if device != "auto" or fast:
        options["device_map"] = device
    if bits is not None:
        if bits not in (4, 8):
            raise ValueError(f"bits must be 4, 8 or None, got {bits}")
        if not is_bitsandbytes_available():
            raise ValueError(f"bits={bits} needs the package bitsandbytes, which is not installed")
        options["quantization_config"] = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    return options


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def save(speaker: Speaker, folder: str | Path, **facts: object) -> Path:
    """Write model, processor and made_by.json as one folder that `load` reads; it appears whole or not at all.

    ValueError where the folder is there already and is not one of these.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / "made_by.json").is_file():
        raise ValueError(f"{folder} is there already and holds something else")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    speaker.model.save_pretrained(scratch)
    speaker.processor.save_pretrained(scratch)
    store.write_made_by(scratch, name=speaker.name, kind=speaker.kind, family=speaker.family, **facts)
    if folder.exists():
        old = Path(mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
        os.replace(folder, old / folder.name)
        shutil.rmtree(old)
    os.replace(scratch, folder)
    return folder


def cost(speaker: Speaker, batch: dict[str, Tensor], max_new_tokens: int) -> Cost:
    """Return what generating up to `max_new_tokens` after this batch takes; the cache is exact, the work an estimate.

    Cache: 2 x layers x key-value heads x head width x tokens x batch. Work: the widest layer's activations over the prompt
    and over the vision tower's patches (MLP and residual), which is what peaks in one forward pass.
    """
    model, text = speaker.model, speaker.model.config.get_text_config()
    rows, prompt = batch["input_ids"].shape
    size = torch.finfo(model.dtype).bits // 8
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * head * size
    marks = [getattr(speaker.processor, name, None) for name in ("image_token_id", "video_token_id")]
    pictures = int(sum((batch["input_ids"] == mark).sum() for mark in marks if mark is not None))
    vision = model.config.vision_config
    patches = pictures * _patches_per_token(speaker)
    work = rows * prompt * (2 * text.intermediate_size + 4 * text.hidden_size)
    work = max(work, patches * (2 * vision.intermediate_size + 4 * vision.hidden_size))
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    # the last new token is never fed back, so it has no place in the cache
    cache = rows * (prompt + max_new_tokens - 1) * per_token
    return Cost(rows * prompt, pictures, rows * max_new_tokens, weights, cache, work * size)


def _patches_per_token(speaker: Speaker) -> int:
    config = speaker.model.config
    if speaker.family == "internvl":
        return round(1 / config.downsample_ratio) ** 2
    return config.vision_config.spatial_merge_size**2


@torch.inference_mode()
def generate(
    speaker: Speaker,
    turns: Sequence[dict[str, Tensor]],
    *,
    max_new_tokens: int = 128,
    tell: Callable[[str], object] | None = print,
    **options,
) -> list[str]:
    """Answer turns of `encode` as one batch, greedily unless `options` for transformers' generate say otherwise.

    `tell` is told tokens and memory before anything runs (print; None for silence). ValueError where a prompt and its
    answer do not fit the context.
    """
    batch = collate(speaker, [{k: v for k, v in turn.items() if k != "labels"} for turn in turns], side="left")
    length = batch["input_ids"].shape[1]
    if length + max_new_tokens > speaker.context:
        raise ValueError(
            f"{length} tokens and {max_new_tokens} new ones exceed the {speaker.context} of {speaker.name}"
        )
    if tell is not None:
        tell(f"{speaker.label}: {cost(speaker, batch, max_new_tokens)}")
    marks = {getattr(speaker.processor, name, None) for name in ("image_token_id", "video_token_id")} - {None}
    settings = dict(do_sample=False, max_new_tokens=max_new_tokens, suppress_tokens=sorted(marks)) | options
    speaker.model.eval()
    out = speaker.model.generate(**dialogue.to_model(speaker, batch), **settings)
    return dialogue.say(speaker, out[:, length:])


def ask(
    speaker: Speaker,
    frames: np.ndarray,
    question: str,
    *,
    times_s: Sequence[float] | None = None,
    max_new_tokens: int = 128,
    tell: Callable[[str], object] | None = print,
    **how,
) -> str:
    """Answer one question about frames uint8 (T, H, W, 3); `how` goes to `encode` (released, max_frames, as_video)."""
    if speaker.family in REMOTE:
        raise ValueError(f"{speaker.family} speaks through its own code: call speaker.model.chat")
    turn = encode(speaker, frames, question, times_s=times_s, room=max_new_tokens, **how)
    return generate(speaker, [turn], max_new_tokens=max_new_tokens, tell=tell)[0]


def evenly(path: str | Path, num_frames: int) -> tuple[np.ndarray, None]:
    """Return the middles of `num_frames` equal parts of a video, and no scores: what `explain` does without a sampler."""
    return video.sample_index(video.probe(path).num_frames, num_frames), None


def explain(
    path: str | Path,
    speaker: Speaker,
    *,
    choose: Callable[[Path, int], tuple[np.ndarray, np.ndarray | None]] = evenly,
    num_frames: int = NUM_FRAMES,
    questions: dict[str, str] | None = None,
    max_new_tokens: int = 128,
    max_frames: int = MAX_FRAMES,
    tell: Callable[[str], object] | None = print,
) -> Explanation:
    """Choose frames of a video, ask for judgement, description and analysis one by one, return it all as one record.

    `choose(path, num_frames)` gives frame places (N,) and their scores (N,) or None; the anomaly-focused sampler fits.
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
    turns = {name: encode(speaker, frames, question, **asking) for name, question in questions.items()}

    def say(*names):
        chosen = [turns[name] for name in names]
        told.append(sum(turn["input_ids"].numel() for turn in chosen))
        return generate(speaker, chosen, max_new_tokens=max_new_tokens, tell=tell)

    judgement, description = say("judgement", "description")
    anomalous = judged(judgement)
    analysis = say("analysis")[0] if anomalous is not False else ""
    return Explanation(
        video=Path(path).name, model=speaker.label, anomalous=anomalous, judgement=judgement, description=description,
        analysis=analysis, index=tuple(index.tolist()), times_s=times_s,
        scores=None if scores is None else tuple(float(score) for score in scores), questions=questions,
        prompt_tokens=sum(told), seconds=round(time.perf_counter() - started, 3),
    )  # fmt: skip


def judged(judgement: str) -> bool | None:
    """Return whether a judgement says that something is anomalous; None where it says neither (babble, silence)."""
    said = judgement.lower()
    return False if NEGATIVE in said else True if "anomal" in said else None


def answers(speaker: Speaker, samples: Samples, *, batch_size: int = 16, max_new_tokens: int = 32) -> list[str]:
    """Return what the speaker answers to every row of `samples` (made with answers=False), in order, greedily."""
    if samples.answers:
        raise ValueError("samples hold the answers: make them with answers=False to ask")
    said = []
    for start in range(0, len(samples), batch_size):
        turns = [samples[place] for place in range(start, min(start + batch_size, len(samples)))]
        said += generate(speaker, turns, max_new_tokens=max_new_tokens, tell=None)
    return said


def judgement_accuracy(said: Sequence[str], rows: Sequence[dict]) -> dict[str, float]:
    """Return how often judgements are right: `judgement` on anomalous or not, with `low` and `high`, `name` with its name.

    The interval is Wilson's, 95 % over videos; an answer that says neither counts as wrong. ValueError where answers and
    rows are not one to one.
    """
    if len(said) != len(rows) or not rows:
        raise ValueError(f"need an answer per row, got {len(said)} answers and {len(rows)} rows")
    right = [judged(a) == judged(row["answer"]) for a, row in zip(said, rows, strict=True)]
    named = [a.strip() == row["answer"].strip() for a, row in zip(said, rows, strict=True)]
    share = binomtest(sum(right), len(right)).proportion_ci(method="wilson")
    return {
        "judgement": float(np.mean(right)), "low": float(share.low), "high": float(share.high),
        "name": float(np.mean(named)), "rows": len(rows),
    }  # fmt: skip
