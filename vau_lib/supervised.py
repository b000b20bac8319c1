"""Supervised tuning by TRL's trainer, on rows shown as videos: the recipe Memories-S0 starts from, with films that may have holes.

- TRL's own collator knows images only, and fills missing videos with None; here a row is a number, and our collator shows it
- films may be cut to a share drawn for each batch: what it will meet at the edge is what it learned on
- what trains is what is not frozen (LoRA by peft); the wrapper that cuts is not saved, the model inside is
Source: TRL 1.16, SFTTrainer; EVS (arXiv 2510.14624) tunes on random shares too.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from datasets import Dataset
from torch import nn
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from vau_lib.dialogue import Speaker, collate
from vau_lib.lora import LoraPlan, curve, trainable_share


def tune(
    speaker: Speaker, samples: torch.utils.data.Dataset, *, plan: LoraPlan, folder: Path | None = None,
    cut: Callable[[nn.Module], nn.Module] | None = None, progress: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """Train what of the speaker's model is not frozen on turns of `encode` with labels, in place; return step, loss.

    `cut(model)` wraps the model for training only, such as `tokens.compressed`. With `folder` the adapter is written there at the
    end. ValueError when every weight is frozen or there is nothing to learn from.
    """
    if not trainable_share(speaker.model)[0]:
        raise ValueError(f"nothing to train: every weight of {speaker.name} is frozen")
    if not len(samples):
        raise ValueError("no instruction rows to train on")

    def show(rows: Sequence[dict]) -> dict:
        return collate(speaker, [samples[int(row["place"])] for row in rows])

    with TemporaryDirectory() as scratch:
        engine = SFTTrainer(
            model=speaker.model, args=_arguments(scratch, plan, progress), data_collator=show,
            train_dataset=Dataset.from_dict({"place": list(range(len(samples)))}), processing_class=speaker.tokenizer,
        )  # fmt: skip
        engine.remove_callback(PrinterCallback)
        if cut is not None:
            engine.model = engine.model_wrapped = cut(engine.model)
        engine.train()
        found = curve(engine.state.log_history)
    speaker.model.eval()
    if folder is not None:
        speaker.model.save_pretrained(str(folder))
    return found


def _arguments(folder: str, plan: LoraPlan, progress: bool) -> SFTConfig:
    fast = torch.cuda.is_available()
    return SFTConfig(
        output_dir=folder, num_train_epochs=plan.epochs, max_steps=plan.max_steps, learning_rate=plan.learning_rate,
        weight_decay=plan.weight_decay, lr_scheduler_type="cosine", warmup_steps=plan.warmup_share, max_grad_norm=plan.clip,
        per_device_train_batch_size=plan.batch_size, gradient_accumulation_steps=plan.accumulate,
        gradient_checkpointing=plan.checkpointing, bf16=fast, use_cpu=not fast, save_strategy="no", logging_steps=plan.log_steps,
        remove_unused_columns=False, dataset_kwargs={"skip_prepare_dataset": True}, max_length=None, label_names=["labels"],
        dataloader_pin_memory=False, seed=plan.seed, report_to="none", disable_tqdm=not progress,
    )  # fmt: skip
