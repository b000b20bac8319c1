"""Supervised tuning by TRL's trainer, on rows shown as videos: the recipe Memories-S0 starts from, with films that may have holes.

- TRL's own collator knows images only, and fills missing videos with None; here a row is a number, and our collator shows it
- films may be cut to a share drawn for each batch: what it will meet at the edge is what it learned on
- what trains is what is not frozen (LoRA by peft); the wrapper that cuts is not saved, the model inside is
- rows of several files, each with its own folder of videos: generated ones and HIVAU-70k's have one format
Source: TRL 1.16, SFTTrainer; EVS (arXiv 2510.14624) tunes on random shares too.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from datasets import Dataset
from torch import nn
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from vau_lib import records, store
from vau_lib.dialogue import Speaker, collate
from vau_lib.lora import Epochs, LoraPlan, curve, last_checkpoint, trainable_share


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
    speaker: Speaker, samples: torch.utils.data.Dataset, *, plan: LoraPlan, folder: Path | None = None,
    cut: Callable[[nn.Module], nn.Module] | None = None, facts: Mapping | None = None, progress: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """Train what of the speaker's model is not frozen on turns of `encode` with labels, in place; return step, loss.

    `cut(model)` wraps the model for training only, such as `tokens.compressed`. With `folder` checkpoints and at the end the
    adapter are there, and a stopped run goes on; StoreError where that folder's run was of other rows, model, plan or `facts`.
    ValueError when every weight is frozen or there is nothing to learn from.
    """
    if not trainable_share(speaker.model)[0]:
        raise ValueError(f"nothing to train: every weight of {speaker.name} is frozen")
    if not len(samples):
        raise ValueError("no instruction rows to train on")

    def show(rows: Sequence[dict]) -> dict:
        return collate(speaker, [samples[int(row["place"])] for row in rows])

    if folder is not None:
        _claimed(folder, speaker, samples, plan, facts or {})
    with TemporaryDirectory() as scratch:
        settings = _arguments(str(folder or scratch), plan, progress, kept=folder is not None)
        places = Dataset.from_dict({"place": list(range(len(samples)))})
        engine = _Tuner(
            speaker.model, cut, args=settings, data_collator=show, train_dataset=places, processing_class=speaker.tokenizer,
            callbacks=[Epochs(samples)],
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
    speaker.model.eval()
    if folder is not None:
        speaker.model.save_pretrained(str(folder))
    return found


def _claimed(folder: Path, speaker: Speaker, samples, plan: LoraPlan, facts: Mapping) -> None:
    """Write down what a folder's run is of; where it holds a checkpoint already, check that it is of the same."""
    told = {name: value for name, value in asdict(plan).items() if name not in ("save_steps", "log_steps")}
    told |= {"model": speaker.name, "trained": trainable_share(speaker.model)[0], **facts}
    told["rows"] = hashlib.sha256(json.dumps(getattr(samples, "rows", len(samples)), default=str).encode()).hexdigest()
    if last_checkpoint(folder):
        store.check_made_by(folder, **told)
    else:
        store.write_made_by(folder, **told)


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
