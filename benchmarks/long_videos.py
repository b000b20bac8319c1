"""What are MemTSM-Net's row scores worth when a video is longer than those it was trained on? One model per world, frame AUC.

Synthetic feature streams with known events, no real video: "weak, long" events say little in a row and last 96 to 160 rows,
"strong, short" ones say much and last 8 to 60. Training videos have 360 to 600 rows and a label each, brought to 32 steps.
    python benchmarks/long_videos.py
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from vau_lib.detectors import memtsm, preprocessing, trained_detector, training
from vau_lib.evaluation import metrics, result_tables
from vau_lib.workspace import presets

WIDTH = 64
WORLDS = {"weak, long events": (0.5, (96, 160)), "strong, short events": (3.0, (8, 60))}  # rise in std of a row, rows
LENGTHS = (32, 64, 128, 480, 1000, 4000)  # rows of a test stream
Stream = tuple[np.ndarray, np.ndarray]  # features (T, D), labels (T,)


def stream(rows: int, rng: np.random.Generator, world: str, *, events: bool = True) -> Stream:
    """Return white noise of unit std around a camera's own mean; an event, one in 240 rows, raises it along one direction."""
    rise, (shortest, longest) = WORLDS[world]
    direction = np.linalg.qr(np.random.default_rng(0).standard_normal((WIDTH, 4)))[0].sum(1) / 2  # of length 1
    labels = np.zeros(rows, np.uint8)
    part = rows // max(1, rows // 240)
    for begin in range(0, rows - part + 1, part) if events else ():
        most = min(longest, part // 3)
        length = int(rng.integers(min(shortest, most), most + 1))
        start = begin + int(rng.integers(0, part - length))
        labels[start : start + length] = 1
    x = 0.1 * rng.standard_normal(WIDTH) + rng.standard_normal((rows, WIDTH)) + rise * np.outer(labels, direction)
    return x.astype(np.float32), labels


def trained(world: str, *, videos: int = 120, epochs: int = 20, config: memtsm.MemTSMConfig | None = None):
    """Return MemTSM-Net as intended, trained on videos of 360 to 600 rows, half of them with events."""
    rng = np.random.default_rng(1)
    made = [stream(int(rng.integers(360, 600)), rng, world, events=n % 2 == 1)[0] for n in range(videos)]
    features = {f"v{n:03d}": x for n, x in enumerate(made)}
    labels = {name: n % 2 for n, name in enumerate(features)}
    return trained_detector.train(
        features, labels, list(features)[-videos // 4 :], config=config or memtsm.MemTSMConfig(in_channels=WIDTH),
        plan=training.TrainingPlan(epochs=epochs, learning_rate=1e-3), temporal_difference=False,
    )  # fmt: skip


def ways(model: trained_detector.TrainedDetector) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return {name: features (T, D) -> row scores (T,)}: before and now, and what else was tried."""
    fitted = model.preprocessing
    whole_length = replace(model, preprocessing=replace(fitted, window=2 * fitted.window))
    native = replace(model, preprocessing=replace(fitted, window=fitted.steps))

    def network(x: np.ndarray, steps: int | None) -> np.ndarray:
        with torch.inference_mode():
            return model.model(fitted(x, steps)[None]).segment_logit.sigmoid()[0].numpy()

    return {
        "rows at full length": lambda x: network(x, None),
        "whole video in 32 steps": lambda x: network(x, 32)[preprocessing.step_of_row(len(x), 32)],
        "windows of 32 rows": native.score,
        "windows of a training video": whole_length.score,
        "windows of half a training video (default)": model.score,
        "the same, causal": lambda x: model.score_video(x, causal=True)[1],
    }


def measure(world: str, model: trained_detector.TrainedDetector, *, lengths=LENGTHS, total_rows: int = 12000) -> pd.DataFrame:
    """Return a row per way and length: frame AUC over as many streams as give `total_rows` rows, 3 to 24."""
    rows = []
    for length in lengths:
        count = min(24, max(3, total_rows // length))
        made = [stream(length, np.random.default_rng([7, length, n]), world) for n in range(count)]
        truth = {str(n): labels for n, (_, labels) in enumerate(made)}
        for name, score in ways(model).items():
            scores = {str(n): score(x) for n, (x, _) in enumerate(made)}
            rows.append({"world": world, "scored by": name, "rows": length, "streams": count,
                         "frame_auc": metrics.frame_auc(scores, truth)})  # fmt: skip
    return pd.DataFrame(rows)


def main() -> None:
    torch.set_num_threads(1)
    table = pd.concat([measure(world, trained(world)) for world in WORLDS], ignore_index=True)
    place = presets.project() / "data" / "results" / "studies" / "memtsm_long_videos.csv"
    result_tables.write_curve(place, table.round(4))
    print(table.pivot(index=["world", "scored by"], columns="rows", values="frame_auc").round(3).to_string())


if __name__ == "__main__":
    main()
