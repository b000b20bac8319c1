"""Seconds of several ways to do the same, taken in turn, so that a busy moment of the machine meets all of them."""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from vau_lib.detectors import exports, preprocessing, trained_detector
from vau_lib.features import runtimes


def interleaved(ways: Mapping[str, Callable[[], object]], rounds: int = 20, warm_up: int = 2, hot: bool = False) -> pd.DataFrame:
    """Return a row per way: median and best milliseconds by the wall, and the best CPU milliseconds of this process.

    Where others use the machine, CPU time is what the way itself costs; it counts all threads of the process. With `hot` each timed
    call follows one that is not: the way before has filled the caches.
    """
    wall, cpu = ({name: [] for name in ways} for _ in range(2))
    for turn in range(rounds + warm_up):
        for name, work in ways.items():
            work() if hot or turn < warm_up else None
            begun, used = time.perf_counter(), time.process_time()
            work()
            if turn >= warm_up:
                wall[name].append(time.perf_counter() - begun)
                cpu[name].append(time.process_time() - used)
    rows = [
        {"way": n, "median_ms": 1e3 * np.median(wall[n]), "best_ms": 1e3 * min(wall[n]), "best_cpu_ms": 1e3 * min(cpu[n])}
        for n in ways
    ]
    return pd.DataFrame(rows)


def peak_gflops(dtype: torch.dtype, side: int = 1024) -> float:
    """Return what a square matrix product reaches on one thread, best of some, by CPU time."""
    a = torch.randn(side, side).to(dtype)
    best = interleaved({"product": lambda: a @ a}, 8)["best_cpu_ms"].iloc[0]
    return 2 * side**3 / best / 1e6


def machine() -> str:
    """Return how many processors there are and how many tasks wanted them in the last minute."""
    return f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}"


def sessions(model: object, path: Path, *, steps: int | None = None) -> dict[str, runtimes.Session]:
    """Return {runtime: a detector's network, exported to `path`}, of the runtimes that are installed; `steps` as in training."""
    fitted = preprocessing.Preprocessing(steps, False, (0.0,), (1.0,))
    made = exports.graph(trained_detector.TrainedDetector(model, fitted, None))
    try:
        found = runtimes.write_onnx(made.module, made.example, made.outputs, path, free=made.free)
    except ValueError as error:
        print(error)
        return {}
    return {name: runtimes.Session(path, name) for name in found}
