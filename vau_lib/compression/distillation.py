"""Distillation of a compressed model: it learns the logits of the whole model on the same data, without labels.

- `transformers.Trainer` runs the training; with `lora_rank` only a peft adapter learns, and is merged afterwards, so that the
  student keeps its shapes
- of a batch with labels only the answer's positions count, and only their logits are made: a prompt is thousands of visual tokens
  and a vocabulary 150,000 wide
- either model may read a part of the video's tokens (`token_pruning`): the answers' positions are found again in what it read
"""

import inspect
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainingArguments

from vau_lib.compression import layer_editing, token_pruning
from vau_lib.workspace import tracking

IGNORED = -100  # label of a token that is given, not learned
KEPT = 2**28  # bytes of what a teacher says


class _Distiller(Trainer):
    """Trainer whose loss is the distance to a teacher; the dataset holds whole batches.

    What the teacher says of a batch is kept for the next epochs, up to KEPT bytes, unless a rule chooses its tokens each time.
    """

    def __init__(self, *, teacher: nn.Module, **arguments):
        super().__init__(**arguments)
        self.teacher, self.targets = teacher.to(self.args.device).eval(), {}
        self.kept = 0 if _is_pruned(teacher) or self.args.num_train_epochs == 1 else KEPT  # bytes still free

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        (number, batch), teacher = inputs["batch"], self.teacher
        if number in self.targets:
            return distillation_loss(model, self.targets[number], batch)
        target = teacher_logprobs(model, teacher, batch)
        if (size := target.numel() * target.element_size()) <= self.kept:
            self.targets[number], self.kept = target, self.kept - size
        return distillation_loss(model, target, batch)


def distil(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable,
    *,
    epochs: int = 1,
    learning_rate: float = 1e-3,
    lora_rank: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> list[float]:
    """Train `student` in place on the teacher's logits; return the mean loss of every epoch. ValueError for no batches.

    Args:
        student: the compressed model.
        teacher: the whole model.
        batches: of inputs, as in `layer_editing`; with `labels` only the answers' positions are learned.
        epochs: passes over the batches.
        learning_rate: its highest value; it falls by a cosine.
        lora_rank: 0 trains all weights; above, a LoRA adapter of that rank on every untied linear layer, merged in the end.
        seed: of the order of batches and of the adapter.
        progress: whether to show a progress bar.
    """
    if lora_rank < 0:
        raise ValueError(f"lora_rank must be 0 or more, got {lora_rank}")
    batches, trainable = layer_editing.batches_of(batches), {n: p.requires_grad for n, p in student.named_parameters()}
    # all weights, also those a merged adapter left frozen
    model = _with_lora(student, lora_rank) if lora_rank else student.requires_grad_(True)
    with TemporaryDirectory() as scratch:
        trainer = _Distiller(
            model=model,
            teacher=teacher,
            args=_arguments(scratch, epochs, learning_rate, seed, progress),
            train_dataset=list(enumerate(batches)),
            data_collator=lambda items: {"batch": items[0]},
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    if lora_rank:
        model.merge_and_unload()  # in place: the student's layers are plain again
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(trainable[name])
        parameter.grad = None
    student.eval()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def distillation_loss(student: nn.Module, teacher: nn.Module | Tensor, batch: object) -> Tensor:
    """Return KL(teacher || student) of the logits of one batch, a scalar: the mean over positions.

    Of a batch with `labels` (B, N), the positions that predict one that is not IGNORED; ValueError where there is none. `teacher`
    is a model or its `teacher_logprobs`.
    """
    target = teacher if isinstance(teacher, Tensor) else teacher_logprobs(student, teacher, batch)
    inputs, chosen = _answer_positions(student, batch, whole=_is_pruned(student))
    return F.kl_div(_logprobs(student, inputs, chosen), target, log_target=True, reduction="batchmean")


@torch.no_grad()
def teacher_logprobs(student: nn.Module, teacher: nn.Module, batch: object) -> Tensor:
    """Return a teacher's log-probabilities (positions, vocabulary) where `distillation_loss` compares them with a student's."""
    inputs, chosen = _answer_positions(student, batch, whole=any(_is_pruned(model) for model in (student, teacher)))
    return _logprobs(teacher, inputs, chosen)


def _is_pruned(model: nn.Module) -> bool:
    return isinstance(model, token_pruning.TokenPrunedModel)


def _answer_positions(model: nn.Module, batch: object, *, whole: bool) -> tuple[object, Tensor | None]:
    """Return the batch without labels and which of its logits count, bool (B, K); all where None.

    A model of transformers is asked for no logits but the K columns in which some row's count (`logits_to_keep`), unless `whole`.
    """
    if not isinstance(batch, Mapping) or batch.get("labels") is None:
        return batch, None
    inputs, labels = {name: value for name, value in batch.items() if name != "labels"}, batch["labels"]
    chosen = F.pad(labels[:, 1:] != IGNORED, (0, 1))  # a logit predicts the next token
    if not chosen.any():
        raise ValueError("no position of the batch has a label to learn")
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not whole and "logits_to_keep" in inspect.signature(inner.forward).parameters:
        columns = chosen.any(0).nonzero()[:, 0]
        inputs, chosen = inputs | {"logits_to_keep": columns}, chosen[:, columns]
    return inputs, chosen


def _logprobs(model: nn.Module, batch: object, chosen: Tensor | None) -> Tensor:
    output = layer_editing.call_model(model, batch)
    logits = output if isinstance(output, Tensor) else output.logits
    if chosen is not None and _is_pruned(model) and logits.shape[1] != chosen.shape[1]:
        mask = batch.get("attention_mask")
        right = mask is not None and bool((mask[:, -1] == 0).any())
        columns, real = token_pruning.kept_columns(model.token_mask, right=right)
        chosen = chosen.to(columns.device).gather(1, columns) & real
    logits = logits.flatten(0, -2) if chosen is None else logits[chosen.to(logits.device)]
    return logits.float().log_softmax(-1)


def _with_lora(student: nn.Module, rank: int) -> nn.Module:
    tied = {id(part.weight) for part in student.modules() if isinstance(part, nn.Embedding)}
    names = [n for n, part in student.named_modules() if type(part) is nn.Linear and id(part.weight) not in tied]
    # one pattern of whole names: peft matches the names of a list by their ends, and many end in "0"
    return get_peft_model(student, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="|".join(map(re.escape, names))))


def _arguments(folder: str, epochs: int, learning_rate: float, seed: int, progress: bool) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        num_train_epochs=epochs,
        learning_rate=learning_rate,
        per_device_train_batch_size=1,  # an item is a whole batch
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        max_grad_norm=1.0,
        save_strategy="no",
        logging_strategy="epoch",
        remove_unused_columns=False,
        seed=seed,
        disable_tqdm=not progress,
        **tracking.arguments(Path(folder) / "distillation"),
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
    )
