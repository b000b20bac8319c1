"""Teach a model to judge by adding little: low-rank changes to the language model, everything that sees stays frozen.

- rank 64, alpha 128, dropout .05 on attention and MLP projections of the language model only, as Holmes-VAU trains it
- learned are the answer's tokens and its end; a frame is drawn at random from each of equal intervals, so that an epoch
  later the same video is other frames; or frames are given (a sampler's own picks, which the released code cannot take)
- one engine, `transformers.Trainer`: checkpoints, resume, schedules, and several GPUs by `accelerate launch` or `torchrun`.
  With more memory than one device has: `deepspeed=` of `LoraPlan` takes a ZeRO configuration file (the paper: stage 1)
Source: Holmes-VAU code, shell/internvl2_2b_finetune_lora.sh, internvl_chat/finetune.py:424-486, dataset.py:35-130.
"""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PrinterCallback, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from vau_lib.data import records
from vau_lib.vlm.chat import collate
from vau_lib.vlm.instruction_data import EpochCallback
from vau_lib.vlm.models import VLM
from vau_lib.workspace import artifacts

# MERGE-DOC from supervised:
# Supervised tuning by TRL's trainer, on rows shown as videos: the recipe Memories-S0 starts from.
#
# - TRL's own collator knows images only, and fills missing videos with None; here a row is a number, and our collator shows it
# - films may be cut to a share drawn for each batch: what it will meet at the edge is what it learned on
# - what trains is what is not frozen (LoRA by peft); the wrapper that cuts is not saved, the model inside is
# - rows of several files, each with its own folder of videos: generated ones and HIVAU-70k's have one format
# Source: TRL 1.16, SFTTrainer; EVS (arXiv 2510.14624) tunes on random shares too.
# """

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

PROJECTIONS_INTERNLM2 = ("wqkv", "wo", "w1", "w2", "w3")  # the same, as the released model's own code names them


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
        raise artifacts.StoreError(f"no adapter at {folder}")
    try:
        with _quietly():
            return PeftModel.from_pretrained(model, str(folder)).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise artifacts.StoreError(f"the adapter at {folder} does not fit: {artifacts.one_line(error, 200)}") from error


def last_checkpoint(folder: Path | None) -> str | None:
    """Return the newest whole checkpoint of a folder; one that a kill cut short has no trainer_state.json yet."""
    whole = Path(folder).glob("checkpoint-*/trainer_state.json") if folder else ()
    return str(max((path.parent for path in whole), key=lambda p: int(p.name.split("-")[1]), default="")) or None


def fit(
    vlm: VLM,
    train: torch.utils.data.Dataset,
    val: torch.utils.data.Dataset | None = None,
    *,
    plan: LoraPlan,
    folder: Path | None = None,
    progress: bool = True,
    expect_processes: int | None = None,
) -> pd.DataFrame:
    """Train the weights that are not frozen, in place; return the loss curve, columns step, loss, val_loss.

    `train` gives items of `encode` with labels. With `folder` checkpoints stay there and a stopped run goes on where it was.
    `expect_processes` raises a RuntimeError where another number runs: a launcher that starts one looks like several.
    """
    if not trainable_share(vlm.model)[0]:
        raise ValueError(f"nothing to train: every weight of {vlm.name} is frozen")
    with TemporaryDirectory() as scratch:
        out = Path(folder or scratch)
        settings = arguments(out, plan, progress, evaluate=val is not None)
        if folder is None:
            settings.save_strategy = "no"
        if expect_processes not in (None, settings.world_size):
            raise RuntimeError(f"{settings.world_size} processes train together, {expect_processes} were asked for")
        engine = Trainer(
            model=vlm.model,
            args=settings,
            train_dataset=train,
            eval_dataset=val,
            data_collator=partial(collate, vlm),
            callbacks=[EpochCallback(train)],
        )
        engine.remove_callback(PrinterCallback)
        engine.train(resume_from_checkpoint=last_checkpoint(folder))
        if folder is not None:
            engine.save_model(str(out))
        vlm.model.eval()
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


def read_rows(files: Mapping[Path, Path], *, split: str = "train") -> list[dict]:
    """Return the instruction rows of a split from {file of JSON lines: folder of its videos}, `video` made a whole path.

    ValueError in one line for a line that is no row, a file without rows of the split, and videos that are not there.
    """
    rows = []
    for file, root in files.items():
        kept, lines = [], Path(file).read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                if row["split"] == split:
                    kept.append({**row, "video": str(records.inside(row["video"], root).resolve())})
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{file} line {number} is no instruction row: {error!r}") from error
        if not kept:
            raise ValueError(f"{file}: none of {len(lines)} rows is of split {split!r}")
        missing = sorted({row["video"] for row in kept if not Path(row["video"]).is_file()})
        if missing:
            raise ValueError(f"{file}: {len(missing)} videos are not under {root}, the first is {missing[0]}")
        rows += kept
    return rows


class _Tuner(SFTTrainer):
    """Checkpoints are of the model itself, also while a wrapper that cuts its films is what trains."""

    def __init__(self, model: nn.Module, cut: Callable[[nn.Module], nn.Module] | None, **how):
        super().__init__(model=model, **how)
        self.inner = model
        if cut is not None:
            self.model = self.model_wrapped = cut(self.model)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        outer, self.model = self.model, self.inner
        super()._save(output_dir, None)
        self.model = outer

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, self.inner)


def tune(
    vlm: VLM, samples: torch.utils.data.Dataset, *, plan: LoraPlan, folder: Path | None = None,
    cut: Callable[[nn.Module], nn.Module] | None = None, facts: Mapping | None = None, progress: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """Train the weights that are not frozen on turns of `encode` with labels, in place; return step, loss.

    `cut(model)` wraps the model for training only, such as `token_pruning.compressed`. With `folder` checkpoints and at the end the
    adapter are there, and a stopped run goes on; StoreError where that folder's run was of other rows, model, plan or `facts`.
    ValueError when every weight is frozen or there is nothing to learn from.
    """
    if not trainable_share(vlm.model)[0]:
        raise ValueError(f"nothing to train: every weight of {vlm.name} is frozen")
    if not len(samples):
        raise ValueError("no instruction rows to train on")

    def show(rows: Sequence[dict]) -> dict:
        return collate(vlm, [samples[int(row["place"])] for row in rows])

    if folder is not None:
        _claimed(folder, vlm, samples, plan, facts or {})
    with TemporaryDirectory() as scratch:
        settings = _arguments(str(folder or scratch), plan, progress, kept=folder is not None)
        places = Dataset.from_dict({"place": list(range(len(samples)))})
        engine = _Tuner(
            vlm.model, cut, args=settings, data_collator=show, train_dataset=places, processing_class=vlm.tokenizer,
            callbacks=[EpochCallback(samples)],
        )  # fmt: skip
        engine.remove_callback(PrinterCallback)
        last = last_checkpoint(folder)
        state = json.loads((Path(last) / "trainer_state.json").read_text()) if last else {}
        if state and state["global_step"] >= state["max_steps"]:  # finished; Trainer would take one step more
            engine._load_from_checkpoint(last)
        else:
            engine.train(resume_from_checkpoint=last)
            state = {"log_history": engine.state.log_history}
        found = curve(state["log_history"])
    vlm.model.eval()
    if folder is not None:
        vlm.model.save_pretrained(str(folder))
    return found


def _claimed(folder: Path, vlm: VLM, samples, plan: LoraPlan, facts: Mapping) -> None:
    """Write down what a folder's run is of; where it holds a checkpoint already, check that it is of the same."""
    told = {name: value for name, value in asdict(plan).items() if name not in ("save_steps", "log_steps")}
    told |= {"model": vlm.name, "trained": trainable_share(vlm.model)[0], **facts}
    told["rows"] = hashlib.sha256(json.dumps(getattr(samples, "rows", len(samples)), default=str).encode()).hexdigest()
    if last_checkpoint(folder):
        artifacts.check_made_by(folder, **told)
    else:
        artifacts.write_made_by(folder, **told)


def _arguments(folder: str, plan: LoraPlan, progress: bool, *, kept: bool) -> SFTConfig:
    fast = torch.cuda.is_available()
    return SFTConfig(
        output_dir=folder, num_train_epochs=plan.epochs, max_steps=plan.max_steps, learning_rate=plan.learning_rate,
        weight_decay=plan.weight_decay, lr_scheduler_type="cosine", warmup_steps=plan.warmup_share, max_grad_norm=plan.clip,
        per_device_train_batch_size=plan.batch_size, gradient_accumulation_steps=plan.accumulate,
        activation_checkpointing=plan.checkpointing, bf16=fast, use_cpu=not fast, save_strategy="steps" if kept else "no",
        save_steps=plan.save_steps, save_total_limit=2, logging_steps=plan.log_steps,
        remove_unused_columns=False, dataset_kwargs={"skip_prepare_dataset": True}, max_length=None, label_names=["labels"],
        dataloader_pin_memory=False, seed=plan.seed, report_to="none", disable_tqdm=not progress,
    )  # fmt: skip
