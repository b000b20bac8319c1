"""Do the detectors train, score and stream on this device, and how fast? One call, under five minutes; a table to stdout.

Random weights and features of the published sizes: the numbers are times, not quality.
    python benchmarks/gpu.py [--device cuda|cpu]
"""

import argparse
import platform
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from vau_lib.detectors import anomaly_scorer, lshma, lshma_state, memtsm, preprocessing, trained_detector, training
from vau_lib.features import xfeat

UPDATES = 5
MODELS = {  # name: (model, feature width, videos a step, snippets of a video, steps or None for whole videos)
    "MemTSM-Net": (lambda: memtsm.MemTSM(), 128, 16, 200, 32),
    "LSHMA xd": (lambda: lshma.LSHMA(lshma_state.LSHMAConfig.xd()), 512, 16, 200, None),
    "LSHMA ucf": (lambda: lshma.LSHMA(lshma_state.LSHMAConfig.ucf()), 512, 16, 200, None),
    "LSHMA ucf, released, one video": (lambda: lshma.LSHMA(lshma_state.LSHMAConfig.ucf(released=True)), 512, 1, 1000, None),
    "anomaly scorer": (lambda: anomaly_scorer.AnomalyScorer(), 1024, 16, 200, 200),
}


def main(device: str) -> None:
    here = f"{platform.processor() or 'CPU'}, {torch.get_num_threads()} threads, a dry run of small sizes"
    card = torch.cuda.get_device_name() if device == "cuda" else here
    rows = [measure(name, *sizes, device) for name, sizes in MODELS.items()]
    encoder = xfeat.XFeatEncoder("random")
    encoder.net.to(device)
    frames = np.random.default_rng(0).integers(0, 255, (32, 240, 320, 3), dtype=np.uint8)
    seconds = timed(lambda: encoder(frames), device)
    print(f"{card}; XFeat (random weights) {len(frames) / seconds:,.0f} frames/s with resizing")
    print(pd.DataFrame(rows).round(3).to_string(index=False))


def measure(name: str, make: Callable, width: int, videos: int, snippets: int, steps: int | None, device: str) -> dict:
    """Return a model's updates per second, snippets per second when scored, and whether its scores are those of the CPU."""
    if device == "cpu":
        videos, snippets = max(1, videos // 4), snippets // 10
    rng = np.random.default_rng(0)
    features = {f"v{k}": rng.normal(size=(snippets, width)).astype(np.float32) for k in range(videos)}
    dense = name == "anomaly scorer"
    targets = {f"v{k}": np.full(snippets, k % 2) if dense else k % 2 for k in range(videos)}
    fitted = preprocessing.Preprocessing.fit(features, steps=steps, temporal_difference=False)
    sequences = preprocessing.Sequences(features, targets, fitted)
    model = make()
    network, objective = model.for_training(sequences.labels)
    network.to(device).train()
    items = [sequences[k] for k in range(videos)]
    batch = torch.utils.data.default_collate(items) if steps else preprocessing.pad_collate(items)
    batch = {key: value.to(device) for key, value in batch.items()}
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-5)
    generator = torch.Generator(device).manual_seed(0)

    def update() -> None:
        x = training.augment(batch["x"], generator=generator)
        output = network(x, batch["lengths"]) if "lengths" in batch else network(x)
        optimiser.zero_grad()
        objective(output, batch["x"], batch["labels"]).backward()
        optimiser.step()

    each_s = timed(update, device, calls=UPDATES)
    detector = trained_detector.TrainedDetector(model.eval(), fitted, pd.DataFrame())
    score_s = timed(lambda: detector.score(features["v0"]), device)
    there = detector.score(features["v0"])
    model.cpu()
    apart = float(np.abs(there - detector.score(features["v0"])).max())
    return {
        "model": name, "videos a step": videos, "snippets": snippets, "updates/s": 1 / each_s,
        "trained snippets/s": videos * snippets / each_s, "scored snippets/s": snippets / score_s, "largest gap to the CPU": apart,
    }  # fmt: skip


def timed(work: Callable[[], object], device: str, calls: int = 3) -> float:
    """Return the best seconds of a call, after one that is not counted."""
    best = float("inf")
    for call in range(calls + 1):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start) if call else best
    return best


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cuda", "cpu"))
    main(parser.parse_args().device)
