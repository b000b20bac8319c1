"""Trainings report where one setting says, and nowhere without it; the trained weights are the same either way."""

import json

import numpy as np
import pytest
import test_grpo
import torch
from test_training import fit, sets  # noqa: F401, the smallest training of a detector
from typer.testing import CliRunner

from vau_lib.cli import app
from vau_lib.compression import distillation
from vau_lib.detectors import training
from vau_lib.vlm import grpo
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


def scalars(folder):
    """Return {tag: [(step, value)]} of the one run that TensorBoard holds."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard")
    (events,) = {path.parent for path in folder.rglob("events.out*")}
    log = accumulator.EventAccumulator(str(events)).Reload()
    return {tag: [(event.step, event.value) for event in log.Scalars(tag)] for tag in log.Tags()["scalars"]}


def test_reinforcement_reports_every_step_as_its_curve_has_it(project, monkeypatch):
    pytest.importorskip("tensorboard", reason="needs tensorboard: pip install tensorboard")
    monkeypatch.setenv("VAU_REPORT_TO", "tensorboard")
    vlm = test_grpo.vlm_of("internvl")
    folder = project / "data" / "models" / "reinforced"
    curve = grpo.train(vlm, test_grpo.prompts_of(vlm), test_grpo.length_reward, plan=test_grpo.PLAN, folder=folder)
    shown = scalars(project / tracking.FOLDER / "reinforced")
    for name in ("reward", "loss", "kl", "length"):
        assert [step for step, _ in shown[f"train/{name}"]] == [1, 2, 3]
        np.testing.assert_allclose([value for _, value in shown[f"train/{name}"]], curve[name], rtol=1e-5)


def test_distillation_reports_the_losses_it_returns(project, monkeypatch):
    pytest.importorskip("tensorboard", reason="needs tensorboard: pip install tensorboard")
    monkeypatch.setenv("VAU_REPORT_TO", "tensorboard")
    batches = [torch.randn(4, 3) for _ in range(3)]
    losses = distillation.distil(torch.nn.Linear(3, 5), torch.nn.Linear(3, 5), batches, epochs=2)
    shown = scalars(project / tracking.FOLDER / "distillation")["train/loss"]
    assert [value for _, value in shown] == pytest.approx(losses) and len(losses) == 2


def test_a_report_leaves_out_what_is_no_number_and_ends_with_the_training(project, monkeypatch):
    """By a reporter that writes down what it is told; the training stops with an error."""
    told = []

    class Reporter:
        def on_train_begin(self, *_, **words):
            told.append("begin")

        def on_log(self, settings, state, control, *, logs, model):
            told.append((settings.run_name, state.global_step, logs))

        def on_train_end(self, *_, **words):
            told.append("end")

    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda package: package)
    monkeypatch.setattr("transformers.integrations.get_reporting_integration_callbacks", lambda names: [Reporter])
    monkeypatch.setenv("VAU_REPORT_TO", "trackio")
    with pytest.raises(KeyError), tracking.reporting(project / "data" / "models" / "x") as report:
        report(7, {"reward": 1, "entropy": float("nan")})
        raise KeyError
    assert told == ["begin", ("x", 7, {"reward": 1.0}), "end"]
