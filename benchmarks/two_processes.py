"""What is the machine's own limit of two processes? Work of several kinds, by one process and by two that share nothing else.

The efficiency of extraction's two workers cannot be more: caches, memory, clock and the hypervisor are shared by everything.
    python benchmarks/two_processes.py [video]      real weights: set VAU_WEIGHTS (or VAU_REAL_DATA)
"""

import time
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import extraction
import pandas as pd
import timing
import torch

from vau_lib.evaluation import result_tables
from vau_lib.features import xfeat
from vau_lib.workspace import presets

SECONDS = 6.0  # of each count


def work(kind: str, path: Path):
    """Return a function that does a small piece of the work."""
    name, _, how = kind.partition(", ")
    if name == "matrix product":
        a = torch.randn(1024, 1024).to(getattr(torch, how))
        return lambda: a @ a
    if name == "codec":
        return lambda: extraction.codec_only(path)
    options = {"runtime": "ncnn"} if "ncnn" in how else {}
    encoder = xfeat.XFeatEncoder(extraction.weights(), device="cpu", **options)
    if name == "features of a video":
        return lambda: list(encoder.encode(path, extraction.SNIPPET))
    frames = 255 * torch.rand(extraction.SNIPPET, extraction.SIDE, extraction.SIDE)
    return lambda: encoder.dense(frames)


def repeat(kind: str, path: Path, barrier, rates) -> None:
    """Do the work for `SECONDS` once all are ready, and say how often a second it was done."""
    torch.set_num_threads(1)
    piece, done = work(kind, path), 0
    piece()
    barrier.wait()
    started = time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        piece()
        done += 1
    rates.put(done / (time.perf_counter() - started))


def rate(kind: str, path: Path, count: int) -> float:
    """Return how often a second `count` processes do the work together."""
    context = get_context("spawn")
    barrier, rates = context.Barrier(count), context.Queue()
    running = [context.Process(target=repeat, args=(kind, path, barrier, rates)) for _ in range(count)]
    for process in running:
        process.start()
    total = sum(rates.get() for _ in running)
    for process in running:
        process.join()
    return total


def main() -> None:
    kinds = ["matrix product, float32", "codec", "XFeat's network, torch bfloat16"]
    kinds += ["XFeat's network, ncnn float32", "features of a video, ncnn float32"] if find_spec("ncnn") else []
    rows = []
    with TemporaryDirectory() as folder:
        path = extraction.videos(Path(folder), extraction.SHORT)[0]
        for kind in kinds:
            one, two = (rate(kind, path, count) for count in (1, 2))
            rows.append({"work": kind, "one_per_s": one, "two_per_s": two, "efficiency": two / one / 2, "load": timing.machine()})
            print(f"{kind}: two processes do {two / one / 2:.3f} of twice one's work; {timing.machine()}", flush=True)
    result_tables.write_curve(presets.project() / "data" / "results" / "studies" / "two_processes.csv", pd.DataFrame(rows).round(4))


if __name__ == "__main__":
    main()
