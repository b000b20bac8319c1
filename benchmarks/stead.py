"""STEAD (arXiv 2503.07942) as its authors publish it, built here to be timed: X3D features of a video to a score.

Built from the facts of github.com/agao8/STEAD (MIT: model.py, utils.py, main.py) and of performer-pytorch (attention by random
features); no code is copied, and the parameter count, 17,441 of STEAD-Fast and 1,634,049 of STEAD-Base, is checked.
- one video is (192, T, 10, 10): X3D-L's map, the maximum over its clips
- a convolution block: two residual branches behind layer norms, a grouped 3 x 3 over space and a grouped 3 over time, each
  behind a batch norm, then a feed-forward layer; an attention block: half the heads attend within windows, half by FAVOR+
- as published, the convolutions reinterpret memory that lies channels-last (`view`, not a permutation): same cost, kept
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS, LOCAL_HEADS, INPUT = 16, 8, (192, 16, 10, 10)
PARAMETERS = {"fast": 17_441, "base": 1_634_049}


class Decoupled(nn.Module):
    """Space, then time, in 16 groups: x (B, T, H, W, C)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm2d, self.norm1d = nn.BatchNorm2d(width), nn.BatchNorm1d(width)
        self.conv2d = nn.Conv2d(width, width, 3, padding=1, groups=HEADS)
        self.conv1d = nn.Conv1d(width, width, 3, padding=1, groups=HEADS)

    def forward(self, x: Tensor) -> Tensor:
        b, t, h, w, c = x.shape
        x = self.conv2d(self.norm2d(x.reshape(b * t, c, h, w)))
        return self.conv1d(self.norm1d(x.reshape(b * h * w, c, t))).reshape(b, t, h, w, c)


class ConvBlock(nn.Module):
    """Both convolutions, then a feed-forward layer that ends with a GELU."""

    def __init__(self, width: int, ratio: int):
        super().__init__()
        self.norm1, self.norm2, self.conv = nn.LayerNorm(width), nn.LayerNorm(width), Decoupled(width)
        self.ff = nn.Sequential(nn.Linear(width, width * ratio), nn.GELU(), nn.Linear(width * ratio, width), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.conv(self.norm1(x))
        return x + self.ff(self.norm2(x))


class Performer(nn.Module):
    """Attention over all N places: 8 heads within windows of `width // 8` and their neighbours, 8 by positive random features."""

    def __init__(self, width: int, ratio: int):
        super().__init__()
        self.size, self.window = width // HEADS, width // 8
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.ff = nn.Sequential(nn.Linear(width, width * ratio), nn.GELU(), nn.Linear(width * ratio, width))
        features = max(1, int(self.size * math.log(self.size)))
        self.register_buffer("projection", torch.randn(features, self.size))

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        x = x.flatten(1, -2)  # (B, N, C)
        y = self.norm1(x)
        q, k, v = (part(y).unflatten(-1, (HEADS, self.size)).transpose(1, 2) for part in (self.q, self.k, self.v))
        n = HEADS - LOCAL_HEADS
        found = torch.cat([self._random(q[:, :n], k[:, :n], v[:, :n]), self._local(q[:, n:], k[:, n:], v[:, n:])], dim=1)
        x = x + self.out(found.transpose(1, 2).flatten(2))
        return (x + self.ff(self.norm2(x))).view(shape)

    def _kernel(self, x: Tensor, query: bool) -> Tensor:
        x = x * self.size**-0.25
        shown, half = x @ self.projection.T, x.square().sum(-1, keepdim=True) / 2
        most = shown.amax(-1, keepdim=True) if query else shown.amax((-1, -2), keepdim=True)
        return (len(self.projection) ** -0.5) * ((shown - half - most).exp() + 1e-4)

    def _random(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = self._kernel(q, True), self._kernel(k, False)
        total = (q @ k.sum(-2, keepdim=True).mT).clamp(min=1e-8)
        return q @ (k.mT @ v) / total

    def _local(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        count, w = q.shape[-2], self.window
        q, k, v = (F.pad(part, (0, 0, 0, -count % w)) for part in (q, k, v))
        blocks = q.unflatten(-2, (-1, w))
        k, v = (F.pad(part, (0, 0, w, w)).unfold(-2, 3 * w, w) for part in (k, v))  # (B, h, N / w, d, 3 w)
        weight = (blocks @ k * self.size**-0.5).softmax(-1)
        return (weight @ v.mT).flatten(-3, -2)[..., :count, :]


class STEAD(nn.Module):
    """x (B, 192, T, 10, 10) -> a video's logit (B, 1). `kind` is fast or base."""

    def __init__(self, kind: str = "fast"):
        super().__init__()
        dims, depths, ratio = ((32, 32), (1, 1), 1) if kind == "fast" else ((192, 128), (3, 3), 4)
        self.norm0, self.linear = nn.LayerNorm(192), nn.Linear(192, dims[0])  # without use where 192 is the width
        self.narrow = dims[0] != 192
        between = nn.Sequential(nn.LayerNorm(dims[0]), nn.Linear(*dims))
        convolutions = [ConvBlock(dims[0], ratio) for _ in range(depths[0])]
        self.stages = nn.Sequential(*convolutions, between, *(Performer(dims[1], ratio) for _ in range(depths[1])))
        self.norm, self.fc = nn.LayerNorm(dims[1]), nn.Linear(dims[1], 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 4, 1)
        x = self.stages(self.linear(self.norm0(x)) if self.narrow else x)
        return self.fc(self.norm(x.amax((1, 2, 3))))


def built(kind: str = "fast") -> STEAD:
    """Return the network in eval mode, random weights; ValueError where its parameters are not as many as published."""
    model = STEAD(kind).eval()
    count = sum(p.numel() for p in model.parameters())
    if count != PARAMETERS[kind]:
        raise ValueError(f"STEAD-{kind} should have {PARAMETERS[kind]:,} parameters, this has {count:,}")
    return model
