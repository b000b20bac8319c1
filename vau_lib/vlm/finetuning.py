"""Supervised fine-tuning of a vision-language model: LoRA adapters (Hu et al.) and one training function over TRL.

- rank 64, alpha 128, dropout .05 on attention and MLP projections of the language model only, as Holmes-VAU trains it;
  vision tower and projector stay frozen
- the loss is of the answer's tokens and its end
- `fit` is TRL's `SFTTrainer`, a `transformers.Trainer`: checkpoints, resume, schedules, and several GPUs by
  `accelerate launch` or `torchrun`, one process each. Where one device's memory is too small: activation checkpointing, a model
  loaded in 4 or 8 bits (peft prepares it), a DeepSpeed or FSDP file in `LoraPlan`
- several processes at the same rows a step learn what one process learns (a test)
- the model may be wrapped for training only, such as by token pruning with a keep ratio drawn for each batch (EVS,
  arXiv 2510.14624, tunes so too); checkpoints are of the model inside
Source: Holmes-VAU code, shell/internvl2_2b_finetune_lora.sh; Memories-S0 starts from supervised tuning; TRL 1.16.
"""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from datasets import Dataset
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    prepare_model_for_kbit_training,
    set_peft_model_state_dict,
)
from torch import nn
from transformers import PrinterCallback
from transformers.integrations import is_deepspeed_available
from trl import SFTConfig, SFTTrainer

from vau_lib.vlm.chat import collate
from vau_lib.vlm.instruction_data import EpochCallback, InstructionSamples, judgement_question
from vau_lib.vlm.models import VLM
from vau_lib.workspace import artifacts, formats, tracking

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PROJECTIONS_INTERNLM2 = ("wqkv", "wo", "w1", "w2", "w3")  # the same, as the released model's own code names them


MOST_REPEATS = 4  # of a pattern of layers' names; "model.layers.*.(q|v)_proj" has one
MAY_CHANGE = ("save_steps", "log_steps", "workers", "checkpointing", "deepspeed", "fsdp")  # when a stopped run goes on


@dataclass(frozen=True)
class LoraPlan:
    """How to train; the defaults are the paper's but for the batch: there devices x `batch_size` x `accumulation` is 512.

    `max_steps` > 0 overrides `epochs`; `checkpointing` recomputes activations to save memory; `deepspeed` and `fsdp` are
    configuration files (JSON) of the two, handed to Trainer; `workers` are processes that read and encode videos.
    """

    epochs: float = 1.0
    max_steps: int = -1
    learning_rate: float = 4e-5
    weight_decay: float = 0.01
    warmup_ratio: float = 0.03  # of the steps
    batch_size: int = 4
    accumulation: int = 1  # batches per step
    max_grad_norm: float = 1.0
    save_steps: int = 200
    log_steps: int = 10
    checkpointing: bool = False
    deepspeed: str | None = None
    fsdp: str | None = None
    workers: int = 0
    seed: int = 0

    def __post_init__(self):
        for name in ("batch_size", "accumulation", "save_steps", "log_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.workers < 0 or (self.deepspeed and self.fsdp):
            raise ValueError(
                f"need 0 workers or more and one of deepspeed and fsdp, got {self.workers}, {self.deepspeed}, {self.fsdp}"
            )


def lora_targets(model: nn.Module) -> list[str]:
    """Return the names of the language model's attention and MLP projections, which LoRA changes."""
    ends = "|".join((*PROJECTIONS, *PROJECTIONS_INTERNLM2))
    pattern = re.compile(rf"(.*\.)?language_model\..*\.({ends})")
    return [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and pattern.fullmatch(name)]


def lora(
    model: nn.Module, *, r: int = 64, alpha: int = 128, dropout: float = 0.05, tokens: Sequence[int] = (), seed: int = 0
) -> PeftModel:
    """Add a fresh LoRA adapter on `lora_targets` and freeze all else; the model's weights are shared, not copied.

    A fresh adapter changes nothing (B starts at 0). A model of 4 or 8 bits is prepared by peft first (QLoRA).
    ValueError where there is no language model with such projections.

    Args:
        model: the model to adapt.
        r: rank.
        alpha: scale; the change is (alpha / r) B A.
        dropout: of the adapter's input.
        tokens: ids whose embeddings learn too: words the model never generated have random ones, which LoRA leaves.
        seed: of A.
    """
    targets = lora_targets(model)
    if not targets:
        raise ValueError(f"{type(model).__name__} has no language_model with projections {', '.join(PROJECTIONS)}")
    if r < 1 or alpha <= 0 or not 0 <= dropout < 1:
        raise ValueError(f"need r >= 1, alpha > 0 and dropout in [0, 1), got {r}, {alpha}, {dropout}")
    if is_quantised(model):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)  # `checkpointing` of the plan does that
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
        trainable_token_indices=sorted(tokens) or None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with _no_rename_warning():
            return get_peft_model(model, config)


def is_quantised(model: nn.Module) -> bool:
    """Return whether a model was loaded in 4 or 8 bits."""
    return bool(getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False))


@contextmanager
def _no_rename_warning() -> Iterator[None]:
    """Silence one warning: peft 0.21 asks transformers 5.23 by a name that is being renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
        yield


def trainable_weights(model: nn.Module) -> tuple[int, int]:
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


def save_adapter(vlm: VLM, folder: str | Path, **facts: object) -> None:
    """Write a tuned model's adapter, and in made_by.json the question and frames it was tuned on, with `facts`."""
    vlm.model.peft_config["default"].base_model_name_or_path = None  # peft writes this machine's path
    vlm.model.save_pretrained(folder)
    (Path(folder) / "README.md").unlink(missing_ok=True)  # peft's empty form
    tuning = dict(question=vlm.question, num_frames=vlm.num_frames)
    artifacts.write_made_by(folder, model=vlm.name, kind=vlm.kind, **tuning, **facts)


@artifacts.reader()
def with_adapter(vlm: VLM, folder: str | Path, *, kind: str | None = None) -> VLM:
    """Return a model with a saved adapter merged into its weights; it asks for a judgement as the adapter was tuned.

    `kind` says what its answers are worth; by default the model's, and the folder of the adapter.
    """
    merged, made_by = merge(vlm.model, folder), Path(folder) / "made_by.json"
    facts = artifacts.read_json(made_by, dict) if made_by.is_file() else {}
    kind = ", ".join(part for part in (vlm.kind, f"tuned: {folder}") if part) if kind is None else kind
    tuning = dict(
        question=facts.get("question", vlm.question), num_frames=facts.get("num_frames", facts.get("frames", vlm.num_frames))
    )
    return vlm.replace(model=merged, kind=kind, **tuning)


@artifacts.reader()
def load_adapter(model: nn.Module, folder: str | Path) -> PeftModel:
    """Return the model with a trained adapter from a folder; StoreError where there is none or it does not fit."""
    if not (Path(folder) / "adapter_config.json").is_file():
        raise artifacts.StoreError(f"no adapter at {folder}")
    if not any((Path(folder) / f"adapter_model.{ending}").is_file() for ending in ("safetensors", "bin")):  # peft would ask the hub
        raise artifacts.StoreError(f"the adapter at {folder} has no weights: adapter_model.safetensors is missing")
    try:
        config = PeftConfig.from_pretrained(str(folder))
        with _no_rename_warning(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # an error below
            _check_patterns(config)
            with formats.building(folder):
                adapted = get_peft_model(model, config)
            stored = load_peft_weights(str(folder), device="cpu")
            _check_names(adapted, stored)
            set_peft_model_state_dict(adapted, stored)
    except artifacts.StoreError as error:
        raise artifacts.StoreError(f"the adapter at {folder} does not fit: {error}") from None
    except Exception as error:  # a file cut short, layers that are not there, other shapes: each fails in its own way
        raise artifacts.StoreError(f"the adapter at {folder} does not fit: {artifacts.one_line(error, 200)}") from error
    return adapted.requires_grad_(False).eval()


@artifacts.reader()
def trainable_adapter(vlm: VLM, folder: str | Path) -> VLM:
    """Return the model with a saved adapter that trains on, not merged; it asks as the adapter was tuned."""
    facts = artifacts.read_json(Path(folder) / "made_by.json", dict) if (Path(folder) / "made_by.json").is_file() else {}
    adapted = load_adapter(vlm.model, folder)
    stored = {id(part) for name, part in adapted.named_parameters() if "lora_" in name or "trainable_tokens_" in name}
    for part in adapted.parameters():
        part.requires_grad_(id(part) in stored)
    kind = ", ".join(part for part in (vlm.kind, f"tuned: {folder}") if part)
    return vlm.replace(model=adapted, kind=kind, question=facts.get("question", vlm.question))


def _check_patterns(config: PeftConfig) -> None:
    """Refuse patterns of layers' names that Python's `re` could search for ever: repeated groups, many repeats."""
    named = [getattr(config, part, None) for part in ("target_modules", "exclude_modules", "layers_pattern")]
    named += [getattr(config, part, None) for part in ("rank_pattern", "alpha_pattern")]  # {pattern: value}
    for pattern in [each for part in named for each in ([part] if isinstance(part, str) else part or ())]:
        plain = re.sub(r"\\.|\(\?(?:[:=!]|<[=!])|\[[^\]]*\]", "x", str(pattern))
        if re.search(r"\)[*+{]|\(\?", plain) or len(re.findall(r"[*+?{]", plain)) > MOST_REPEATS:
            raise artifacts.StoreError(f"a pattern of names that may never end: {artifacts.one_line(repr(pattern), 80)}")


def _check_names(adapted: PeftModel, stored: Mapping) -> None:
    """Refuse an adapter's tensors whose names or shapes are not exactly the model's: peft would only warn and leave zeros."""
    wanted = {name: tuple(part.shape) for name, part in get_peft_model_state_dict(adapted).items()}
    found = {name: tuple(part.shape) for name, part in stored.items()}
    for word, names in (("lacks", wanted.keys() - found.keys()), ("has unknown", found.keys() - wanted.keys())):
        if names:
            raise artifacts.StoreError(f"it {word} {len(names)} of {len(wanted)} tensors, the first is {min(names)}")
    if odd := sorted(name for name in wanted if wanted[name] != found[name]):
        raise artifacts.StoreError(f"{odd[0]} is {found[odd[0]]}, the model needs {wanted[odd[0]]}")


class _Trainer(SFTTrainer):
    """SFTTrainer that may train a wrapper of the model, while its checkpoints are of the model itself."""

    def __init__(self, model: nn.Module, wrap_model: Callable[[nn.Module], nn.Module] | None, **options):
        super().__init__(model=model, **options)
        self.inner = model
        # Qwen's classes decline the count of tokens, but the loss is TRL's own; without it short answers would weigh more
        # wherever a step is divided among small batches or processes
        self.model_accepts_loss_kwargs = True
        if wrap_model is not None:
            self.model = self.model_wrapped = wrap_model(self.model)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        outer, self.model = self.model, self.inner
        super()._save(output_dir, state_dict if outer is self.inner else None)
        self.model = outer

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, self.inner)


def fit(
    vlm: VLM,
    train: InstructionSamples,
    val: InstructionSamples | None = None,
    *,
    plan: LoraPlan,
    folder: Path | None = None,
    wrap_model: Callable[[nn.Module], nn.Module] | None = None,
    facts: Mapping | None = None,
    expect_processes: int | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Train the weights that are not frozen, in place; return the loss curve, columns step, loss and val_loss.

    Args:
        vlm: the model, with an adapter or with weights that train.
        train: samples with labels.
        val: samples whose loss is measured at every log.
        plan: how to train.
        folder: where checkpoints and at the end the adapter go; a stopped run goes on there.
        wrap_model: wraps the model for training only, such as `token_pruning.prune_tokens`.
        facts: what else the run depends on, kept in the folder's made_by.json.
        expect_processes: raise a RuntimeError where another number runs; a launcher that starts one looks like several.
        progress: show a bar.

    Raises ValueError where every weight is frozen, StoreError where the folder's run was of other rows, model, plan or
    facts.
    """
    if not trainable_weights(vlm.model)[0]:
        raise ValueError(f"nothing to train: every weight of {vlm.name} is frozen")
    parts = {"train": train} if val is None else {"train": train, "val": val}

    def collator(items: Sequence[dict]) -> dict:
        return collate(vlm, [parts[item["part"]][item["place"]] for item in items])

    def places(part: str) -> Dataset:  # TRL prepares text and lone images; a sample's frames are read by our collator
        return Dataset.from_dict({"part": [part] * len(parts[part]), "place": range(len(parts[part]))})

    with TemporaryDirectory() as scratch, _plain_forward(vlm.model), ExitStack() as held, artifacts.writing(folder or scratch):
        settings = training_arguments(folder or scratch, plan, progress, evaluate=val is not None, save=folder is not None)
        if expect_processes not in (None, settings.world_size):
            raise RuntimeError(f"{settings.world_size} processes train together, {expect_processes} were asked for")
        if folder is not None:
            if settings.should_save:
                held.enter_context(artifacts.only_one(Path(folder) / ".lock"))
            _claim(folder, vlm, train, plan, facts or {}, write=settings.should_save)
        trainer = _Trainer(
            vlm.model,
            wrap_model,
            args=settings,
            data_collator=collator,
            train_dataset=places("train"),
            eval_dataset=None if val is None else places("val"),
            processing_class=vlm.tokenizer,
            callbacks=[EpochCallback(train)],
        )
        trainer.remove_callback(PrinterCallback)
        checkpoint = artifacts.last_checkpoint(folder)
        state = artifacts.read_json(Path(checkpoint) / "trainer_state.json", dict) if checkpoint else {}
        if state and state["global_step"] >= state["max_steps"]:  # finished; Trainer would take one step more
            trainer._load_from_checkpoint(checkpoint)
        else:
            trainer.train(resume_from_checkpoint=checkpoint)
            state = {"log_history": trainer.state.log_history}
        if folder is not None:
            trainer.save_model(str(folder))
    vlm.model.eval()
    return loss_curve(state["log_history"])


def tune_lora(
    vlm: VLM,
    rows: Sequence[Mapping],
    root: str | Path,
    *,
    plan: LoraPlan,
    r: int = 64,
    alpha: int = 128,
    num_frames: int | None = None,
    **options,
) -> tuple[VLM, pd.DataFrame]:
    """Return the model with a LoRA adapter trained on instruction rows, and the loss curve; its own weights stay.

    It carries the judgement question of the rows.

    Args:
        vlm: the model; the adapter is put into it.
        rows: instruction rows.
        root: folder of their videos.
        plan: how to train; its seed is also the adapter's and the frames'.
        r: rank of the adapter.
        alpha: its scale.
        num_frames: frames a row shows.
        options: more for `fit` (folder, wrap_model, facts, progress).
    """
    kind = ", ".join(part for part in (vlm.kind, "LoRA") if part)
    tuned = vlm.replace(
        model=lora(vlm.model, r=r, alpha=alpha, seed=plan.seed),
        kind=kind,
        question=judgement_question(rows),
        num_frames=num_frames or 0,
    )
    samples = InstructionSamples(rows, root, tuned, num_frames=num_frames, seed=plan.seed)
    return tuned, fit(tuned, samples, plan=plan, **options)


@contextmanager
def _plain_forward(model: nn.Module) -> Iterator[None]:
    """Take back the forward that SFTTrainer puts on a model: a copy of the model would go on calling the original's."""
    try:
        yield
    finally:
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        vars(base).pop("forward", None)


def _claim(folder: Path, vlm: VLM, samples: InstructionSamples, plan: LoraPlan, facts: Mapping, *, write: bool) -> None:
    """Write what a folder's run is of; where it holds a checkpoint, check that it is of the same."""
    run = {name: value for name, value in asdict(plan).items() if name not in MAY_CHANGE}
    run |= {"model": vlm.name, "trainable_weights": trainable_weights(vlm.model)[0], **facts}
    run["rows"] = hashlib.sha256(json.dumps(samples.rows, default=str).encode()).hexdigest()
    if artifacts.last_checkpoint(folder):
        artifacts.check_made_by(folder, **run)
    elif write:
        for name in ("adapter_model.safetensors", "adapter_model.bin", "adapter_config.json"):  # of a run before
            (Path(folder) / name).unlink(missing_ok=True)
        artifacts.write_made_by(folder, question=judgement_question(samples.rows), **run)


def training_arguments(
    folder: Path | str, plan: LoraPlan, progress: bool, *, evaluate: bool = False, save: bool = False
) -> SFTConfig:
    """Return a plan as TRL's arguments; `evaluate` measures validation loss at every log, `save` keeps checkpoints.

    ValueError in one line for a configuration file that cannot be read, and for DeepSpeed where it is not installed.
    """
    if plan.deepspeed and not is_deepspeed_available():
        raise ValueError(f"deepspeed={plan.deepspeed} needs the package deepspeed, which is not installed")
    sharding = {name: _configuration(getattr(plan, name)) for name in ("deepspeed", "fsdp") if getattr(plan, name)}
    cuda, several = torch.cuda.is_available(), int(os.environ.get("WORLD_SIZE", "1")) > 1
    return SFTConfig(
        output_dir=str(folder),
        num_train_epochs=plan.epochs,
        max_steps=plan.max_steps,
        learning_rate=plan.learning_rate,
        weight_decay=plan.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=plan.warmup_ratio,
        max_grad_norm=plan.max_grad_norm,
        per_device_train_batch_size=plan.batch_size,
        per_device_eval_batch_size=plan.batch_size,
        gradient_accumulation_steps=plan.accumulation,
        activation_checkpointing=plan.checkpointing,
        deepspeed=sharding.get("deepspeed"),
        fsdp=True if plan.fsdp else None,
        fsdp_config=sharding.get("fsdp"),
        dataloader_num_workers=plan.workers,
        bf16=cuda,
        use_cpu=not cuda,
        ddp_backend="gloo" if several and not cuda else None,
        ddp_find_unused_parameters=False,
        save_strategy="steps" if save else "no",
        save_steps=plan.save_steps,
        save_total_limit=2,
        logging_steps=plan.log_steps,
        eval_strategy="steps" if evaluate else "no",
        eval_steps=plan.log_steps,
        prediction_loss_only=True,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        label_names=["labels"],
        dataloader_pin_memory=False,
        seed=plan.seed,
        **tracking.arguments(folder),
        disable_tqdm=not progress,
    )


def _configuration(path: str) -> dict:
    """Return a JSON file that holds one table; ValueError in one line for another."""
    try:
        content = artifacts.read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is no configuration: {artifacts.one_line(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no configuration: it holds a {type(content).__name__}, not a table")
    return content


def loss_curve(history: Sequence[Mapping]) -> pd.DataFrame:
    """Return Trainer's log as a table: step, loss, and val_loss where there was validation."""
    rows: dict[int, dict] = {}
    for entry in history:
        for theirs, ours in {"loss": "loss", "eval_loss": "val_loss"}.items():
            if theirs in entry:
                rows.setdefault(entry["step"], {"step": entry["step"]})[ours] = entry[theirs]
    return pd.DataFrame(sorted(rows.values(), key=lambda row: row["step"]))
