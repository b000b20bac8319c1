"""The shift, the memory and the heads do what the report says; the published checkpoint still computes what it did."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vau_lib.detectors import memtsm, trained_detector, training
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
