"""LSHMA as published: its files by their own names, its forward pass, loss and smoothing, each written a second time here."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from published_lshma import SIZES, Reference, published_tree, sigmoid, smooth

from vau_lib.detectors import lshma, training
from vau_lib.detectors.lshma import LSHMA
from vau_lib.detectors.lshma_state import LSHMAConfig
from vau_lib.features import checkpoints
from vau_lib.workspace import artifacts

COUNTS = {"xd": 7_359_745, "ucf": 12_349_313}


def videos_of(lengths: list[int], width: int = 16) -> list[torch.Tensor]:
    return [torch.randn(n, width, generator=torch.Generator().manual_seed(n)) for n in lengths]


# The file


@pytest.mark.parametrize("kind", SIZES)
def test_a_published_file_loads_by_its_own_names_and_wrapper(kind, tmp_path):
    tree = published_tree(kind)
    assert sum(p.numel() for p in tree.parameters()) == COUNTS[kind]
    weights = tree.state_dict()
    assert {"blocks.1.resblock.compress_k.weight", "blocks.0.resblock.compress_cur.weight", "mlp2.c_fc.bias"} < weights.keys()
    optimiser = torch.optim.AdamW(tree.parameters(), lr=1e-5)
    for metric in (0, np.float64(0.8168)):
        whole = {"epoch": 3, "model_state_dict": weights, "optimizer_state_dict": optimiser.state_dict(), "ap": metric}
        torch.save(whole, tmp_path / "8168.pth")
        model = lshma.load_released(tmp_path / "8168.pth")
        assert model.settings == getattr(LSHMAConfig, kind)(released=True)
        assert sum(p.numel() for p in model.parameters()) == COUNTS[kind] and not model.training
    torch.save(weights, tmp_path / "bare.pth")
    bare, x = lshma.load_released(tmp_path / "bare.pth"), torch.randn(1, 21, 512)
    assert torch.equal(bare.raw_logits(x), model.raw_logits(x))
    for theirs, ours in lshma.published_names(model.settings.layers).items():
        assert torch.equal(weights[theirs], model.state_dict()[ours])


@pytest.mark.parametrize("kind", SIZES)
def test_a_file_that_does_not_fit_is_refused_in_its_own_names(kind, tmp_path):
    weights = published_tree(kind, 16).state_dict()
    name, path = "blocks.1.resblock.compress_k.weight", tmp_path / "x.pth"

    def why(**changes):
        state = {k: v for k, v in (weights | changes).items() if v is not None}
        torch.save({"epoch": 1, "model_state_dict": state, "ap": 0}, path)
        with pytest.raises(artifacts.StoreError) as refused:
            lshma.load_released(path)
        assert "\n" not in str(refused.value)
        return str(refused.value)

    assert why(**{name: None}) == f"x.pth does not fit LSHMA: {name} is missing (1 missing, 0 unknown)"
    assert f"{name} is (4, 4, 5), expected" in why(**{name: torch.zeros(4, 4, 5)})
    assert "x.pth does not fit LSHMA: linear.extra is unknown (0 missing, 1 unknown)" == why(**{"linear.extra": torch.zeros(1)})
    assert "is no published LSHMA: frame_position_embeddings of 5 places" in why(
        **{"frame_position_embeddings.weight": torch.zeros(5, 16)}
    )
    torch.save({"model_state_dict": {"a": "text"}}, path)
    with pytest.raises(artifacts.StoreError, match="something else than named tensors"):
        checkpoints.load_weights(path)


# The forward pass of the test scripts


@pytest.mark.parametrize("threshold", [1.0, 0.6, 0.55])
@pytest.mark.parametrize("kind", SIZES)
def test_as_released_equals_the_second_writing(kind, threshold):
    weights, total = published_tree(kind, 16, seed=3).state_dict(), 0
    config = getattr(LSHMAConfig, kind)(released=True, width=16, exit_threshold=threshold)
    model, theirs = lshma.load_released(weights, config), Reference(kind, weights)
    for rows in videos_of([75, 3, 8, 41, 129, 22]):
        expected, exits = theirs.test(rows.double().numpy(), threshold)
        total += exits
        np.testing.assert_allclose(model.raw_logits(rows[None])[0].numpy(), expected, atol=5e-5)
        for size in (8, 15):
            sized = lshma.load_released(weights, replace(config, smoothing=size))
            found = sized.smoothed_logits(rows[None])[0].numpy()
            np.testing.assert_allclose(found, smooth(expected, kind, size), atol=5e-5)
            np.testing.assert_allclose(sized.score(rows).numpy(), sigmoid(smooth(expected, kind, size)), atol=5e-5)
    assert (total > 0) == (threshold < 1)


def test_smoothing_as_released_by_hand():
    logits = torch.arange(1.0, 6.0)
    slide = lshma.released_smoothing(logits, LSHMAConfig.ucf(smoothing=2))
    assert slide.tolist() == [1.5, 2.5, 3.5, 4.5, 2.5]  # the last one is averaged with a zero past the end
    blocks = lshma.released_smoothing(logits, LSHMAConfig.xd(smoothing=2, smooths_blocks=True))
    assert blocks.tolist() == [1.5, 1.5, 3.5, 3.5, 2.5]  # and so is the last block


@pytest.mark.parametrize(("votes", "depths_differ"), [(False, True), (True, False)])
def test_padded_places_do_not_end_a_clip_early_but_do_as_released(votes, depths_differ):
    """Only places 4 to 7 of a clip are sure; in the last one they are padding."""
    torch.manual_seed(0)
    model, features = LSHMA(LSHMAConfig.xd(width=16, exit_threshold=0.9, padding_votes=votes)).eval(), torch.randn(1, 12, 16)

    def sure(module, _, logits):
        return logits + 20.0 * (torch.arange(8) >= 4)[:, None]

    model.classifier.register_forward_hook(sure)
    with torch.inference_mode():
        assert model.push(features)[1].depth.tolist() == [1]  # the first clip is whole: all its places vote
        first, last = model(features).levels[0, :, 8:12]  # past an exit a depth repeats the one before
    assert torch.equal(first, last) != depths_differ


# The bag of the training scripts


def bag(logits: np.ndarray, length: int) -> float:
    """CLAS's: the mean of the int(length / 16 + 1) highest of the first `length`; the library takes fewer where there are fewer."""
    chances = np.sort(sigmoid(logits[:length]))[::-1]
    return float(chances[: int(length / 16 + 1)].mean())


@pytest.mark.parametrize("length", [30, 75, 113, 130])
@pytest.mark.parametrize("kind", SIZES)
def test_the_loss_as_released_equals_the_second_writing(kind, length):
    weights, (rows,) = published_tree(kind, 16, seed=6).state_dict(), videos_of([length])
    weights["classifier.weight"] /= 6  # no bag is certain
    config = getattr(LSHMAConfig, kind)(released=True, width=16, half_precision_key_clips=False)
    found, kept = Reference(kind, weights).train(rows.double().numpy())
    if kind == "xd":  # the kept clips in a row, whatever was padding
        expected = bag(np.concatenate(found), length)
    else:  # dropped clips repeat the last kept one
        expected = bag(np.concatenate([found[sum(kept[: place + 1]) - 1] for place in range(len(kept))]), length)
    model = lshma.load_released(weights, config).train()
    output = model(rows[None])
    assert output.logit.sigmoid().item() == pytest.approx(expected, abs=2e-5)
    loss = lshma.loss(output, torch.ones(1)).item()
    assert loss == pytest.approx(-math.log(expected), abs=1e-4)
    assert not all(kept) or length < 40
    if kind == "xd":
        without = np.concatenate(found)[: -(-length % 8) * kept[-1] or None]
        inside = lshma.load_released(weights, replace(config, padded_bags=False)).train()(rows[None])
        assert inside.logit.sigmoid().item() == pytest.approx(bag(without, length), abs=2e-5)
        assert length not in (75, 113) or (kept[-1] and abs(bag(without, length) - expected) > 1e-3)  # padding matters here


def test_padding_is_in_the_released_bag_only():
    """Half a last clip of padding that scores highest: in as released, out as intended and without `padded_bags`."""
    logits = torch.full((1, 1, 48), -2.0)
    logits[..., 44:] = 3.0  # the padding of 44 snippets
    kept, lengths = torch.ones(1, 48, dtype=torch.bool), torch.tensor([44])
    kept[:, 16:24] = False  # one clip was dropped, so the first 44 of the kept places reach the end

    def probability(**changes):
        model = LSHMA(LSHMAConfig.xd(width=16, **changes)).train()
        levels, counted = model._bag_rows(logits, kept, lengths, 44)
        return training.bag_probability(levels[:, -1], lengths, counted).item()

    low, high = 1 / (1 + math.exp(2)), 1 / (1 + math.exp(-3))
    assert probability(shortened_bags=True, padded_bags=True) == pytest.approx(high, abs=1e-6)  # 44 // 16 + 1 = 3 of the 4
    assert probability(shortened_bags=True) == pytest.approx(low, abs=1e-6)
    assert probability() == pytest.approx(low, abs=1e-6)
    kept[:] = True  # nothing dropped: the first 44 are the real ones
    assert probability(shortened_bags=True, padded_bags=True) == pytest.approx(low, abs=1e-6)
