"""Experiment tracking by one setting: every training of a run reports to TensorBoard, Trackio or Weights & Biases.

- off unless asked for: `vau --report-to tensorboard run demo 04`, or VAU_REPORT_TO, which notebooks inherit
- Trainer's own reporters do it; what is trained, and what is written beside a model, stays the same with and without
- a training that is not Trainer's (GRPO) hands its numbers to the same reporters
"""

import importlib.util
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from vau_lib.workspace import presets

VARIABLE = "VAU_REPORT_TO"
REPORTERS = ("tensorboard", "trackio", "wandb")  # each the name of its package
FOLDER = "data/runs/tracking"  # of TensorBoard: where a model trains is removed afterwards


def check(text: str) -> list[str]:
    """Return the reporters that a comma-separated text names, [] for "" and none; ValueError for another or a missing package."""
    names = [name for name in (part.strip() for part in text.split(",")) if name and name != "none"]
    for name in names:
        if name not in REPORTERS:
            raise ValueError(f"{VARIABLE}: trainings report to {', '.join(REPORTERS)} or none, got {name!r}")
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"{VARIABLE}={name} needs the package {name}: pip install {name}")
    return names


def arguments(folder: str | Path) -> dict:
    """Return TrainingArguments' `report_to`, `run_name` and `project` for a training in a folder, by VAU_REPORT_TO."""
    names = check(os.environ.get(VARIABLE, ""))
    if not names:
        return {"report_to": "none"}
    place = Path(folder).resolve()
    inside = place.relative_to(presets.project()) if place.is_relative_to(presets.project()) else Path(place.name)
    run = "/".join(part for part in inside.parts if part not in ("data", "models", "unfinished")) or "training"
    if "tensorboard" in names:  # its reporter reads the place of a run from the environment alone
        stamp = time.strftime("%Y%m%d-%H%M%S")
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(presets.project() / FOLDER / run / f"{stamp}-{os.getpid()}")
    return {"report_to": names, "run_name": run, "project": "vau-lib"}


@contextmanager
def reporting(folder: str | Path) -> Iterator[Callable[[int, Mapping], None]]:
    """Give a function (step, numbers) for a training in a folder that is not Trainer's; it does nothing unless VAU_REPORT_TO asks.

    Numbers that are not finite are left out: a reporter draws them as 0 or stops.
    """
    words = arguments(folder)
    if words["report_to"] == "none":
        yield lambda step, numbers: None
        return
    import torch  # transformers and torch only where something is reported
    from transformers import TrainerControl, TrainerState, TrainingArguments
    from transformers.integrations import get_reporting_integration_callbacks

    settings = TrainingArguments(output_dir=str(folder), use_cpu=not torch.cuda.is_available(), **words)
    state, control = TrainerState(), TrainerControl()
    reporters = [kind() for kind in get_reporting_integration_callbacks(words["report_to"])]

    def report(step: int, numbers: Mapping) -> None:
        state.global_step = step
        finite = {name: float(value) for name, value in numbers.items() if math.isfinite(value)}
        for reporter in reporters:
            reporter.on_log(settings, state, control, logs=finite, model=None)

    for reporter in reporters:
        reporter.on_train_begin(settings, state, control, model=None)
    try:
        yield report
    finally:
        for reporter in reporters:
            reporter.on_train_end(settings, state, control, model=None)
