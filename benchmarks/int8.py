"""What do 8-bit weights cost LSHMA, in AUC and milliseconds? One run, one thread, by ONNX Runtime.

A stream is trained on drawn feature streams (`feature_streams.drifting_world`, video labels only), exported in float32 and with
`int8`, and both score the same test streams.
    python benchmarks/int8.py
"""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import timing
import torch

from vau_lib.detectors import exports, lshma_state, trained_detector, training
from vau_lib.evaluation import metrics, result_tables
from vau_lib.synthetic import feature_streams
from vau_lib.workspace import presets
from vau_lib.workspace.seeds import seed_everything

WIDTH, VIDEOS, ROWS, TEST_ROWS, STREAMS = 512, 256, 60, 2000, (1, 64)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rng, sizes = np.random.default_rng(0), {"width": WIDTH, "directions": 4}
    normal = feature_streams.drifting_world(VIDEOS // 2, prefix="normal", rows=ROWS, events=0, rng=rng, **sizes)
    anomalous = feature_streams.drifting_world(VIDEOS // 2, prefix="event", rows=ROWS, events=1, rng=rng, **sizes)
    features = {stream.id: stream.features for stream in normal + anomalous}
    labels = {stream.id: int(stream.labels.any()) for stream in normal + anomalous}
    val = [name for place, name in enumerate(features) if place % 8 == 0]
    plan = training.TrainingPlan(12, 1e-3, 0.01, 32, curriculum_epochs=0, augment_probability=0.0)
    config = lshma_state.LSHMAConfig.xd(width=WIDTH, exit_threshold=1.0)
    trained = trained_detector.train(features, labels, val, config=config, plan=plan, steps=None, temporal_difference=False)
    test = feature_streams.drifting_world(4, prefix="test", rows=TEST_ROWS, events=20, rng=rng, **sizes)
    truth, rows = {stream.id: stream.labels for stream in test}, []
    trained_detector.save(folder / "torch", trained)
    for int8 in (False, True):
        out = folder / f"int8 {int8}"
        apart = exports.export(folder / "torch", out, int8=int8)["onnx"]
        found = exports.load(out)
        auc = metrics.frame_auc({stream.id: found.score(stream.features) for stream in test}, truth)
        row = {"weights": "int8" if int8 else "float32", "megabytes": (out / exports.NETWORK).stat().st_size / 1e6}
        row |= {"synthetic_frame_auc": auc, "largest_difference": apart}
        for streams in STREAMS:
            clip, state = torch.randn(streams, config.window, WIDTH), None
            for _ in range(config.memory):
                _, state = found.model.push(clip, state)
            table = timing.interleaved({"step": partial(found.model.push, clip, state)}, 10, hot=True)
            row[f"ms_of_{streams}"] = table["best_cpu_ms"].iloc[0]
        rows.append(row)
    table = pd.DataFrame(rows)
    print(timing.machine())
    print(table.round(4).to_string(index=False))
    result_tables.write_curve(presets.project() / "data" / "results" / "studies" / "int8.csv", table.round(5))


if __name__ == "__main__":
    seed_everything(0)
    with TemporaryDirectory() as place:
        main(Path(place))
