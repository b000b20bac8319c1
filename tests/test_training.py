"""The engine learns, stops, goes on, and chooses by validation."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import two_ranks_detector
from sklearn.metrics import average_precision_score
from transformers import TrainerState

from vau_lib.detectors import memtsm, preprocessing, training
from vau_lib.features import checkpoints
from vau_lib.workspace import artifacts

PLAN = training.TrainingPlan(epochs=4, learning_rate=3e-3, batch_size=8, curriculum_epochs=2)


def toy(count=24, width=6, seed=0):
    """Anomalous videos change more from row to row."""
    rng = np.random.default_rng(seed)
    labels = {f"v{n:02d}": n % 2 for n in range(count)}
    rows = {name: rng.normal(0, 1 + 2 * label, (int(rng.integers(9, 30)), width)) for name, label in labels.items()}
    return rows, labels


@pytest.fixture()
def sets():
    rows, labels = toy()
    fitted = preprocessing.Preprocessing.fit(rows, steps=12, temporal_difference=True)
    val_rows, val_labels = toy(seed=1)
    return preprocessing.Sequences(rows, labels, fitted), preprocessing.Sequences(val_rows, val_labels, fitted)


def fit(sets, tmp_path=None, plan=PLAN):
    torch.manual_seed(0)
    model = memtsm.MemTSM(memtsm.MemTSMConfig(in_channels=6, width=16, slots=8))

    def objective(output, x, labels):
        return memtsm.loss(output, x, labels, alpha=0.5)

    return model, training.fit(model, objective, *sets, plan=plan, folder=tmp_path, progress=False)


def test_curves_of_many_training_videos_are_of_some_and_what_is_learned_does_not_change(sets, monkeypatch):
    model, table = fit(sets)
    monkeypatch.setattr(training, "TRAIN_CURVE", 8)
    again, few = fit(sets)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert table["val_video_auc"].equals(few["val_video_auc"])
    scored = training._some(sets[0])
    assert len(set(scored.indices)) == 8 and scored.indices == sorted(scored.indices) == training._some(sets[0]).indices
    labels = torch.arange(15) % 2  # pairs: every second video is of one class
    assert set(labels[training._some(labels).indices].tolist()) == {0, 1}


def test_it_learns_and_reports_every_epoch(sets):
    _, table = fit(sets)
    assert table["epoch"].tolist() == [1, 2, 3, 4]
    assert table["val_video_auc"].max() > 0.9
    assert training.warn_if_chance(table) is None
    assert "learned nothing" in training.warn_if_chance(table.assign(train_video_auc=0.5))


def test_the_rate_warms_up_and_falls(sets):
    _, table = fit(sets, plan=training.TrainingPlan(epochs=10, learning_rate=1e-3, batch_size=8, warmup_fraction=0.2))
    rates = table["learning_rate"].to_numpy()
    assert rates.max() == pytest.approx(1e-3, rel=0.05) and rates.argmax() in (1, 2)
    assert rates[0] < 0.6e-3 and rates[-1] < 0.1e-3  # the released code stays at its warm-up value for ever


def test_the_model_kept_is_the_best_on_validation(sets):
    model, table = fit(sets)
    with torch.inference_mode():
        logit = model.eval()(torch.stack(sets[1].x)).logit.numpy()
    labels = sets[1].labels.numpy()
    wins = (logit[labels == 1][:, None] > logit[labels == 0]).mean()
    assert wins == pytest.approx(table["val_video_auc"].max(), abs=1e-6)
    kept = table["val_video_auc"].idxmax()  # the first of equals, as Trainer keeps it
    assert table["val_video_ap"][kept] == pytest.approx(average_precision_score(labels, logit), abs=1e-6)


def test_without_validation_videos_all_are_trained_on_and_the_last_epoch_is_kept(sets, tmp_path):
    model, table = fit((sets[0], None), tmp_path)
    assert table["epoch"].tolist() == [1, 2, 3, 4] and not [name for name in table if name.startswith("val_")]
    assert training.warn_if_chance(table) is None
    last = checkpoints.load_weights(Path(artifacts.last_checkpoint(tmp_path)) / "model.safetensors")
    assert last.keys() == model.state_dict().keys() and all(torch.equal(last[n], v) for n, v in model.state_dict().items())
    with torch.inference_mode():
        logit = model.eval()(torch.stack(sets[1].x)).logit.numpy()
    labels = sets[1].labels.numpy()
    assert (logit[labels == 1][:, None] > logit[labels == 0]).mean() > 0.9
    rows, targets = toy()
    fitted, known, none = preprocessing.preprocess_splits(rows, targets, None, steps=None, temporal_difference=False)
    assert none is None and known.names == sorted(rows)
    np.testing.assert_allclose(fitted.mean, np.concatenate(list(rows.values())).mean(0), atol=1e-6)
    with pytest.raises(ValueError, match="both sides"):
        preprocessing.preprocess_splits(rows, targets, [], steps=None, temporal_difference=False)


def test_a_stopped_run_goes_on(sets, tmp_path):
    whole, expected = fit(sets, tmp_path / "whole")
    stopper = training._Engine.training_step
    steps = []

    def stop(self, *arguments):
        steps.append(1)
        if len(steps) > 7:  # three batches an epoch: in the middle of the third
            raise KeyboardInterrupt
        return stopper(self, *arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training._Engine, "training_step", stop)
        fit(sets, tmp_path / "cut")
    resumed, table = fit(sets, tmp_path / "cut")
    assert table["epoch"].tolist() == [1, 2, 3, 4]
    pd.testing.assert_frame_equal(table, expected)  # the same noise, too
    left, right = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_the_same_seed_gives_the_same_model(sets):
    first, second = (fit(sets)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_weight_decay_spares_norms_and_biases(sets, tmp_path):
    model = memtsm.MemTSM(memtsm.MemTSMConfig(in_channels=6, width=16, slots=8))
    engine = training._Engine(
        model=model, objective=None, plan=PLAN, videos=sets[0], args=training._arguments(tmp_path, PLAN), eval_dataset=[1]
    )
    decayed = set(engine.get_decay_parameter_names(model))
    assert decayed == {name for name, p in model.named_parameters() if p.ndim > 1}


def test_short_videos_come_first_and_all_come_in_the_end():
    order = training.CurriculumSampler([50, 10, 40, 20, 30], seed=0, start=0.4, full_from=3)
    assert set(order) == {1, 3} and len(list(order)) == 5
    order.set_epoch(3)
    assert sorted(order) == [0, 1, 2, 3, 4]
    assert list(order) == list(order)


def test_disturbing_keeps_the_shape_and_is_seeded():
    x = torch.randn(4, 6, 24)
    a, b = (training.augment(x, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(a, b) and a.shape == x.shape and not torch.equal(a, x)
    assert torch.equal(training.augment(x, generator=torch.Generator(), probability=0.0), x)


def test_rows_are_brought_to_length():
    rows = np.arange(12, dtype=np.float32)[:, None]
    assert preprocessing.to_steps(rows, 4)[:, 0].tolist() == [1, 4, 7, 10]  # means of equal parts
    assert preprocessing.to_steps(rows[:2], 3)[:, 0].tolist() == [0, 0.5, 1]
    with pytest.raises(ValueError, match=r"\(T, D\)"):
        preprocessing.to_steps(rows[:0], 4)


def test_change_is_the_absolute_step():
    assert preprocessing.temporal_difference(np.array([[1.0], [4.0], [2.0]]))[:, 0].tolist() == [3, 3, 2]
    assert preprocessing.temporal_difference(np.ones((1, 2))).tolist() == [[0, 0]]


def test_sequences_refuse_names_that_differ():
    rows, labels = toy(4)
    fitted = preprocessing.Preprocessing.fit(rows, steps=4, temporal_difference=False)
    with pytest.raises(ValueError, match="'v00' is in one only"):
        preprocessing.Sequences({name: rows[name] for name in list(rows)[1:]}, labels, fitted)


def test_a_saved_model_loads_strictly(tmp_path):
    model = memtsm.MemTSM(memtsm.MemTSMConfig(in_channels=6, width=16, slots=8))
    checkpoints.save_model(tmp_path, model, {"slots": 8}, seed=3)
    again = memtsm.MemTSM(memtsm.MemTSMConfig(in_channels=6, width=16, slots=8))
    checkpoints.load_strictly(again, checkpoints.load_weights(tmp_path / "model.safetensors"), tmp_path)
    assert torch.equal(again.stem.weight, model.stem.weight)


def test_a_training_killed_while_a_checkpoint_was_written_goes_on_from_the_one_before(sets, tmp_path):
    fit(sets, tmp_path, replace(PLAN, epochs=2))
    cut = tmp_path / "checkpoint-9999"  # what a kill leaves: a folder with weights and no trainer_state.json
    cut.mkdir()
    (cut / "model.safetensors").write_bytes(b"cut")
    (tmp_path / "checkpoint-best").mkdir()
    later = tmp_path / "checkpoint-9998"  # or one whose state was cut short
    later.mkdir()
    (later / "trainer_state.json").write_text('{"epoch": 2, "glob')
    _, table = fit(sets, tmp_path, replace(PLAN, epochs=3))
    assert table["epoch"].tolist() == [1, 2, 3]


def watched(sets, plan):
    """Train by `plan`; return [(rate, clean input, what the network was given, target of the loss) of every step]."""
    torch.manual_seed(0)
    model, seen = memtsm.MemTSM(memtsm.MemTSMConfig(in_channels=6, width=16, slots=8)), []
    clean = {tuple(x.flatten()[:4].tolist()): x for x in sets[0].x}
    model.register_forward_pre_hook(lambda part, given: seen.append([given[0].clone()]) if part.training else None)

    def objective(output, x, labels):
        if model.training:
            seen[-1].append(x.clone())
        return memtsm.loss(output, x, labels, alpha=0.5)

    step = training._Engine.training_step

    def noted(self, *arguments):
        rate = self.optimizer.param_groups[0]["lr"]
        value = step(self, *arguments)
        seen[-1].append(rate)
        return value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training._Engine, "training_step", noted)
        training.fit(model, objective, *sets, plan=plan, progress=False)
    return seen, clean


def test_the_released_recipe_keeps_its_rate_and_rebuilds_what_the_network_was_given(sets):
    """train.py and main.py of MemTSM-Net: the loss gets `features`, masked and noised by the data set; the rate stays 1e-5."""
    seen, clean = watched(sets, training.TrainingPlan.released(epochs=4, batch_size=8))
    rates = [rate for *_, rate in seen]
    assert len(rates) == 12 and rates == [1e-5] * 12  # first, middle and last step alike
    assert all(torch.equal(given, target) for given, target, _ in seen)
    originals = torch.stack(list(clean.values()))
    assert any((row != originals).flatten(1).any(1).all() for given, *_ in seen for row in given), "some rows are disturbed"


def test_the_intended_recipe_rebuilds_the_clean_input(sets):
    seen, clean = watched(sets, training.TrainingPlan(epochs=2, batch_size=8))
    rates = [rate for *_, rate in seen]
    assert rates[0] < max(rates) and rates[-1] < max(rates)
    originals = torch.stack(list(clean.values()))
    for given, target, _ in seen:
        assert all((row == originals).flatten(1).all(1).any() for row in target)
        assert not torch.equal(given, target)


def test_the_released_plan_is_what_its_code_runs():
    plan = training.TrainingPlan.released(seed=156)
    assert (plan.learning_rate, plan.weight_decay, plan.batch_size, plan.epochs, plan.clip) == (1e-5, 0.1, 16, 20, 1.0)
    assert plan.curriculum_epochs == 0 and plan.seed == 156 and not plan.clean_target


def test_the_released_decay_spares_nothing(sets, tmp_path):
    model = memtsm.MemTSM(memtsm.MemTSMConfig(in_channels=6, width=16, slots=8))
    plan = training.TrainingPlan.released()
    engine = training._Engine(
        model=model, objective=None, plan=plan, videos=sets[0], args=training._arguments(tmp_path, plan), eval_dataset=[1]
    )
    assert set(engine.get_decay_parameter_names(model)) == {name for name, _ in model.named_parameters()}


def test_released_noise_comes_to_seven_of_ten_and_zero_spans_to_half():
    x = torch.full((4000, 2, 30), 5.0)
    out = training.released_augment(x, generator=torch.Generator().manual_seed(0))
    spans, noisy = (
        (out.abs() < 1).any(2).all(1),
        (out != 5).all(2).all(1) | ((out - 5).abs() < 1).logical_and(out != 5).any(2).any(1),
    )
    assert spans.float().mean() == pytest.approx(0.5, abs=0.03) and noisy.float().mean() == pytest.approx(0.7, abs=0.03)
    empty = (out.abs() < 1).all(1).sum(1)[spans]
    assert empty.min() >= 2 and empty.max() <= 10  # one or two spans of 2 to 30 // 6
    assert float((out[noisy & ~spans] - 5).std()) == pytest.approx(0.02, rel=0.05)
    assert torch.equal(x, torch.full((4000, 2, 30), 5.0)), "the input is left alone"
    assert training.released_augment(x[..., :3], generator=torch.Generator()).shape == (4000, 2, 3)


def test_channels_are_left_as_they_are_when_asked():
    rows, _ = toy(6)
    fitted = preprocessing.Preprocessing.fit(rows, steps=12, temporal_difference=False, standardise=False)
    assert np.allclose(fitted(rows["v01"], 12).T, preprocessing.to_steps(rows["v01"], 12))


def test_one_line_says_how_long_a_training_takes(sets, monkeypatch):
    clock, lines = [0.0], []

    def tick():
        clock[0] += 2.0
        return clock[0]

    monkeypatch.setattr(training.time, "perf_counter", tick)
    estimate = training.Estimate(echo=lines.append)
    state, arguments = TrainerState(max_steps=8000), training._arguments(Path("x"), replace(PLAN, epochs=5))
    estimate.on_train_begin(arguments, state, None)
    for step in range(1, 12):
        state.global_step = step
        estimate.on_step_end(arguments, state, None)
    estimate.on_train_end(arguments, state, None)
    assert lines == ["training: 8,000 updates in 5 epochs, 2 s each: about 4.4 h, evaluation not counted"]  # 16,000 s
    assert estimate.bar.n == 11


def test_a_training_of_seconds_is_estimated_when_asked(sets, monkeypatch):
    lines = []
    monkeypatch.setattr(training.tqdm, "write", lines.append)
    monkeypatch.setitem(training.Estimate.__init__.__kwdefaults__, "echo", lines.append)
    fit(sets, plan=replace(PLAN, epochs=1))
    assert not lines  # it is over before one has read the line
    plan, model = replace(PLAN, epochs=1), memtsm.MemTSM(memtsm.MemTSMConfig(in_channels=6, width=16, slots=8))
    training.fit(model, lambda output, x, y: memtsm.loss(output, x, y, alpha=0.5), *sets, plan=plan, progress=True)
    assert len(lines) == 1 and lines[0].startswith("training: 3 updates in 1 epochs, ")


def test_large_arrays_are_mapped_and_small_ones_read(tmp_path, monkeypatch):
    artifacts.save_array(tmp_path / "a.npy", np.ones((50, 4), np.float32))
    assert not isinstance(artifacts.load_array(tmp_path / "a.npy"), np.memmap)
    monkeypatch.setattr(artifacts, "MAPPED_BYTES", 100)
    assert isinstance(artifacts.load_array(tmp_path / "a.npy"), np.memmap)


def test_a_video_with_a_target_per_part_is_anomalous_where_any_is():
    labels = np.array([[0, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 0]])
    found = training._video_metrics(SimpleNamespace(predictions=np.array([0.1, 0.9, 0.8, 0.2]), label_ids=labels))
    assert found["video_auc"] == found["video_ap"] == 1.0


def test_mean_and_std_of_parts_are_those_of_all_rows():
    """Against numpy in double precision over the joined rows, which a float32 sum misses far from zero."""
    rng = np.random.default_rng(0)
    features = {f"v{n}": (1000 + rng.normal(size=(n, 5))).astype(np.float32) for n in (3, 40, 800, 1)}
    fitted = preprocessing.Preprocessing.fit(features, steps=None, temporal_difference=False)
    rows = np.concatenate(list(features.values())).astype(np.float64)
    np.testing.assert_allclose(fitted.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(fitted.std, rows.std(0), rtol=1e-9)


def test_features_that_are_not_finite_are_named_before_anything_is_trained_or_scored(sets):
    features = {"good": np.ones((40, 6), np.float32), "bad": np.ones((40, 6), np.float32)}
    features["bad"][7, 2] = np.nan
    for steps in (None, 32):
        with pytest.raises(ValueError, match="bad: its features hold NaN or infinity, first in row 7"):
            preprocessing.Preprocessing.fit(features, steps=steps, temporal_difference=False)
    fitted = preprocessing.Preprocessing.fit({"good": features["good"]}, steps=32, temporal_difference=False)
    with pytest.raises(ValueError, match="features hold NaN or infinity, first in row 7"):
        memtsm.MemTSM(memtsm.MemTSMConfig(in_channels=6, width=16, slots=8)).eval().score_video(features["bad"], fitted)


def test_two_processes_learn_what_one_does_at_the_same_batch(tmp_path):
    """LSHMA has no batch norm and no dropout: half a batch in each of two processes has the gradients of the whole."""
    two_ranks_detector.train(tmp_path / "one")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, two_ranks_detector.__file__, tmp_path / "two"]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    losses = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two")]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    assert losses[0][0] != losses[0][1]
    weights = [torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("one", "two")]
    for one, two in zip(*weights, strict=True):
        torch.testing.assert_close(two, one, atol=1e-4, rtol=1e-4)


def test_a_batch_that_processes_cannot_share_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="a batch of 16 videos cannot be shared by 3 processes"):
        training._share_of(16)


def test_patience_ends_a_training_and_keeps_its_best_epoch(sets, tmp_path):
    """The same curve as far as it goes; a training that was stopped before goes on to the same end."""
    plan = replace(PLAN, epochs=12)
    whole, long = fit(sets, plan=plan)
    values = long["val_video_auc"].tolist()
    end = next(n for n in range(12) if n - values.index(max(values[: n + 1])) >= 2)
    assert end < 11, values
    stopper, steps = training._Engine.training_step, iter(range(7))  # three batches an epoch: in the middle of the third

    def stop(self, *arguments):
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return stopper(self, *arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training._Engine, "training_step", stop)
        fit(sets, tmp_path, plan=replace(plan, patience=2))
    model, short = fit(sets, tmp_path, plan=replace(plan, patience=2))
    pd.testing.assert_frame_equal(short, long[: end + 1])
    if values.index(max(values)) <= end:
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), whole.state_dict().values(), strict=True))
