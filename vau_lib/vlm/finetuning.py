"""Teach a model to judge by adding little: low-rank changes to the language model, everything that sees stays frozen.

- rank 64, alpha 128, dropout .05 on attention and MLP projections of the language model only, as Holmes-VAU trains it
- learned are the answer's tokens and its end; a frame is drawn at random from each of equal intervals, so that an epoch
  later the same video is other frames; or frames are given (a sampler's own picks, which the released code cannot take)
- one engine, `transformers.Trainer`: checkpoints, resume, schedules, and several GPUs by `accelerate launch` or `torchrun`.
  With more memory than one device has: `deepspeed=` of `LoraPlan` takes a ZeRO configuration file (the paper: stage 1)
Source: Holmes-VAU code, shell/internvl2_2b_finetune_lora.sh, internvl_chat/finetune.py:424-486, dataset.py:35-130.
"""

import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from vau_lib import store, video
from vau_lib.dialogue import Speaker, collate, encode

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PROJECTIONS_INTERNLM2 = ("wqkv", "wo", "w1", "w2", "w3")  # the same, as the released model's own code names them
CLIP_FRAMES = range(6, 13)  # drawn anew every time; events and whole videos get the last
KEPT_BYTES = 2**30  # of decoded frames a data set keeps; what does not fit is decoded again
KEPT_WHOLE = (
    2**24
)  # bytes up to which a video is decoded whole and kept; of a longer one only the chosen frames are read


@dataclass(frozen=True)
class LoraPlan:
    """How to train; the defaults are the paper's, but the batch: there devices x `batch_size` x `accumulate` make 512.

    `max_steps` > 0 goes before `epochs`; `deepspeed` is a ZeRO configuration file; `checkpointing` trades time for memory.
    """

    epochs: float = 1.0
    max_steps: int = -1
    learning_rate: float = 4e-5
    weight_decay: float = 0.01
    warmup_share: float = 0.03
    batch_size: int = 4
    accumulate: int = 1
    clip: float = 1.0
    save_steps: int = 200
    log_steps: int = 10
    checkpointing: bool = False
    deepspeed: str | None = None
    seed: int = 0


def lora_targets(model: nn.Module) -> list[str]:
    """Return the names of the language model's attention and MLP projections: what LoRA changes, and nothing else."""
    ends = "|".join((*PROJECTIONS, *PROJECTIONS_INTERNLM2))
    pattern = re.compile(rf"(.*\.)?language_model\..*\.({ends})")
    return [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and pattern.fullmatch(name)]


def lora(
    model: nn.Module, *, r: int = 64, alpha: int = 128, dropout: float = 0.05, tokens: Sequence[int] = (), seed: int = 0
) -> PeftModel:  # fmt: skip
    """Return the model with trainable low-rank changes on `lora_targets`; all else is frozen. Its weights are shared.

    `tokens` are ids whose own vectors learn too: words the model never said before have random ones, and LoRA leaves them.
    A fresh adapter changes nothing (B starts at 0). ValueError where there is no language model with such projections.
    """
    targets = lora_targets(model)
    if not targets:
        raise ValueError(f"{type(model).__name__} has no language_model with projections {', '.join(PROJECTIONS)}")
    if r < 1 or alpha <= 0 or not 0 <= dropout < 1:
        raise ValueError(f"need r >= 1, alpha > 0 and dropout in [0, 1), got {r}, {alpha}, {dropout}")
    config = LoraConfig(
        r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, task_type="CAUSAL_LM",
        trainable_token_indices=sorted(tokens) or None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with _quietly():
            return get_peft_model(model, config)


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence one warning: peft 0.21 asks transformers 5.23 by a name that is being renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
        yield


def trainable_share(model: nn.Module) -> tuple[int, int]:
    """Return (weights that train, all weights)."""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trains in counts if trains), sum(n for n, _ in counts)


def merge(model: PeftModel, adapter: str | Path | None = None) -> nn.Module:
    """Return the plain model with the adapter's changes added into its weights; ValueError for NaN or a plain model.

    With `adapter`, a folder written by training, `model` is the plain model it was trained on.
    """
    if adapter is not None:
        model = load_adapter(model, adapter)
    if not isinstance(model, PeftModel):
        raise ValueError(f"nothing to merge: {type(model).__name__} has no adapter")
    merged = model.merge_and_unload(safe_merge=True)
    return merged.requires_grad_(False).eval()


def load_adapter(model: nn.Module, folder: str | Path) -> PeftModel:
    """Return the model with a trained adapter from a folder; StoreError where there is none or it does not fit."""
    if not (Path(folder) / "adapter_config.json").is_file():
        raise store.StoreError(f"no adapter at {folder}")
    try:
        with _quietly():
            return PeftModel.from_pretrained(model, str(folder)).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise store.StoreError(f"the adapter at {folder} does not fit: {' '.join(str(error).split())[:200]}") from error


def interval_frames(first: int, last: int, count: int, rng: np.random.Generator | None) -> np.ndarray:
    """Return `count` frame places, one from each of equal intervals of [first, last), sorted; repeats where there are fewer.

    Drawn by `rng`; the middles without. The released code never draws an interval's last frame; every one can come here.
    """
    if last <= first or count < 1:
        raise ValueError(f"need frames to choose from and a count, got [{first}, {last}) and {count}")
    edges = np.linspace(first, last, count + 1)
    share = 0.5 if rng is None else rng.random(count)
    return np.minimum((edges[:-1] + share * np.diff(edges)).astype(int), last - 1)


class Samples(torch.utils.data.Dataset):
    """Instruction rows as turns of a conversation, with labels; an item is what `dialogue.encode` returns.

    A row holds id, level (clip, event, video), task, video, span_s ([start, end) or None), question, answer. `root` is
    where videos lie. Frames are random, one per equal interval; `random` False takes the middles, `picks(row)` gives their
    places. `answers` False leaves the answer out (to ask), `blind` shows black frames (what language alone can guess).
    """

    def __init__(
        self,
        rows: Sequence[Mapping],
        root: str | Path,
        speaker: Speaker,
        *,
        random: bool = True,
        picks: Callable[[Mapping], np.ndarray] | None = None,
        num_frames: int | None = None,
        released: bool = False,
        answers: bool = True,
        blind: bool = False,
        seed: int = 0,
    ):
        self.rows, self.root, self.speaker = [_checked(row) for row in rows], Path(root), speaker
        if not self.rows:
            raise ValueError("no instruction rows to train on")
        self.random, self.picks, self.num_frames = random, picks, num_frames
        self.answers, self.blind = answers, blind
        self.released, self.seed, self.epoch = "train" if released else None, seed, 0
        self._kept: dict[str, np.ndarray] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.rows)

    def index(self, place: int) -> np.ndarray:
        """Return the frames a row shows in this epoch, int (N,), places in its video."""
        row = self.rows[place]
        if self.picks is not None:
            return np.asarray(self.picks(row), int)
        info = video.probe(self.root / row["video"])
        start_s, end_s = row.get("span_s") or (0.0, info.duration_s)
        first, last = (min(round(t * info.fps), info.num_frames) for t in (start_s, end_s))
        rng = np.random.default_rng([self.seed, self.epoch, place]) if self.random else None
        count = CLIP_FRAMES[-1]
        if self.num_frames:
            count = self.num_frames
        elif row["level"] == "clip" and rng is not None:
            count = int(rng.choice(CLIP_FRAMES))
        first = min(first, info.num_frames - 1)
        return interval_frames(first, max(last, first + 1), count, rng)

    def frames(self, place: int) -> tuple[np.ndarray, list[float]]:
        """Return (frames uint8 (N, H, W, 3), their times in seconds)."""
        path, index = self.root / self.rows[place]["video"], self.index(place)
        times_s = video.frame_times(path)[index].tolist()
        if str(path) not in self._kept:
            info = video.probe(path)
            size = info.num_frames * info.height * info.width * 3
            if size > KEPT_WHOLE or self._bytes + size > KEPT_BYTES:
                return video.read_frames(path, index), times_s
            self._kept[str(path)] = video.read_frames(path, range(info.num_frames))
            self._bytes += size
        return self._kept[str(path)][index], times_s

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        return self.turn(place, self.rows[place]["answer"] if self.answers else None)

    def turn(self, place: int, answer: str | None) -> dict[str, torch.Tensor]:
        """Return a row's question with another answer, or none."""
        frames, times_s = self.frames(place)
        frames = np.zeros_like(frames) if self.blind else frames
        asked = dict(times_s=times_s, answer=answer, released=self.released)
        return encode(self.speaker, frames, self.rows[place]["question"], **asked)


def _checked(row: Mapping) -> Mapping:
    missing = [key for key in ("level", "video", "question", "answer") if not row.get(key)]
    if missing:
        raise ValueError(f"instruction {row.get('id', row)!r} has no {missing[0]}")
    return row


class Epochs(TrainerCallback):
    """Tells the data which epoch it is, so that other frames are drawn, the same ones when a stopped run goes on."""

    def __init__(self, data):
        self.data = data

    def on_epoch_begin(self, args, state, control, **_):
        self.data.epoch = int(state.epoch or 0)


def last_checkpoint(folder: Path | None) -> str | None:
    """Return the newest whole checkpoint of a folder; one that a kill cut short has no trainer_state.json yet."""
    whole = Path(folder).glob("checkpoint-*/trainer_state.json") if folder else ()
    return str(max((path.parent for path in whole), key=lambda p: int(p.name.split("-")[1]), default="")) or None


def fit(
    speaker: Speaker,
    train: torch.utils.data.Dataset,
    val: torch.utils.data.Dataset | None = None,
    *,
    plan: LoraPlan,
    folder: Path | None = None,
    progress: bool = True,
    expect_processes: int | None = None,
) -> pd.DataFrame:
    """Train whatever of the speaker's model is not frozen, in place; return the loss curve, columns step, loss, val_loss.

    `train` gives items of `encode` with labels. With `folder` checkpoints stay there and a stopped run goes on where it was.
    `expect_processes` raises a RuntimeError where another number runs: a launcher that starts one looks like several.
    """
    if not trainable_share(speaker.model)[0]:
        raise ValueError(f"nothing to train: every weight of {speaker.name} is frozen")
    with TemporaryDirectory() as scratch:
        out = Path(folder or scratch)
        settings = arguments(out, plan, progress, evaluate=val is not None)
        if folder is None:
            settings.save_strategy = "no"
        if expect_processes not in (None, settings.world_size):
            raise RuntimeError(f"{settings.world_size} processes train together, {expect_processes} were asked for")
        engine = Trainer(
            model=speaker.model,
            args=settings,
            train_dataset=train,
            eval_dataset=val,
            data_collator=partial(collate, speaker),
            callbacks=[Epochs(train)],
        )
        engine.remove_callback(PrinterCallback)
        engine.train(resume_from_checkpoint=last_checkpoint(folder))
        if folder is not None:
            engine.save_model(str(out))
        speaker.model.eval()
        return curve(engine.state.log_history)


def arguments(out: Path, plan: LoraPlan, progress: bool, *, evaluate: bool) -> TrainingArguments:
    """Return a plan as transformers' arguments; `evaluate` measures validation loss at every log."""
    fast, several = torch.cuda.is_available(), int(os.environ.get("WORLD_SIZE", "1")) > 1
    return TrainingArguments(
        output_dir=str(out),
        num_train_epochs=plan.epochs,
        max_steps=plan.max_steps,
        learning_rate=plan.learning_rate,
        weight_decay=plan.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=plan.warmup_share,
        max_grad_norm=plan.clip,
        per_device_train_batch_size=plan.batch_size,
        per_device_eval_batch_size=plan.batch_size,
        gradient_accumulation_steps=plan.accumulate,
        activation_checkpointing=plan.checkpointing,
        deepspeed=plan.deepspeed,
        bf16=fast,
        use_cpu=not fast,
        ddp_backend="gloo" if several and not fast else None,
        ddp_find_unused_parameters=False,
        save_strategy="steps",
        save_steps=plan.save_steps,
        save_total_limit=2,
        logging_steps=plan.log_steps,
        eval_strategy="steps" if evaluate else "no",
        eval_steps=plan.log_steps,
        prediction_loss_only=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=False,
        seed=plan.seed,
        report_to="none",
        disable_tqdm=not progress,
    )


def curve(history: Sequence[Mapping]) -> pd.DataFrame:
    """Return Trainer's log as a table: step, loss, and val_loss where there was validation."""
    rows: dict[int, dict] = {}
    for entry in history:
        for theirs, ours in {"loss": "loss", "eval_loss": "val_loss"}.items():
            if theirs in entry:
                rows.setdefault(entry["step"], {"step": entry["step"]})[ours] = entry[theirs]
    return pd.DataFrame(sorted(rows.values(), key=lambda row: row["step"]))
