"""Does what is learned on an easy synthetic world hold on a harder one? Train on each difficulty, test on all three.

- easy and medium worlds are seen from near, hard ones from far (`synthetic.dataset`); each has its own seed, all are drawn here
- MemTSM-Net as in the demo (local change of XFeat, loss on segments, three seeds), logistic regression on the same features,
  shuffled labels, a constant; validation videos of the world one learns on choose the epoch
- test videos are scored once; AUCs are of 80 videos a world, intervals are from resampling them
    python benchmarks/difficulty.py [VIDEOS]
"""

import sys

import numpy as np
import pandas as pd
import torch

from vau_lib.data import records
from vau_lib.detectors import baselines, memtsm, trained_detector, training
from vau_lib.evaluation import result_tables
from vau_lib.features import extraction
from vau_lib.synthetic import dataset
from vau_lib.workspace import presets

WORLDS, SNIPPET, SEEDS = {"easy": 301, "medium": 302, "hard": 303}, 5, (0, 1, 2)  # difficulty: seed of its world
SETTINGS = {"seed": 0, "resamples": 1000}


def world(difficulty: str, seed: int, count: int) -> tuple[list[records.VideoRecord], dict[str, np.ndarray]]:
    """Return the records of one drawn world and its features {id: (T, 384)}, local change of XFeat."""
    root = presets.project() / "data" / "synthetic" / f"difficulty_{difficulty}"
    options = {"seed": seed, "duration_s": 6.0, "difficulty": difficulty, "engine": "processes"}
    found = dataset.make_dataset(root, num_videos=count, **options)
    place = presets.project() / "data" / "features" / "difficulty" / difficulty
    recipe = extraction.Recipe("xfeat", SNIPPET, (("weights", ""), ("pooling", "local_change")))
    extraction.extract(found, root, place, recipe, engine="processes", workers=2)
    return found, extraction.load(place, found)


def learned(found: list, features: dict, test: dict[str, np.ndarray]) -> list[result_tables.Method]:
    """Return what was learned on one world, scoring the videos of `test` {id: (T, D)}."""
    labels = {r.id: r.label for r in found if r.split != "test"}
    val = {r.id for r in found if r.split == "val"}
    known, lengths = {name: features[name] for name in labels}, {name: len(x) for name, x in test.items()}
    line = baselines.logistic_on_difference(known, labels, test, temporal_difference=False)
    out = [result_tables.per_video("logistic regression on local change of XFeat features", "baseline", line, lengths)]
    for name, kind in (("MemTSM as intended, on local change", "ours"), ("the same, shuffled labels", "sanity")):
        runs = []
        for seed in SEEDS:
            shuffled = np.random.default_rng(seed).permutation(list(labels.values())).tolist()
            targets = labels if kind == "ours" else dict(zip(labels, shuffled, strict=True))
            config = memtsm.MemTSMConfig(in_channels=next(iter(test.values())).shape[1], segment_weight=2.0)
            plan = training.TrainingPlan(epochs=30, learning_rate=1e-3, seed=seed)
            model = trained_detector.train(known, targets, val, config=config, plan=plan, temporal_difference=False)
            runs.append({n: model.score_video(x) for n, x in test.items()})
        out.append(result_tables.Method(name, kind, runs))
    return [*out, result_tables.per_video("a constant", "sanity", dict.fromkeys(test, 0.0), lengths)]


def main() -> None:
    torch.set_num_threads(1)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    worlds = {name: world(name, seed, count) for name, seed in WORLDS.items()}
    every = {r.id: x[r.id] for found, x in worlds.values() for r in found if r.split == "test"}
    table = []
    for home, (found, features) in worlds.items():
        methods = learned(found, features, every)
        for away, (others, _) in worlds.items():
            test = {r.id: r for r in others if r.split == "test"}
            truth = {name: records.frame_labels(r) for name, r in test.items()}
            for method in methods:
                part = result_tables.Method(method.name, method.kind, [{n: run[n] for n in test} for run in method.runs])
                video = result_tables.video_row(part, {n: r.label for n, r in test.items()}, dict.fromkeys(test, 0), **SETTINGS)
                frame = result_tables.frame_row(part, truth, SNIPPET, **SETTINGS)
                place = {"learned_on": home, "tested_on": away, "test_videos": len(test)}
                table.append(place | video | {"level": "video", "frame_auc": frame["frame_auc"]})
    table = pd.DataFrame(table)
    result_tables.write_curve(presets.project() / "data" / "results" / "studies" / "difficulty.csv", table.round(4))
    columns = ["method", "learned_on", "tested_on", "video_auc", "video_auc_std", "low", "high", "frame_auc"]
    print(table[columns].round(3).to_string(index=False))


if __name__ == "__main__":
    main()
