"""The counts of benchmarks/efficiency.py are those that others publish for the same networks."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torchvision import models

from vau_lib.detectors import training


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("efficiency", Path(__file__).parents[1] / "benchmarks" / "efficiency.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("ResNet-18", models.ResNet18_Weights.IMAGENET1K_V1),
        ("MobileNetV2", models.MobileNet_V2_Weights.IMAGENET1K_V1),
        ("ViT-B/16", models.ViT_B_16_Weights.IMAGENET1K_V1),
    ],
)
def test_counts_are_torchvisions_published_ones(benchmark, name, published):
    network, x, *_ = benchmark.networks()[name]
    assert benchmark.parameters(network) == published.meta["num_params"]
    assert benchmark.macs(network, x) / 1e9 == pytest.approx(published.meta["_ops"], rel=0.005)  # GMACs, as torchvision lists them
    assert benchmark.macs(network, x) <= training.count_macs(network, x) < 1.06 * benchmark.macs(network, x)


def test_tiny_yolo_is_the_published_one(benchmark):
    """darknet prints 6.910 BFLOPS for cfg/yolov4-tiny.cfg at 416; its weights file holds 6.06 M values."""
    network, x, *_ = benchmark.networks()["Tiny-YOLOv4"]
    assert 2 * benchmark.macs(network, x) / 1e9 == pytest.approx(6.91, rel=0.01)
    assert benchmark.parameters(network) / 1e6 == pytest.approx(6.06, rel=0.002)
    coarse, fine = network(x)
    assert coarse.shape == (1, 255, 13, 13) and fine.shape == (1, 255, 26, 26)


def test_xfeat_and_the_released_head_are_as_measured_elsewhere(benchmark):
    """specs/memtsm.md: .3895 GFLOP a 224 frame for the descriptor map; the head 159,347 weights, 1.163 M MACs by fvcore."""
    table = benchmark.networks()
    xfeat, gray, *_ = table["XFeat, descriptor map"]
    assert 2 * benchmark.macs(xfeat, gray) / 1e9 == pytest.approx(0.3895, rel=0.02)
    head, x, *_ = table["MemTSM-Net head as released"]
    assert benchmark.parameters(head) == 159_347 and training.count_macs(head, x) == 1_163_328
    taken = benchmark.latencies_ms({"head": table["MemTSM-Net head as released"]}, rounds=4)
    assert taken["head"].shape == (4,) and (taken["head"] > 0).all()


def test_counting_leaves_a_network_as_it_was(benchmark):
    network, x, *_ = benchmark.networks()["MobileNetV2"]
    with torch.inference_mode():
        before = network(x)
        benchmark.macs(network, x)
        assert torch.equal(network(x), before)
