"""The shift, the memory and the heads do what the report says; the published checkpoint still computes what it did."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vau_lib.detectors import memtsm, preprocessing, trained_detector, training
from vau_lib.features import checkpoints
from vau_lib.workspace import artifacts

TINY = memtsm.MemTSMConfig(in_channels=8, width=16, slots=12)


@pytest.fixture()
def model():
    torch.manual_seed(0)
    return memtsm.MemTSM(TINY).eval()


def ramp(channels=16, steps=6):
    """Channel c at time t holds 100 c + t + 1."""
    return (100.0 * torch.arange(channels)[:, None] + torch.arange(1, steps + 1))[None]


def test_shift_by_hand():
    x = ramp()  # fold = 16 // 8 = 2
    out = memtsm.temporal_shift(x)
    assert torch.equal(out[0, 0], torch.tensor([2.0, 3, 4, 5, 6, 0]))  # first fold: the future (TSM, shift.py)
    assert torch.equal(out[0, 2], torch.tensor([0.0, 201, 202, 203, 204, 205]))  # second fold: the past
    assert torch.equal(out[0, 4:], x[0, 4:])


def test_released_shift_by_hand():
    x = ramp(steps=7)
    out = memtsm.temporal_shift(x, stride=5, additive=True)
    assert torch.equal(out[0, 0], torch.tensor([1.0, 2, 3, 4, 5, 6 + 1, 7 + 2]))  # the past, added
    assert torch.equal(out[0, 2], torch.tensor([201.0 + 206, 202 + 207, 203, 204, 205, 206, 207]))  # the future, added
    short = ramp(steps=5)
    assert torch.equal(memtsm.temporal_shift(short, stride=5, additive=True), short)


def test_shift_of_constant_channels_loses_only_the_ends():
    x = torch.ones(2, 8, 5)
    assert memtsm.temporal_shift(x).sum() == x.sum() - 2 * 2
    assert memtsm.temporal_shift(x[..., :1]).sum() == 2 * 6  # one step: both folds come from outside


@pytest.mark.parametrize("bad", [dict(fold_div=1), dict(stride=0)])
def test_shift_refuses_nonsense(bad):
    with pytest.raises(ValueError, match="need x"):
        memtsm.temporal_shift(ramp(), **bad)


@pytest.mark.parametrize("steps", [1, 2, 7, 32])
@pytest.mark.parametrize("batch", [1, 3])
def test_shapes_for_any_length_and_a_batch_of_one(model, batch, steps):
    out = model(torch.randn(batch, 8, steps))
    assert out.logit.shape == (batch,) and out.embedding.shape == (batch, 32)
    assert out.segment_logit.shape == (batch, steps) and out.reconstruction.shape == (batch, 8, steps)
    assert out.attention.shape == (batch, 12) and torch.allclose(out.attention.sum(-1), torch.ones(batch))


def test_default_width_is_the_reports():
    out = memtsm.MemTSM().eval()(torch.randn(2, 128, 16))
    assert out.embedding.shape == (2, 128) and out.attention.shape == (2, 100)


def test_videos_do_not_see_each_other(model):
    x = torch.randn(5, 8, 12)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.allclose(model(x).logit[order], model(x[order]).logit, atol=1e-6)
    assert torch.allclose(model(x).logit[:1], model(x[:1]).logit, atol=1e-6)


def test_a_wrong_width_is_refused(model):
    with pytest.raises(ValueError, match=r"input must be \(B, 8, T\), got \(2, 9, 4\)"):
        model(torch.randn(2, 9, 4))


def test_a_temperature_makes_slots_differ():
    torch.manual_seed(0)
    query = torch.randn(16, 128)
    entropy = {}
    for temperature in (1.0, 0.1):
        attention = memtsm.MemoryBank(100, 128, temperature)(query)[1]
        entropy[temperature] = (-(attention * attention.log()).sum(-1).mean() / np.log(100)).item()
    assert entropy[1.0] > 0.99 > 0.93 > entropy[0.1]


def test_the_loss_reaches_every_part_and_its_memory_term_the_bank(model):
    model.train()
    x, labels = torch.randn(6, 8, 12), torch.tensor([0.0, 1, 0, 1, 0, 1])
    memtsm.loss(model(x), x, labels, alpha=0.5).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    model.zero_grad()
    memtsm.memory_gap(model(x)).backward()
    assert model.memory.slots.grad.abs().sum() > 0


def test_the_segment_loss_judges_the_highest_quarter_by_hand():
    """Multiple instances: of 6 segments the 2 highest, their mean probability q, focal loss alpha (1 - q)^2 (-log q)."""
    torch.manual_seed(0)
    x, output = torch.randn(1, 128, 6), memtsm.MemTSM().eval()(torch.randn(1, 128, 6))
    output = replace(output, segment_logit=torch.tensor([[2.0, -3.0, 0.5, -1.0, -2.0, -9.0]]))
    q = (1 / (1 + np.exp(-2.0)) + 1 / (1 + np.exp(-0.5))) / 2
    for label, by_hand in ((1.0, 0.3 * (1 - q) ** 2 * -np.log(q)), (0.0, 0.7 * q**2 * -np.log(1 - q))):
        options = {"x": x, "labels": torch.tensor([label]), "alpha": 0.3}
        extra = memtsm.loss(output, segments=2.0, **options) - memtsm.loss(output, **options)
        assert extra.item() == pytest.approx(2 * by_hand, rel=1e-4)
    with pytest.raises(ValueError, match="segment_weight must be 0 or more, got -1"):
        memtsm.MemTSMConfig(segment_weight=-1)
    with pytest.raises(ValueError, match="segment_weight"):
        memtsm.MemTSMConfig(as_released=True, segment_weight=1)


def test_the_released_memory_term_leaves_the_bank_alone():
    model = memtsm.MemTSM(memtsm.MemTSMConfig.released())
    out = model(torch.randn(4, 3, 32))
    (out.embedding @ out.embedding.mT).mean().backward()
    assert model.memory.slots.grad is None


def test_alpha_weighs_the_classes():
    x, labels = torch.randn(2, 128, 8), torch.tensor([1.0, 0.0])
    output = replace(memtsm.MemTSM().eval()(x), logit=torch.tensor([0.3, 0.3]))
    only_anomalous = memtsm.loss(output, x, labels, alpha=1.0, rebuild=0.0, bank=0.0)
    p = torch.sigmoid(torch.tensor(0.3))
    assert torch.allclose(only_anomalous, 0.5 * (1 - p) ** 2 * -p.log())  # Lin et al. 2017, Eq. 5, by hand
    with pytest.raises(ValueError, match="alpha"):
        memtsm.loss(output, x, labels, alpha=1.5)


def test_smoothed_targets_and_the_reports_alpha_by_hand():
    """y = 1 and e = .1 is the target .95 (train.py: .9 y + .05); then Eq. 5 of Lin et al. with soft targets, by numpy."""
    config = memtsm.MemTSMConfig(in_channels=8, width=16, slots=12, smoothing=0.1, alpha=0.85)
    model, labels = memtsm.MemTSM(config).eval(), torch.tensor([1.0, 0.0, 0.0])
    x = torch.zeros(3, 8, 4)
    network, objective = model.for_training(labels)
    logit = np.array([0.3, -1.0, 2.0])
    output = replace(network(x), logit=torch.tensor(logit).float(), reconstruction=x)
    y, p = np.array([0.95, 0.05, 0.05]), 1 / (1 + np.exp(-logit))
    entropy = -(y * np.log(p) + (1 - y) * np.log(1 - p))
    hit = p * y + (1 - p) * (1 - y)
    focal = ((0.85 * y + 0.15 * (1 - y)) * (1 - hit) ** 2 * entropy).mean()
    rest = 0.01 * memtsm.memory_gap(output).item()
    assert float(objective(output, x, labels)) == pytest.approx(focal + rest, rel=1e-5)
    plain = memtsm.MemTSM(TINY).for_training(labels)[1]
    assert plain.keywords == {"alpha": pytest.approx(2 / 3), "smoothing": 0.0, "segments": 0.0}  # off: what it was


@pytest.mark.parametrize("bad", [dict(smoothing=1.0), dict(alpha=1.2), dict(as_released=True, alpha=0.85)])
def test_options_of_the_loss_are_checked(bad):
    with pytest.raises(ValueError, match="smoothing"):
        memtsm.MemTSMConfig(**bad)


def test_released_loss_by_hand():
    """y = 0 and logit 0: target .05, bce = log 2, p_t = 1/2, focal = .85 * .25 * log 2; nothing to rebuild, no embedding."""
    zero = torch.zeros
    out = memtsm.MemTSMOutput(zero(2), zero(2, 3, 16), zero(2, 128), zero(2, 100), None, zero(100, 128))
    expected = 0.85 * 0.25 * np.log(2)
    assert float(memtsm.released_loss(out, zero(2, 3, 32), zero(2))) == pytest.approx(expected, rel=1e-6)


def test_released_fusion_by_hand():
    score, error = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([2.0, 4.0, 3.0])
    assert torch.allclose(memtsm.released_fusion(score, error), torch.tensor([0.0, 0.8 * 0.5 + 0.2, 0.7 + 0.3 * 0.5]))


@pytest.mark.real
def test_the_published_checkpoint_is_read_strictly_and_counts_as_measured(real_data):
    model = memtsm.load_released(real_data / "weights" / "memtsm" / "best_model.pth")
    assert sum(p.numel() for p in model.parameters()) == 159_347
    assert len(model.state_dict()) == 41
    assert training.count_macs(model, torch.randn(1, 3, 32)) == 1_163_328  # fvcore: 1.1633 M (specs/memtsm.md)
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert parts["stem"] == 640 and parts["first"] == 13_537 and parts["second"] == 37_441
    assert parts["excite"] == 8_352 and parts["decoder"] == 45_360 and parts["scorer"] == 8_321


@pytest.mark.real
def test_the_published_memory_is_inert_and_its_score_is_energy(real_data):
    """Findings of specs/memtsm.md, section 0: entropy 99.92 % of uniform, scores within .489-.505 on matched inputs."""
    model = memtsm.load_released(real_data / "weights" / "memtsm" / "best_model.pth")
    rng = np.random.default_rng(0)
    size = rng.uniform(0.2, 2.0, 200)  # videos of different energy, rows like the checkpoint's BN statistics say
    x = torch.from_numpy((0.116 + 0.18 * rng.standard_normal((200, 3, 32))) * size[:, None, None]).float()
    with torch.inference_mode():
        out = model(x)
    entropy = -(out.attention * out.attention.log()).sum(-1).mean() / np.log(100)
    assert 0.998 < float(entropy) <= 1.0
    assert 0.47 < float(out.score.min()) and float(out.score.max()) < 0.53
    order = np.argsort(np.argsort(out.logit.numpy()))
    energy = np.argsort(np.argsort(np.linalg.norm(x.numpy(), axis=(1, 2))))
    assert np.corrcoef(order, energy)[0, 1] < -0.7


@pytest.mark.real
def test_a_pickle_that_could_run_code_is_refused(real_data):
    with pytest.raises(artifacts.StoreError, match=r"ShanghaiTech_85_9\.tar is refused"):
        memtsm.load_released(real_data / "weights" / "stgnf" / "ShanghaiTech_85_9.tar")


def test_a_trained_model_comes_back_with_its_preparation(tmp_path):
    rng = np.random.default_rng(0)
    rows = {f"v{n}": rng.normal(0, 1 + n % 2, (20, 8)) for n in range(12)}
    labels = {name: int(name[1:]) % 2 for name in rows}
    plan = training.TrainingPlan(epochs=1, batch_size=4)
    trained = trained_detector.train(rows, labels, ["v0", "v1"], config=TINY, plan=plan, steps=8)
    trained_detector.save(tmp_path, trained, made="here")
    again = trained_detector.load(tmp_path)
    assert again.score_video(rows["v5"])[0] == trained.score_video(rows["v5"])[0]
    assert np.array_equal(*(t.model.video_error(rows["v5"], t.preprocessing) for t in (again, trained)))
    assert again.curves.equals(trained.curves)
    artifacts.write_json(tmp_path / "config.json", {"detector": "memtsm", "sizes": {"colour": 3}})
    with pytest.raises(artifacts.StoreError, match="not of a trained detector"):
        trained_detector.load(tmp_path)


def test_weights_of_another_model_are_refused(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(artifacts.StoreError, match="other.pth does not fit MemTSM"):
        memtsm.load_released(tmp_path / "other.pth")
    torch.save({"a": {"b": 1}}, tmp_path / "nested.pth")
    with pytest.raises(artifacts.StoreError, match="something else than named tensors"):
        checkpoints.load_weights(tmp_path / "nested.pth")
    (tmp_path / "noise.pth").write_bytes(b"not weights")
    with pytest.raises(artifacts.StoreError, match="noise.pth is refused"):
        checkpoints.load_weights(tmp_path / "noise.pth")


def fitted(window, steps=8, difference=False, width=8):
    return preprocessing.Preprocessing(steps, difference, (0.0,) * width, (1.0,) * width, window)


def test_a_video_no_longer_than_a_window_is_read_as_in_training(model):
    """On its own steps the network says what it said before; a row takes the value of the step that holds it."""
    x, prepared = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32), fitted(40)
    with torch.inference_mode():
        steps = model(prepared(x, 8)[None]).segment_logit.sigmoid()[0].numpy()
    assert np.allclose(model.score_video(x, prepared)[1], steps.repeat(5), atol=1e-6)  # 40 rows in 8 steps of 5


@pytest.mark.parametrize(("rows", "steps"), [(40, 8), (37, 8), (8, 8), (5, 8), (1, 8), (100, 32)])
def test_a_row_belongs_to_the_step_it_is_brought_to(rows, steps):
    for row, step in enumerate(preprocessing.step_of_row(rows, steps)):
        single = np.zeros((rows, 1), np.float32)
        single[row] = 1
        weight = preprocessing.to_steps(single, steps)[:, 0]
        assert weight[step] == pytest.approx(weight.max(), rel=0.35)  # parts of unequal size overlap by a row


def test_values_of_a_network_that_repeats_its_input_are_the_features():
    """Constant features give the constant; a ramp gives the ramp, up to the width of a step; every row has a value."""
    prepared = fitted(40, width=1)
    for x, off in ((np.full((333, 1), 0.7, np.float32), 1e-6), (np.arange(333, dtype=np.float32)[:, None], 2.6)):
        for causal, late in ((False, off), (True, off + 3)):  # a causal value is late by half a step and the hop
            values = memtsm.row_values(lambda w: w[:, 0], x, prepared, 3, causal)
            assert values.shape == (333,) and np.abs(values - x[:, 0]).max() <= late


@pytest.mark.parametrize("difference", [False, True])
@pytest.mark.parametrize("hop", [None, 1, 7])
def test_causal_scores_never_read_a_later_row(model, difference, hop):
    rng, prepared = np.random.default_rng(1), fitted(24, difference=difference)
    x = rng.normal(size=(90, 8)).astype(np.float32)
    whole = model.score_video(x, prepared, causal=True, hop=hop)[1]
    error = model.video_error(x, prepared, causal=True, hop=hop)
    for cut in (1, 2, 23, 24, 25, 60):
        other = np.concatenate([x[:cut], 9 * rng.normal(size=(90 - cut, 8))]).astype(np.float32)
        assert np.allclose(model.score_video(other, prepared, causal=True, hop=hop)[1][:cut], whole[:cut], atol=1e-6)
        assert np.allclose(model.video_error(other, prepared, causal=True, hop=hop)[:cut], error[:cut], rtol=1e-4, atol=1e-5)
    assert not np.allclose(model.score_video(other, prepared, hop=hop)[1][:60], model.score_video(x, prepared, hop=hop)[1][:60])


def test_what_the_network_reads_at_once_does_not_grow_with_the_video(model):
    sizes = {}
    handle = model.register_forward_hook(lambda _, inputs, __: sizes.setdefault(rows, []).append(inputs[0].numel()))
    for rows in (500, 8000):
        model.score_video(np.zeros((rows, 8), np.float32), fitted(80), hop=2)
    handle.remove()
    assert max(sizes[500]) == max(sizes[8000]) and len(sizes[8000]) > 10 * len(sizes[500])


@pytest.mark.parametrize("rows", [1, 2, 7, 31, 32, 33, 500])
@pytest.mark.parametrize("causal", [False, True])
def test_any_length_has_a_score_per_row(model, rows, causal):
    x = np.random.default_rng(rows).normal(size=(rows, 8)).astype(np.float32)
    scores = model.score_video(x, fitted(32, difference=True), causal=causal)[1]
    assert scores.shape == (rows,) and scores.dtype == np.float32 and np.isfinite(scores).all()
    with pytest.raises(ValueError, match="hop must be 1 row or more, got 0"):
        model.score_video(x, fitted(32), hop=0)


def test_the_window_is_half_a_training_video_and_no_shorter_than_the_steps_it_was_trained_with():
    def window(rows):
        videos = {f"v{n}": np.random.default_rng(n).normal(size=(count, 2)) for n, count in enumerate(rows)}
        return preprocessing.Preprocessing.fit(videos, steps=32, temporal_difference=False).window

    assert window([400, 480, 600]) == 240 and window([40] * 3) == 32 and window([32] * 3) == 32
    assert window([25, 20, 25]) == 25  # shorter than the steps: training stretched them whole


def test_rows_of_long_videos_are_scored_as_they_were_learned():
    """Weak events in long streams (benchmarks/long_videos.py, small): rows at full length lose what 32 steps of the same hold."""
    spec = importlib.util.spec_from_file_location("long_videos", Path(__file__).parents[1] / "benchmarks" / "long_videos.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    world, config = "easier, long events", memtsm.MemTSMConfig(in_channels=benchmark.WIDTH, width=32, slots=20)
    benchmark.WORLDS[world] = (0.8, (96, 160))  # so that few videos and epochs are enough
    found = benchmark.trained(world, videos=80, epochs=12, config=config)
    table = benchmark.measure(world, found, lengths=(480, 2000), total_rows=6000)
    auc = table.pivot(index="scored by", columns="rows", values="frame_auc")
    before, now = auc.loc["rows at full length"], auc.loc["windows of half a training video (default)"]
    assert (now > before + 0.05).all(), auc
    assert auc.loc["whole video in 32 steps", 2000] < 0.7 < 0.9 < now[2000]  # what squeezing alone would give
