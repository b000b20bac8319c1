"""The published LSHMA a second time, in lists, loops and float64: its names and shapes, its test, its training, its smoothing."""

import math
from collections import OrderedDict

import numpy as np
import torch
from torch import nn

SIZES = {"xd": (8, 2, 2, 1.0), "ucf": (4, 4, 4, 0.0)}  # window, blocks, M, weight of the clip's own attention


def published_tree(kind: str, width: int = 512, seed: int = 0) -> nn.Module:
    """The names and shapes of the authors' `model.py`, and nothing of what they do."""
    window, blocks, _, _ = SIZES[kind]

    def mlp():
        return nn.Sequential(OrderedDict(c_fc=nn.Linear(width, 4 * width), c_proj=nn.Linear(4 * width, width)))

    def squeeze():
        return nn.Conv1d(window, window, 3, stride=2, padding=1, bias=False)

    def block():
        inner, outer = nn.Module(), nn.Module()
        inner.ln_1, inner.mlp, inner.ln_2 = nn.LayerNorm(width), mlp(), nn.LayerNorm(width)
        inner.proj, inner.attenproj = nn.Linear(width, width), nn.Linear(width // 2, width)
        inner.compress_k, inner.compress_cur = squeeze(), squeeze()
        outer.resblock = inner
        return outer

    torch.manual_seed(seed)
    tree = nn.Module()
    tree.blocks = nn.ModuleList(block() for _ in range(blocks))
    tree.linear, tree.mlp2, tree.classifier = nn.Linear(width, width), mlp(), nn.Linear(width, 1)
    tree.frame_position_embeddings = nn.Embedding(window, width)
    with torch.no_grad():  # louder than initialised: memory, depth and exits then matter to the scores
        for b in tree.blocks:
            b.resblock.attenproj.weight.mul_(3)
            b.resblock.ln_1.weight.add_(0.2 * torch.randn(width))
            b.resblock.ln_1.bias.add_(0.2 * torch.randn(width))
        tree.classifier.weight.mul_(6)
    return tree


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class Reference:
    """The published model in lists and loops, nothing shared with the library; one object is one process."""

    def __init__(self, kind: str, weights: dict[str, torch.Tensor], dtype=np.float64):
        self.n, self.blocks, self.kept, self.p = SIZES[kind]
        self.weights = {name: value.numpy().astype(dtype) for name, value in weights.items()}
        self.memories = [[] for _ in range(self.blocks)]

    def linear(self, name, x):
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name, x):
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def mlp(self, name, x):
        hidden = self.linear(f"{name}.c_fc", x)
        return self.linear(f"{name}.c_proj", hidden * sigmoid(1.702 * hidden))

    def squeeze(self, name, x):
        kernel, padded = self.weights[f"{name}.weight"], np.pad(x, ((0, 0), (1, 1)))
        places = range(0, x.shape[1], 2)
        return np.stack([np.einsum("oik,ik->o", kernel, padded[:, p : p + 3]) for p in places], axis=1)

    @staticmethod
    def attend(q, k):
        likeness = q @ k.T / math.sqrt(q.shape[1])
        share = np.exp(likeness - likeness.max(1, keepdims=True))
        out = share / share.sum(1, keepdims=True) @ k + q
        return out.T.reshape(out.shape)  # read back in the wrong order

    def block(self, level, x):
        name, memory, width = f"blocks.{level}.resblock", self.memories[level], x.shape[1]
        x = self.norm(f"{name}.ln_1", x)
        memory[:] = [self.squeeze(f"{name}.compress_k", m) if m.shape[1] == width else m for m in memory]
        if memory:
            q = self.squeeze(f"{name}.compress_k", x)
            seen = self.attend(q, np.concatenate([*memory, self.squeeze(f"{name}.compress_cur", x)]))
            seen = self.linear(f"{name}.attenproj", seen + self.p * self.attend(q, q))
        else:
            seen = self.attend(x, x) + self.p * self.attend(x, x)
        memory.append(x)
        if len(memory) == self.kept:
            salience = [sigmoid(m.mean()) for m in memory]
            retention = [math.exp(-i / (len(memory) - 1) / s) for i, s in enumerate(salience)]
            memory.pop(int(np.argmin(retention)))
        x = x + seen
        return x + self.mlp(f"{name}.mlp", self.norm(f"{name}.ln_2", x))

    def head(self, y):
        return self.linear("classifier", y + self.mlp("mlp2", y))[:, 0]

    def clips(self, rows):
        padded = np.pad(rows, ((0, -len(rows) % self.n), (0, 0)))  # whole video, zeros at the end
        return np.split(padded, len(padded) // self.n)

    def test(self, rows, threshold):
        """Return logits (T,) and how many clips left early."""
        self.memories, found, exits = [[] for _ in range(self.blocks)], [], 0
        for clip in self.clips(rows):
            x = clip + self.weights["frame_position_embeddings.weight"]
            for level in range(self.blocks):
                x = self.block(level, x)
                logits = self.head(self.linear("linear", x))
                if sigmoid(logits).max() > threshold and level + 1 < self.blocks:
                    exits += 1
                    for deeper in self.memories[level + 1 :]:
                        deeper.clear()
                    break
            found.append(logits)
        return np.concatenate(found)[: len(rows)], exits

    def train(self, rows):
        """Return what the training scripts' model says, one (N,) per clip that was kept, and which were (C,)."""
        self.memories, found, alike, kept = [[] for _ in range(self.blocks)], [], [], []
        for number, clip in enumerate(self.clips(rows)):
            halves = clip.reshape(2, self.n // 2, -1, 8)  # 8 channels at a time
            size = np.linalg.norm(halves, axis=-1)
            cosine = (halves[0] * halves[1]).sum(-1) / np.maximum(size[0] * size[1], 1e-8)
            alike.append(((cosine + 1) / 2).mean(0).min())
            jitter = np.std(np.diff(alike[-3:])) if number > 3 else 0.0
            kept.append(number <= 3 or bool(jitter != 0 and abs(alike[-1] - alike[-2]) > jitter))
            if kept[-1]:
                scales = [clip + self.weights["frame_position_embeddings.weight"]]
                for level in range(self.blocks):
                    scales.append(self.block(level, scales[-1]))
                found.append(self.head(np.max([self.linear("linear", x) for x in scales], axis=0)))
        return found, kept


def smooth(logits: np.ndarray, kind: str, size: int) -> np.ndarray:
    """fixed_smooth or slide_smooth of the scripts' tools, by their loops: both pad with zeros and divide by `size`."""
    padded = [*logits, *[0.0] * size]
    starts = [i if kind == "ucf" else i // size * size for i in range(len(logits))]
    return np.array([sum(padded[start : start + size]) / size for start in starts])
