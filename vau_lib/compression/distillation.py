"""A cut model has its teacher at hand: the whole model's answers on the same data heal it, no labels needed.

`transformers.Trainer` drives the pass; with `lora_rank` only a peft adapter learns, and is merged afterwards, so that the healed
model has the shapes of the cut one.
"""

import re
from collections.abc import Iterable
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainingArguments

from vau_lib.compression import layer_editing


class _Distiller(Trainer):
    """Trainer whose loss is how far the student is from a teacher; a batch arrives ready-made."""

    def __init__(self, *, teacher: nn.Module, **arguments):
        super().__init__(**arguments)
        self.teacher = teacher.to(self.args.device).eval()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return distillation_loss(model, self.teacher, inputs["batch"])


def distil(
    student: nn.Module, teacher: nn.Module, batches: Iterable, *, epochs: int = 1, learning_rate: float = 1e-3,
    lora_rank: int = 0, seed: int = 0, progress: bool = False,
) -> list[float]:  # fmt: skip
    """Train `student` in place on the teacher's outputs; return the mean loss of every epoch.

    `lora_rank` 0 trains all weights; above, a LoRA adapter of that rank on every untied linear layer, then merged. ValueError
    for no batches or a negative rank.
    """
    if lora_rank < 0:
        raise ValueError(f"lora_rank must be 0 or more, got {lora_rank}")
    batches, trained = layer_editing.batches_of(batches), {n: p.requires_grad for n, p in student.named_parameters()}
    model = (
        _adapted(student, lora_rank) if lora_rank else student.requires_grad_(True)
    )  # frozen ones too, as after a merge
    with TemporaryDirectory() as scratch:
        engine = _Distiller(
            model=model,
            teacher=teacher,
            args=_arguments(scratch, epochs, learning_rate, seed, progress),
            train_dataset=batches,
            data_collator=lambda items: {"batch": items[0]},
        )
        engine.remove_callback(PrinterCallback)
        engine.train()
    if lora_rank:
        model.merge_and_unload()  # in place: the student's layers are plain again
    for name, part in student.named_parameters():
        part.requires_grad_(trained[name])
        part.grad = None
    student.eval()
    return [entry["loss"] for entry in engine.state.log_history if "loss" in entry]


def distillation_loss(student: nn.Module, teacher: nn.Module, batch: object) -> Tensor:
    """Return KL(teacher || student), a scalar, of the logits both give to one batch, the mean over its rows."""
    with torch.no_grad():
        wanted = _logits(layer_editing.call_model(teacher, batch))
    said = _logits(layer_editing.call_model(student, batch))
    flat = [values.flatten(0, -2).float().log_softmax(-1) for values in (said, wanted)]
    return F.kl_div(*flat, log_target=True, reduction="batchmean")


def _logits(output: object) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits


def _adapted(student: nn.Module, rank: int) -> nn.Module:
    tied = {id(part.weight) for part in student.modules() if isinstance(part, nn.Embedding)}
    names = [n for n, part in student.named_modules() if type(part) is nn.Linear and id(part.weight) not in tied]
    # one pattern of whole names: peft matches the names of a list by their ends, and "0" ends much
    settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="|".join(map(re.escape, names)))
    return get_peft_model(student, settings)


def _arguments(folder: str, epochs: int, learning_rate: float, seed: int, progress: bool) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        num_train_epochs=epochs,
        learning_rate=learning_rate,
        per_device_train_batch_size=1,  # one ready-made batch
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        max_grad_norm=1.0,
        save_strategy="no",
        logging_strategy="epoch",
        remove_unused_columns=False,
        seed=seed,
        disable_tqdm=not progress,
        report_to="none",
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
    )
