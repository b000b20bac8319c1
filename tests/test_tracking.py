"""Trainings report where one setting says, and nowhere without it; the trained weights are the same either way."""

import json

import numpy as np
import pytest
import torch
from test_training import fit, sets  # noqa: F401, the smallest training of a detector
from typer.testing import CliRunner

from vau_lib.cli import app
from vau_lib.detectors import training
from vau_lib.workspace import tracking


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("VAU_PROJECT", str(tmp_path))
    monkeypatch.delenv("VAU_REPORT_TO", raising=False)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")  # set by a training; put back at the end of a test
    return tmp_path


def test_nothing_is_reported_unless_asked_for(project):
    assert training._arguments(project / "data" / "models" / "x", training.TrainingPlan()).report_to == []


@pytest.mark.parametrize("name", tracking.REPORTERS)
def test_a_training_is_told_where_to_report(project, monkeypatch, name):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda package: package)
    monkeypatch.setenv("VAU_REPORT_TO", name)
    arguments = training._arguments(project / "data/models/memtsm/mine/seed0/unfinished", training.TrainingPlan())
    assert arguments.report_to == [name] and arguments.run_name == "memtsm/mine/seed0" and arguments.project == "vau-lib"


@pytest.mark.parametrize(
    ("value", "words"), [("tensorbord", "got 'tensorbord'"), ("trackio,x", "got 'x'"), ("wandb", "pip install wandb")]
)
def test_what_cannot_be_reported_to_is_one_line(monkeypatch, value, words):
    found = {"wandb": None}
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda package: found.get(package, package))
    done = CliRunner().invoke(app, ["--report-to", value, "list"])
    assert done.exit_code == 1 and words in done.stderr and done.stderr.count("\n") == 1


def test_tensorboard_holds_the_curve_and_the_weights_are_the_same(project, sets, monkeypatch):  # noqa: F811
    pytest.importorskip("tensorboard", reason="needs tensorboard: pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    weights = []
    for reporter in ("", "tensorboard"):
        monkeypatch.setenv("VAU_REPORT_TO", reporter)
        model, _ = fit(sets, project / "data" / "models" / f"one{reporter}")
        weights.append(torch.cat([value.flatten() for value in model.state_dict().values()]).numpy())
    assert np.array_equal(*weights)
    (events,) = {path.parent for path in (project / tracking.FOLDER).rglob("events.out*")}
    log = EventAccumulator(str(events)).Reload()
    assert {"train/loss", "eval/val_video_auc"} <= set(log.Tags()["scalars"]), json.dumps(log.Tags()["scalars"])
