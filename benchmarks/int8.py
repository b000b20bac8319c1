"""What do 8-bit weights cost LSHMA, in AUC, and save, in bytes and milliseconds? One run, one thread, by ONNX Runtime.

AUC: a stream of notebook 06's sizes learns notebook 06's drawn world from video labels and scores two hours of other cameras.
Bytes and milliseconds: XD-Violence's sizes with random weights, whose scores mean nothing.
    python benchmarks/int8.py
"""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import timing
import torch

from vau_lib.detectors import exports, lshma, lshma_state, preprocessing, trained_detector, training
from vau_lib.evaluation import metrics, result_tables
from vau_lib.synthetic import feature_streams
from vau_lib.workspace import presets
from vau_lib.workspace.seeds import seed_everything

VIDEOS, TEST_ROWS, STREAMS = 512, 3400, (1, 64)
WORLD = {
    "width": 16,
    "directions": 2,
    "camera": 0.5,
    "noise": 0.5,
    "drift": 6.0,
    "offset": 6.0,
    "event_rows": (5, 11),
}  # notebook 06's


def learned() -> tuple[trained_detector.TrainedDetector, list[feature_streams.LongStream]]:
    """Return a stream trained on short videos of a drifting world, and long streams of it."""

    def cameras(count: int, rows: int, events: int, number: int) -> list[feature_streams.LongStream]:
        rng = np.random.default_rng([0, number])
        return feature_streams.drifting_world(count, prefix=f"{number}", rows=rows, events=events, rng=rng, **WORLD)

    short = [*cameras(VIDEOS // 2, 32, 1, 1), *cameras(VIDEOS // 2, 32, 0, 2)]
    features, labels = {s.id: s.features for s in short}, {s.id: int(s.labels.any()) for s in short}
    plan = training.TrainingPlan(16, 2e-3, 0.01, 64, curriculum_epochs=0, augment_probability=0.0)
    config = lshma_state.LSHMAConfig.ucf(width=WORLD["width"], exit_threshold=1.0)
    val, options = [*features][::8], {"steps": None, "temporal_difference": False}
    return trained_detector.train(features, labels, val, config=config, plan=plan, **options), cameras(4, TEST_ROWS, 26, 3)


def exported(trained: trained_detector.TrainedDetector, folder: Path, int8: bool) -> tuple[trained_detector.TrainedDetector, Path]:
    """Return a detector as ONNX Runtime runs it, and its folder."""
    trained_detector.save(folder / "torch", trained)
    out = folder / f"int8 {int8}"
    exports.export(folder / "torch", out, int8=int8)
    return exports.load(out), out


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    small, test = learned()
    truth, config = {s.id: s.labels for s in test}, lshma_state.LSHMAConfig.xd(exit_threshold=1.0)
    fitted = preprocessing.Preprocessing(None, False, (0.0,), (1.0,))
    large, rows, before = trained_detector.TrainedDetector(lshma.LSHMA(config).eval(), fitted, None), [], None
    for int8 in (False, True):
        scored, _ = exported(small, folder / "small", int8)
        scores = {s.id: scored.score(s.features) for s in test}
        before = before or scores
        timed, out = exported(large, folder / "large", int8)
        row = {"weights": "int8" if int8 else "float32", "synthetic_frame_auc": metrics.frame_auc(scores, truth)}
        row["largest_difference"] = max(float(np.abs(scores[name] - before[name]).max()) for name in scores)
        row["xd_megabytes"] = (out / exports.NETWORK).stat().st_size / 1e6
        for streams in STREAMS:
            clip, state = torch.randn(streams, config.window, config.width), None
            for _ in range(config.memory):
                _, state = timed.model.push(clip, state)
            table = timing.interleaved({"step": partial(timed.model.push, clip, state)}, 10, hot=True)
            row[f"xd_ms_of_{streams}"] = table["best_cpu_ms"].iloc[0]
        rows.append(row)
    table = pd.DataFrame(rows)
    print(timing.machine())
    print(table.round(4).to_string(index=False))
    result_tables.write_curve(presets.project() / "data" / "results" / "studies" / "int8.csv", table.round(5))


if __name__ == "__main__":
    seed_everything(0)
    with TemporaryDirectory() as place:
        main(Path(place))
