"""Compression changes nothing at ratio 0 and full rank, loses what theory says below, and reloads with its smaller shapes."""

import pytest
import torch
from torch import nn

from vau_lib import compress


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 24), nn.GELU(), nn.Linear(24, 5)).eval()


@pytest.fixture
def data():
    return list(torch.randn(4, 64, 8, generator=torch.Generator().manual_seed(1)))


def test_pruning_nothing_is_exact(data):
    model = mlp()
    assert torch.equal(compress.prune(model, 0, data)(data[0]), model(data[0]))


def test_full_rank_is_exact(data):
    model = mlp()
    assert (compress.factorise(model, 1, data)(data[0]) - model(data[0])).abs().max() <= 1e-4


def test_the_loss_of_a_rank_is_the_sum_of_the_singular_values_beyond_it(data):
    model, x = nn.Sequential(nn.Linear(8, 6, bias=False)).double(), torch.cat(data).double()
    parts = compress._whitened(model[0].weight, x.T @ x)
    thin = compress._thin(model[0], *parts, 3)
    assert (model(x) - thin(x)).pow(2).sum().item() == pytest.approx(parts[1][3:].pow(2).sum().item(), rel=1e-4)


def test_a_constant_channel_is_dropped_for_free(data):
    model = mlp()
    model[0].weight.data[:4] = 0  # four channels that only ever give their bias
    model[0].bias.data[:4] = 1
    small = compress.prune(model, 4 / 56, data)
    assert small[0].out_features == 28 and (small(data[0]) - model(data[0])).abs().max() < 1e-5


def test_factors_keep_to_the_budget(data):
    model = mlp()
    weights = [
        sum(p.numel() for n, p in m.named_parameters() if "weight" in n)
        for m in (model, compress.factorise(model, 0.5, data))
    ]
    assert weights[1] <= 0.5 * weights[0]


@pytest.mark.parametrize("small", [lambda m, d: compress.prune(m, 0.5, d), lambda m, d: compress.factorise(m, 0.5, d)])
def test_a_compressed_model_reloads_into_its_smaller_shapes(tmp_path, data, small):
    model = mlp()
    made = small(model, data)
    compress.save(made, tmp_path, model)
    again = compress.load(tmp_path, mlp(seed=9))
    assert torch.equal(again(data[0]), made(data[0]))
    assert compress.report(model, again)["parameters"] < 0.7


@pytest.mark.parametrize("ratio", [-0.1, 1, 2])
def test_a_ratio_out_of_range_is_refused(data, ratio):
    with pytest.raises(ValueError, match=f"got {ratio}"):
        compress.prune(mlp(), ratio, data)


@pytest.mark.parametrize("share", [0, 1.5])
def test_a_share_out_of_range_is_refused(data, share):
    with pytest.raises(ValueError, match=f"got {share}"):
        compress.factorise(mlp(), share, data)


@pytest.mark.parametrize("nothing", [None, []])
def test_missing_calibration_data_is_refused(nothing):
    for call in (compress.prune, compress.factorise):
        with pytest.raises(ValueError, match="needs calibration data"):
            call(mlp(), 0.5, nothing)


def test_a_model_without_an_mlp_is_refused(data):
    with pytest.raises(ValueError, match="no MLP"):
        compress.prune(nn.Linear(8, 2), 0.5, data)


def test_half_the_parameters_keep_nine_tenths_of_the_accuracy_after_healing():
    """A small classifier really trained on scikit-learn's 1,797 real digits; accuracy on the last 500, never trained on."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[:1297]), y[:1297]).backward()
        optimiser.step()
    model.eval()

    def accuracy(one):
        return (one(x[1297:]).argmax(1) == y[1297:]).float().mean().item()

    batches = list(x[:1297].split(64))
    for small in (compress.prune(model, 0.4, batches), compress.factorise(model, 0.5, batches)):
        compress.heal(small, model, batches, epochs=5)
        assert compress.report(model, small)["parameters"] <= 0.55
        assert accuracy(small) >= 0.9 * accuracy(model) > 0.8


def tiny_qwen():
    """The real class at toy width, random weights."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    text = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    text |= {"num_key_value_heads": 2, "rope_parameters": rope, "tie_word_embeddings": True}
    seen = {"depth": 1, "hidden_size": 32, "num_heads": 4, "out_hidden_size": 32, "intermediate_size": 32}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=seen)).eval()


def test_a_real_transformers_class_is_pruned_factorised_saved_and_reloaded(tmp_path):
    model, ids = tiny_qwen(), torch.randint(0, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": ids}]
    exact = compress.factorise(model, 1, batches)(input_ids=ids).logits - model(input_ids=ids).logits
    assert exact.abs().max() <= 1e-4
    small = compress.factorise(compress.prune(model, 0.3, batches, layers=1), 0.7, batches)
    assert len(small.model.language_model.layers) == 2 and small.config.text_config.num_hidden_layers == 2
    compress.save(small, tmp_path, model)
    again = compress.load(tmp_path, tiny_qwen())
    assert torch.equal(again(input_ids=ids).logits, small(input_ids=ids).logits)
    assert again.generate(input_ids=ids, max_new_tokens=2, do_sample=False).shape[1] == 11


def test_a_compressed_model_reloads_in_a_fresh_process(tmp_path, data):
    import subprocess
    import sys

    made = compress.prune(mlp(), 0.5, data)
    compress.save(made, tmp_path, mlp())
    torch.save(data[0], tmp_path / "x.pt")
    code = (
        "import sys, torch; from torch import nn; from vau_lib import compress\n"
        "model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 24), nn.GELU(), nn.Linear(24, 5))\n"
        "x = torch.load(sys.argv[1] + '/x.pt', weights_only=True)\n"
        "torch.save(compress.load(sys.argv[1], model)(x).detach(), sys.argv[1] + '/y.pt')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert torch.allclose(torch.load(tmp_path / "y.pt", weights_only=True), made(data[0]), atol=1e-6)
