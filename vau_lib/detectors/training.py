"""Losses, curriculum and the training engine of the detectors, on `transformers.Trainer`.

- `transformers.Trainer` drives every model here: checkpoints, clipping, schedules, progress, several GPUs
- a warm-up and a cosine that really step: the released MemTSM code trained at a constant 1e-5 without noticing
- the checkpoint kept is the best on validation, never on test; scores are made in eval mode, without augmentation
- a stopped run is resumed from its last checkpoint
- short videos first, as a schedule over epochs; sorting once and shuffling afterwards (as released) does nothing
"""

import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler, Subset
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from vau_lib.detectors.preprocessing import Sequences, pad_collate
from vau_lib.evaluation import metrics
from vau_lib.workspace import artifacts, formats, tracking
from vau_lib.workspace.seeds import seed_everything as seed_everything  # noqa: PLC0414

NOISE_STATE = "noise_state.pt"  # of the generator of augmentations, in every checkpoint
SHORT_S = 10  # shorter trainings say nothing: fifteen of them in a notebook would be fifteen lines
TRAIN_CURVE = 32  # training videos whose AUC is measured after every epoch; more cost as much as the training
LONG_S = 30  # a training estimated longer than this shows a bar
SNIPPETS_PER_CHOICE = 16  # multiple instances: one more snippet enters a bag's mean for every 16 of a video (LSHMA, VadCLIP)


def bag_probability(logits: Tensor, lengths: Tensor, counted: Tensor | None = None, *, every: int = SNIPPETS_PER_CHOICE) -> Tensor:
    """Return each bag's probability (B,): the mean over its k highest scores, k = T_i // every + 1 (at most those there are).

    logits (B, T), of which the first lengths (B,) are real; `counted` (B, T) bool chooses others. LSHMA's and VadCLIP's bag.
    """
    chances, place = logits.sigmoid(), torch.arange(logits.shape[1], device=logits.device)
    real = place < lengths[:, None] if counted is None else counted
    count = torch.minimum(lengths // every + 1, real.sum(1))
    highest = chances.masked_fill(~real, -1.0).sort(dim=1, descending=True).values
    return (highest * (place < count[:, None])).sum(1) / count


def top_mean(scores: Tensor, *, every: int = SNIPPETS_PER_CHOICE) -> float:
    """Return a video's score: the mean of its T // every + 1 highest scores (T,), as `bag_probability` has it in training."""
    return float(scores.sort(descending=True).values[: len(scores) // every + 1].mean())


def mil_loss(
    logits: Tensor, lengths: Tensor, labels: Tensor, counted: Tensor | None = None, *, every: int = SNIPPETS_PER_CHOICE
) -> Tensor:
    """Return the multiple-instance loss, a scalar: cross-entropy of each bag's probability with its video's label (B,)."""
    lengths = torch.as_tensor(lengths, device=logits.device)
    if logits.ndim != 2 or lengths.shape != logits.shape[:1] or labels.shape != lengths.shape:
        raise ValueError(
            "need logits (B, T), lengths (B,), labels (B,), got "
            f"{tuple(logits.shape)}, {tuple(lengths.shape)}, {tuple(labels.shape)}"
        )
    if lengths.min() < 1 or lengths.max() > logits.shape[1]:
        raise ValueError(f"lengths must lie in 1 to {logits.shape[1]}, got {lengths.min()} to {lengths.max()}")
    return F.binary_cross_entropy(bag_probability(logits, lengths, counted, every=every), labels.to(logits.dtype))


def augment(x: Tensor, *, generator: torch.Generator, probability: float = 0.7, noise: float = 0.02) -> Tensor:
    """Return x (B, D, T) with spans of time dropped, channels masked and noise added, each with probability `probability`.

    A span is 2 to T // 6 steps set to the video's mean; a mask hides an eighth of the channels; noise is normal with
    standard deviation `noise`. The report's temporal dropout, masking and noise (p = .7). Draws are made on the generator's
    device and used on that of x.
    """
    if not probability:
        return x
    batch, width, length = x.shape
    x, drawn = x.clone(), {"generator": generator, "device": generator.device}

    def chosen() -> Tensor:
        return torch.rand(batch, **drawn) < probability

    for row in chosen().nonzero()[:, 0].tolist():
        span = int(torch.randint(2, max(3, length // 6 + 1), (1,), **drawn))
        start = int(torch.randint(0, max(1, length - span + 1), (1,), **drawn))
        x[row, :, start : start + span] = x[row].mean(-1, keepdim=True)
    hidden = (torch.rand(batch, width, 1, **drawn) < 1 / 8) & chosen()[:, None, None]
    x = x.masked_fill(hidden.to(x.device), 0.0)
    return x + noise * (chosen()[:, None, None] * torch.randn(x.shape, **drawn)).to(x.device)


def released_augment(x: Tensor, *, generator: torch.Generator) -> Tensor:
    """Return x (B, D, T) disturbed as the released MemTSM code does: spans of time set to 0 (p .5), noise of std .02 (p .7).

    One or two spans of 2 to T // 6 steps a video (2 where T // 6 is less). Devices as in `augment`.
    """
    x, (batch, _, length), drawn = x.clone(), x.shape, {"generator": generator, "device": generator.device}

    def between(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), **drawn))

    for row in (torch.rand(batch, **drawn) > 0.5).nonzero()[:, 0].tolist():
        for _ in range(between(1, 2)):
            span = between(2, max(2, length // 6))
            start = between(0, max(0, length - span))
            x[row, :, start : start + span] = 0
    noise = torch.randn(x.shape, **drawn) * (torch.rand(batch, 1, 1, **drawn) > 0.3)
    return x + 0.02 * noise.to(x)


class CurriculumSampler(Sampler):
    """Draw from the shortest videos first: a fraction of them that grows to all by epoch `full_from`.

    Every epoch has as many draws as there are videos, so the schedule of the learning rate does not notice. With `labels`
    every second draw is anomalous.
    """

    def __init__(
        self, lengths: Sequence[int], *, seed: int, start: float = 0.5, full_from: int = 5, labels: Sequence[int] | None = None
    ):
        self.order = np.argsort(np.asarray(lengths), kind="stable")
        self.labels = np.zeros(len(self.order)) if labels is None else np.asarray(labels)
        self.seed, self.start, self.full_from, self.epoch = seed, start, full_from, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the engine before each epoch."""
        self.epoch = epoch

    def pool(self) -> np.ndarray:
        """Return the places that may be drawn in this epoch, shortest first."""
        fraction = 1.0 if self.full_from <= 0 else min(1.0, self.start + (1 - self.start) * self.epoch / self.full_from)
        return self.order[: max(1, round(fraction * len(self.order)))]

    def __iter__(self) -> Iterator[int]:
        rng, pool = np.random.default_rng([self.seed, self.epoch]), self.pool()
        kinds = [pool[self.labels[pool] == kind] for kind in np.unique(self.labels[pool])]
        rounds = -(-len(self) // min(map(len, kinds)))
        drawn = [np.concatenate([rng.permutation(kind) for _ in range(rounds)])[: len(self)] for kind in kinds]
        yield from np.stack(drawn, axis=1).reshape(-1)[: len(self)].tolist()

    def __len__(self) -> int:
        return len(self.order)


@dataclass(frozen=True)
class TrainingPlan:
    """How to train; the defaults are the MemTSM report's. `curriculum_epochs` 0 draws from all videos at once.

    `milestones`, where given, are the epochs after which the rate falls to a tenth, in place of warm-up and cosine;
    `balanced` draws as many anomalous videos as normal ones; `patience`, where above 0, ends a training whose best epoch is that
    many epochs old. The last four are what the released MemTSM code does, see `released`.
    """

    epochs: int = 20
    learning_rate: float = 1e-4
    weight_decay: float = 0.1
    batch_size: int = 16
    warmup_fraction: float = 0.1
    clip: float = 1.0
    curriculum_epochs: int = 5
    augment_probability: float = 0.7
    milestones: tuple[int, ...] = ()
    balanced: bool = False
    seed: int = 0
    patience: int = 0
    constant_rate: bool = False  # no warm-up, no cosine
    clean_target: bool = True  # a loss that rebuilds sees the input without noise; False: what the network was given
    decay_all: bool = False  # weight decay on norms, biases and one-dimensional weights too
    released_augmentation: bool = False  # `released_augment` in place of `augment`

    @classmethod
    def released(cls, **changes: object) -> "TrainingPlan":
        """The recipe the released MemTSM code runs, whatever its report says: 1e-5 for ever, its own noisy input as target.

        Its scheduler counts in epochs and is stepped in steps, so the rate never leaves the start of the warm-up; its files are
        sorted by size and then shuffled, so there is no curriculum. Its epoch is chosen on test: that alone is not repeated.
        """
        quirks = dict(constant_rate=True, clean_target=False, decay_all=True, released_augmentation=True)
        return cls(**{"learning_rate": 1e-5, "curriculum_epochs": 0, **quirks, **changes})


class TimeLast(nn.Module):
    """Give a model that reads (B, T, D) the engine's batches, whose time is last; `call` is its method for training."""

    def __init__(self, model: nn.Module, call: Callable):
        super().__init__()
        self.model, self.call = model, call

    def forward(self, x: Tensor, lengths: Tensor | None = None):
        return self.call(x.mT) if lengths is None else self.call(x.mT, lengths)


class _Engine(Trainer):
    """Trainer with a loss passed in, noise on training inputs and the short-first order."""

    def __init__(self, *, objective: Callable, plan: TrainingPlan, videos: Sequences, **arguments):
        self.objective, self.plan, self.videos = objective, plan, videos
        super().__init__(**arguments)
        self.generator = torch.Generator(self.args.device).manual_seed(plan.seed + self.args.process_index)  # its own videos

    def _get_train_sampler(self, dataset=None) -> Sampler:
        labels = self.videos.labels.numpy() if self.plan.balanced else None
        full_from = self.plan.curriculum_epochs
        return CurriculumSampler(self.videos.lengths, seed=self.plan.seed, full_from=full_from, labels=labels)

    def get_decay_parameter_names(self, model) -> list[str]:
        return [n for n, _ in model.named_parameters()] if self.plan.decay_all else super().get_decay_parameter_names(model)

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.plan.constant_rate:
            self.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer or self.optimizer, factor=1.0)
            return self.lr_scheduler
        if not self.plan.milestones:
            return super().create_scheduler(num_training_steps, optimizer)
        per_epoch = num_training_steps / self.plan.epochs
        falls = [round(epoch * per_epoch) for epoch in self.plan.milestones]
        self.lr_scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer or self.optimizer, falls, gamma=0.1)
        return self.lr_scheduler

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        torch.save(self.generator.get_state(), Path(output_dir) / NOISE_STATE)

    def _load_rng_state(self, checkpoint):
        super()._load_rng_state(checkpoint)
        if checkpoint and (Path(checkpoint) / NOISE_STATE).is_file():  # a resumed training draws what an uninterrupted one would
            self.generator.set_state(formats.read_torch(Path(checkpoint) / NOISE_STATE))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        x, labels = inputs["x"], inputs["labels"]
        given = self._augmented(x) if model.training else x
        output = model(given, inputs["lengths"]) if "lengths" in inputs else model(given)
        value = self.objective(output, x if self.plan.clean_target else given, labels)
        return (value, {"logit": output.logit}) if return_outputs else value

    def _augmented(self, x: Tensor) -> Tensor:
        if self.plan.released_augmentation:
            return released_augment(x, generator=self.generator)
        return augment(x, generator=self.generator, probability=self.plan.augment_probability)


class Patience(TrainerCallback):
    """End a training whose best epoch is `epochs` old.

    transformers' EarlyStoppingCallback begins to count anew when a training goes on, and warns of an evaluation without such a
    number; this one reads the curves.
    """

    def __init__(self, epochs: int):
        self.epochs = epochs

    def on_evaluate(self, args, state, control, **kwargs):
        """Look how old the best epoch is."""
        seen = [row[args.metric_for_best_model] for row in state.log_history if args.metric_for_best_model in row]
        if seen and len(seen) - 1 - seen.index((max if args.greater_is_better else min)(seen)) >= self.epochs:
            control.should_training_stop = True


class Estimate(TrainerCallback):
    """Print how long a training of ten seconds or more will take, one line, once its first updates are measured; then a bar.

    The first update is left out of the measure (it also sets things up). Evaluation after every epoch comes on top.
    """

    def __init__(self, *, progress: bool = False, measured: int = 5, echo: Callable[[str], object] = tqdm.write):
        self.progress, self.measured, self.echo, self.bar, self.times = progress, measured, echo, None, []

    def on_train_begin(self, args, state, control, **kwargs):
        """Begin to measure."""
        self.first, self.times = state.global_step, []

    def on_step_end(self, args, state, control, **kwargs):
        """Measure an update; after the first ones, say what the rest will take."""
        self.times.append(time.perf_counter())
        done, left = len(self.times), state.max_steps - state.global_step
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)
        elif done == self.measured + 1 or (not left and 1 < done <= self.measured):
            each_s = (self.times[-1] - self.times[0]) / (done - 1)
            whole_s = (state.max_steps - self.first) * each_s
            if self.progress or whole_s >= SHORT_S:
                self.echo(
                    f"training: {state.max_steps - self.first:,} updates in {args.num_train_epochs:g} epochs, {each_s:.3g} s each: "
                    f"about {duration(whole_s)}, evaluation not counted"
                )
            if self.progress or left * each_s > LONG_S:
                self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="updates", mininterval=2)

    def on_train_end(self, args, state, control, **kwargs):
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()


def duration(seconds: float) -> str:
    """Return a time as one reads it: `8 s`, `12 min`, `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:,.1f} h"


def fit(
    model: nn.Module,
    objective: Callable,
    train: Sequences,
    val: Sequences | None,
    *,
    plan: TrainingPlan,
    folder: Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Train `model` in place, keep its best epoch on `val`, return the curves, one row per epoch.

    Best is the highest video_auc, or the lowest loss where `val` holds one class only (one-class learning). Where `val` is None
    nothing is measured and the last epoch is kept: for plans whose length was chosen before.

    `objective(output, x, labels)` gives the scalar loss. With `folder`, checkpoints stay there and a stopped run goes on
    where it was; without, they live in a temporary folder. One line says how long it will take (`Estimate`).
    Under torchrun or accelerate all processes call it: `plan.batch_size` is shared out among them, so that the gradients are those
    of one process; where there is batch norm (MemTSM-Net) each process measures its own part. All return the same model.
    Columns: epoch, learning_rate, train_loss, val_loss, and
    video_auc and video_ap (ROC-AUC and PR-AUC) of train_ and val_, measured in eval mode without noise; train_ of at most
    TRAIN_CURVE training videos, drawn once.
    """
    with TemporaryDirectory() as scratch, ExitStack() as held:
        out = _common_folder(Path(folder or scratch))
        held.enter_context(artifacts.writing(out))
        if int(os.environ.get("RANK", "0")) == 0:
            held.enter_context(artifacts.only_one(out / ".lock"))
        engine = _Engine(
            model=model,
            objective=objective,
            plan=plan,
            videos=train,
            args=_arguments(
                out,
                plan,
                whole=not train.preprocessing.steps,
                chooses=val is not None,
                saves=val is not None or folder is not None,
                by_loss=val is not None and len(val.labels.unique()) < 2,
            ),  # fmt: skip
            train_dataset=train,
            eval_dataset=None if val is None else {"train": _some(train), "val": val},
            compute_metrics=_video_metrics,
            data_collator=None if train.preprocessing.steps else pad_collate,
        )
        engine.add_callback(Estimate(progress=progress))
        if plan.patience and val is not None:
            engine.add_callback(Patience(plan.patience))
        engine.remove_callback(PrinterCallback)  # a line per epoch and training drowns a notebook; the curves hold it all
        last = artifacts.last_checkpoint(out)
        gc.freeze()  # Trainer collects garbage as it starts: without this it looks at all that was ever imported
        try:
            engine.train(resume_from_checkpoint=last)
        finally:
            gc.unfreeze()
        return curves(engine.state.log_history)


def _some(videos: Sequences) -> Dataset:
    """Return at most TRAIN_CURVE videos: thousands of training videos need not all be scored after every epoch."""
    if len(videos) <= TRAIN_CURVE:
        return videos
    drawn = np.random.default_rng(0).permutation(len(videos))[:TRAIN_CURVE]  # every second one could be of one class
    return Subset(videos, np.sort(drawn).tolist())


def _common_folder(folder: Path) -> Path:
    """Return the first process's folder, where several train together: they all load the best epoch from there."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return folder
    PartialState(cpu=not torch.cuda.is_available())
    return broadcast_object_list([folder])[0]


def _arguments(
    out: Path, plan: TrainingPlan, *, whole: bool = False, chooses: bool = True, saves: bool = True, by_loss: bool = False
) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(out),
        num_train_epochs=plan.epochs,
        learning_rate=plan.learning_rate,
        weight_decay=plan.weight_decay,
        per_device_train_batch_size=_share_of(plan.batch_size),
        per_device_eval_batch_size=plan.batch_size if whole else 256,  # whole videos are padded to the longest
        lr_scheduler_type="cosine",
        warmup_steps=plan.warmup_fraction,
        max_grad_norm=plan.clip,
        eval_strategy="epoch" if chooses else "no",
        save_strategy="epoch" if saves else "no",
        logging_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=chooses,
        metric_for_best_model="eval_val_loss" if by_loss else "eval_val_video_auc",
        greater_is_better=not by_loss,
        seed=plan.seed,
        disable_tqdm=True,
        **tracking.arguments(out),
        label_names=["labels"],
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
    )


def _share_of(batch_size: int) -> int:
    """Return this process's part of a batch; ValueError where the processes cannot share it out evenly."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if batch_size % processes:
        raise ValueError(f"a batch of {batch_size} videos cannot be shared by {processes} processes")
    return batch_size // processes


def _video_metrics(prediction) -> dict[str, float]:
    logit = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    labels = np.asarray(prediction.label_ids)
    labels = labels.reshape(len(labels), -1).max(1)  # a target per part of a video: anomalous where any is
    if len(np.unique(labels)) < 2:
        return {}
    scores, truth = {"all": np.asarray(logit).reshape(-1)}, {"all": labels}  # videos in the place of frames: a tenth of the time
    return {"video_auc": metrics.frame_auc(scores, truth), "video_ap": metrics.frame_ap(scores, truth)}


def curves(history: Sequence[Mapping]) -> pd.DataFrame:
    """Return Trainer's log as one row per epoch."""
    wanted = {
        "loss": "train_loss",
        "learning_rate": "learning_rate",
        "eval_val_loss": "val_loss",
        "eval_train_video_auc": "train_video_auc",
        "eval_val_video_auc": "val_video_auc",
        "eval_train_video_ap": "train_video_ap",
        "eval_val_video_ap": "val_video_ap",
    }
    rows: dict[int, dict] = {}
    for entry in history:
        kept = {wanted[key]: value for key, value in entry.items() if key in wanted}
        if kept:
            rows.setdefault(round(entry["epoch"]), {}).update(kept)
    order = [name for name in wanted.values() if any(name in row for row in rows.values())]  # a resumed log has another
    return pd.DataFrame([{"epoch": epoch, **row} for epoch, row in sorted(rows.items())], columns=["epoch", *order])


def count_macs(model: nn.Module, x: Tensor) -> int:
    """Return multiply-accumulates of one pass, counted by torch, plus two per batch-norm output (as fvcore counts them).

    Gradients are on meanwhile: in inference mode torch fuses a transformer's attention into one call that is not counted.
    """
    extra: list[int] = []
    x = x.to(next(model.parameters()).device)
    hooks = [
        part.register_forward_hook(lambda _, __, out: extra.append(2 * out.numel()))
        for part in model.modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm)
    ]
    try:
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return counter.get_total_flops() // 2 + sum(extra)


def warn_if_chance(table: pd.DataFrame) -> str | None:
    """Return a warning when the model does not even separate its training videos (the published curves do not)."""
    if "train_video_auc" not in table:
        return None
    last = table["train_video_auc"].tail(5).mean()  # the highest of all epochs would be lifted by chance
    return f"train video AUC stays at {last:.2f}: the model learned nothing" if last < 0.6 else None
