"""Pruning and factorisation: size, latency, and accuracy before and after distillation.

Sizes and times: an MLP of random weights on random data, ratios within one run. Accuracy: a small classifier trained here on
scikit-learn's 1,797 real digits, measured on the last 500.
    python benchmarks/compress.py
"""

import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from vau_lib.compression import distillation, pruning

ROUNDS = 50


def latency_ms(model: nn.Module, x: torch.Tensor) -> float:
    """Return the median milliseconds of a pass after a warm-up."""
    milliseconds = []
    with torch.inference_mode():
        for _ in range(ROUNDS + 5):
            start = time.perf_counter()
            model(x)
            milliseconds.append(1000 * (time.perf_counter() - start))
    return float(np.median(milliseconds[5:]))


def bytes_on_disk(model: nn.Module) -> int:
    with tempfile.TemporaryDirectory() as folder:
        pruning.save(model, folder)
        return sum(file.stat().st_size for file in Path(folder).iterdir())


def digits() -> tuple[nn.Module, list, Callable]:
    """Return a trained classifier, its training batches, and a function from a model to its accuracy on the last 500."""
    data = load_digits()
    x, y = torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(200):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[:1297]), y[:1297]).backward()
        optimiser.step()

    def accuracy(model: nn.Module) -> float:
        return (model(x[1297:]).argmax(1) == y[1297:]).float().mean().item()

    return model.eval(), list(x[:1297].split(64)), accuracy


def frontier() -> None:
    """Print accuracy over parameters of each method alone and together, before and after five epochs of distillation."""
    model, batches, accuracy = digits()
    print(f"digits, whole: accuracy {accuracy(model):.3f}")
    for strength in (0.2, 0.4, 0.6, 0.8):
        smaller = {
            f"prune {strength}": pruning.prune(model, strength, batches),
            f"factorise {1 - strength:.1f}": pruning.factorise(model, 1 - strength, batches),
            f"both {strength / 2:.1f}": pruning.factorise(pruning.prune(model, strength / 2, batches), 1 - strength / 2, batches),
        }
        for name, student in smaller.items():
            size, before = pruning.report(model, student)["parameters"], accuracy(student)
            adapted = copy.deepcopy(student)
            distillation.distil(student, model, batches, epochs=5)
            distillation.distil(adapted, model, batches, epochs=5, lora_rank=4)
            after = f"distilled {accuracy(student):.3f}  by LoRA {accuracy(adapted):.3f}"
            print(f"{name:14} x{size:.3f}  pruned {before:.3f}  {after}")


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    parts = [(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256)) for _ in range(4)]
    model = nn.Sequential(*[layer for block in parts for layer in block]).eval()
    data = list(torch.randn(4, 128, 256))
    small = {
        "pruned 50 %": pruning.prune(model, 0.5, data),
        "factorised 50 %": pruning.factorise(model, 0.5, data),
        "both, 70 % each": pruning.factorise(pruning.prune(model, 0.3, data), 0.7, data),
    }
    whole = bytes_on_disk(model), latency_ms(model, data[0])
    for name, student in small.items():
        disk, slow = bytes_on_disk(student) / whole[0], latency_ms(student, data[0]) / whole[1]
        size = pruning.report(model, student)["parameters"]
        print(f"{name:16} parameters x{size:.3f}  disk x{disk:.3f}  latency x{slow:.3f}  (random weights)")
    frontier()


if __name__ == "__main__":
    main()
