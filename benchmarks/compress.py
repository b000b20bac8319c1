"""What do pruning and factorising half of a model save? Parameters, bytes on disk, latency: ratios within one run.

The model is an MLP of random weights on random data: sizes and times are real, accuracy is not asked.
    python benchmarks/compress.py
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vau_lib import compress

ROUNDS = 50


def latency_ms(model: nn.Module, x: torch.Tensor) -> float:
    """Return the median milliseconds of a pass after a warm-up."""
    taken = []
    with torch.inference_mode():
        for _ in range(ROUNDS + 5):
            start = time.perf_counter()
            model(x)
            taken.append(1000 * (time.perf_counter() - start))
    return float(np.median(taken[5:]))


def bytes_on_disk(model: nn.Module) -> int:
    with tempfile.TemporaryDirectory() as folder:
        compress.save(model, folder)
        return sum(file.stat().st_size for file in Path(folder).iterdir())


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    parts = [(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256)) for _ in range(4)]
    model = nn.Sequential(*[layer for block in parts for layer in block]).eval()
    data = list(torch.randn(4, 128, 256))
    small = {
        "pruned 50 %": compress.prune(model, 0.5, data),
        "factorised 50 %": compress.factorise(model, 0.5, data),
        "both, 70 % each": compress.factorise(compress.prune(model, 0.3, data), 0.7, data),
    }
    whole = bytes_on_disk(model), latency_ms(model, data[0])
    for name, one in small.items():
        disk, slow = bytes_on_disk(one) / whole[0], latency_ms(one, data[0]) / whole[1]
        found = compress.report(model, one)
        print(
            f"{name:16} parameters x{found['parameters']:.3f}  disk x{disk:.3f}  latency x{slow:.3f}  (random weights)"
        )


if __name__ == "__main__":
    main()
