"""Tables 4 to 6 of the Mem-TSM report measured: parameters, operations and latency of its head and of whole networks. One run.

The report sets its head (1.16 M, "FLOPs") beside ResNet-18, ViT-B, MobileNetV2 and Tiny-YOLOv4; the head reads features that
XFeat made, so XFeat stands here too. Weights are random: they change neither count nor time. Nothing is typed in.
- `macs` are multiply-accumulates of convolutions, linear layers and matrix products, counted by torch's FlopCounterMode; `flops`
  is twice that; `macs_fvcore` adds two per output of a batch norm, fvcore's convention, which gives the report's 1.16 M
- Tiny-YOLOv4 is built from the layer table its authors publish (AlexeyAB/darknet, cfg/yolov4-tiny.cfg, 80 classes)
    python benchmarks/efficiency.py
"""

import time

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vau_lib.detectors import memtsm, training
from vau_lib.evaluation import result_tables
from vau_lib.features.xfeat import XFeatEncoder
from vau_lib.workspace import presets

ROUNDS = 20  # timed passes of every network, taken in turn
FRAMES = 16  # of a video, the report's


def conv(channels: int, out: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    """Return darknet's block: convolution without bias, batch norm, leaky ReLU."""
    layer = nn.Conv2d(channels, out, size, stride, size // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(out), nn.LeakyReLU(0.1))


class Partial(nn.Module):
    """The cross-stage block of Tiny-YOLOv4: half the channels go through two convolutions, all are kept."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.whole, self.one, self.two = conv(channels, channels), conv(half, half), conv(half, half)
        self.join = conv(channels, channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        whole = self.whole(x)
        one = self.one(whole[:, whole.shape[1] // 2 :])
        joined = self.join(torch.cat([self.two(one), one], 1))
        return F.max_pool2d(torch.cat([whole, joined], 1), 2), joined


class TinyYOLOv4(nn.Module):
    """Tiny-YOLOv4 without its decoding: images (B, 3, H, W) -> maps (B, 255, H/32, W/32) and (B, 255, H/16, W/16)."""

    def __init__(self, outputs: int = 3 * (80 + 5)):
        super().__init__()
        self.stem = nn.Sequential(conv(3, 32, stride=2), conv(32, 64, stride=2))
        self.stages = nn.ModuleList(Partial(channels) for channels in (64, 128, 256))
        self.neck = nn.Sequential(conv(512, 512), conv(512, 256, 1))
        self.coarse = nn.Sequential(conv(256, 512), nn.Conv2d(512, outputs, 1))
        self.up = conv(256, 128, 1)
        self.fine = nn.Sequential(conv(128 + 256, 256), nn.Conv2d(256, outputs, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        for stage in self.stages:
            x, joined = stage(x)
        neck = self.neck(x)
        return self.coarse(neck), self.fine(torch.cat([F.interpolate(self.up(neck), scale_factor=2), joined], 1))


class XFeatDense(nn.Module):
    """What is run of XFeat: its descriptor map, float32, without the key-point and reliability heads."""

    def __init__(self):
        super().__init__()
        self.encoder = XFeatEncoder("random", bfloat16=False)
        net = self.encoder.net
        self.used = nn.ModuleList([net.block1, net.skip1, net.block2, net.block3, net.block4, net.block5, net.block_fusion])

    def forward(self, gray: Tensor) -> Tensor:
        return self.encoder.dense(gray)


def networks() -> dict[str, tuple[nn.Module, Tensor, str, int]]:
    """Return {name: (network in eval mode, input, what the input is, passes per video of 16 frames)}."""
    models, image = torchvision.models, torch.rand(1, 3, 224, 224)
    frame = "one frame, 224 × 224"
    table = {
        "MemTSM-Net head as released": (
            memtsm.MemTSM(memtsm.MemTSMConfig.released()), torch.randn(1, 3, 32), "one video, 32 steps of 3", 1,
        ),
        "MemTSM-Net head as intended": (memtsm.MemTSM(), torch.randn(1, 128, 32), "one video, 32 steps of 128", 1),
        "XFeat, descriptor map": (XFeatDense(), torch.rand(1, 224, 224), "one gray frame, 224 × 224", FRAMES),
        "ResNet-18": (models.resnet18(), image, frame, FRAMES),
        "ViT-B/16": (models.vit_b_16(), image, frame, FRAMES),
        "MobileNetV2": (models.mobilenet_v2(), image, frame, FRAMES),
        "Tiny-YOLOv4": (TinyYOLOv4(), torch.rand(1, 3, 416, 416), "one frame, 416 × 416", FRAMES),
    }  # fmt: skip
    return {name: (network.eval(), *rest) for name, (network, *rest) in table.items()}


def parameters(network: nn.Module) -> int:
    """Return the number of weights, of XFeat those of the layers that are run."""
    return sum(p.numel() for p in getattr(network, "used", network).parameters())


def macs(network: nn.Module, x: Tensor) -> int:
    """Return multiply-accumulates of one pass; gradients stay on, or torch's fused attention would go by uncounted."""
    with FlopCounterMode(display=False) as counter:
        network(x)
    return counter.get_total_flops() // 2


def latencies_ms(tried: dict[str, tuple], rounds: int = ROUNDS) -> dict[str, np.ndarray]:
    """Return {name: (rounds,) milliseconds}, the networks in turn, so that a busy moment of the machine meets all of them."""
    taken = {name: [] for name in tried}
    with torch.inference_mode():
        for turn in range(rounds + 3):
            for name, (network, x, *_) in tried.items():
                network(x)  # the one before has filled the caches
                start = time.perf_counter()
                network(x)
                if turn >= 3:  # the first are warm-up
                    taken[name].append(1000 * (time.perf_counter() - start))
    return {name: np.array(values) for name, values in taken.items()}


def measure(rounds: int = ROUNDS) -> pd.DataFrame:
    """Return a row per network, and one for the whole pipeline: XFeat on 16 frames and the head as intended."""
    tried = networks()
    times = latencies_ms(tried, rounds)
    head_ms = np.median(times["MemTSM-Net head as released"])
    rows = []
    for name, (network, x, given, passes) in tried.items():
        count, median = macs(network, x), np.median(times[name])
        rows.append({
            "network": name, "input": given, "parameters": parameters(network), "macs": count, "flops": 2 * count,
            "macs_fvcore": training.count_macs(network, x), "macs_16_frames": count * passes, "median_ms": median,
            "best_ms": times[name].min(), "times_head": median / head_ms,
        })  # fmt: skip
    head, xfeat = (next(r for r in rows if r["network"] == n) for n in ("MemTSM-Net head as intended", "XFeat, descriptor map"))
    whole = {key: head[key] + FRAMES * xfeat[key] for key in ("macs", "flops", "macs_fvcore", "median_ms", "best_ms")}
    whole |= {"network": "XFeat and head", "input": "one video, 16 frames", "macs_16_frames": whole["macs"],
              "parameters": head["parameters"] + xfeat["parameters"], "times_head": whole["median_ms"] / head_ms}  # fmt: skip
    table = pd.DataFrame([*rows, whole])
    return table.assign(threads=torch.get_num_threads(), torch=torch.__version__, weights="random", rounds=rounds)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    table = measure()
    result_tables.write_curve(presets.project() / "data" / "results" / "studies" / "efficiency.csv", table.round(4))
    print(table.drop(columns=["threads", "torch", "weights", "rounds"]).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
