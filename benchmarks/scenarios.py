"""Checks of 200 synthetic scenarios: rendering time, coverage of factor pairs, AUC of nuisances and of true motion.

- nuisances (brightness, file size, length, motion) must not separate the classes
- a random forest on how the true boxes move is an oracle: it shows that the events can be seen at all
- SYNTHETIC, 192 x 144, 10 frames a second, about 6 s each; anomalies and everyday counterparts in turn, a world for each pair

    python benchmarks/scenarios.py [NUMBER]
"""

import resource
import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vau_lib.data import video
from vau_lib.evaluation import metrics, result_tables
from vau_lib.synthetic import dataset as synthetic_dataset
from vau_lib.synthetic import scenarios
from vau_lib.workspace import parallel
from vau_lib.workspace.presets import project

NUISANCES = ("brightness", "file size", "length", "total motion")


def nuisances(path: Path) -> list[float]:
    """Return brightness, bytes, frames, and mean change between frames of a video."""
    gray = np.stack(list(video.gray_frames(path))).astype(np.int16)
    return [float(gray.mean()), path.stat().st_size, len(gray), float(np.abs(np.diff(gray, axis=0)).mean())]


def motion(truth: synthetic_dataset.Truth) -> list[float]:
    """Return extremes, mean, std and quantiles of how boxes move, change shape and come near each other, in box heights."""
    boxes, fps = truth.boxes, truth.scenario.fps
    centres, sides = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    height, shape = np.nanmean(sides[..., 1]), sides[..., 0] / sides[..., 1]
    speed = np.linalg.norm(np.diff(centres, axis=0), axis=-1) * fps / height
    apart = np.linalg.norm(centres[:, :, None] - centres[:, None], axis=-1)[:, *np.triu_indices(boxes.shape[1], 1)] / height
    values = [float(boxes.shape[1])]
    for x in (speed, np.abs(np.diff(speed, axis=0)), shape, np.diff(shape, axis=0), apart):
        known = x[~np.isnan(x)] if np.isfinite(x).any() else np.zeros(1)
        values += [known.mean(), known.std(), *np.quantile(known, (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1))]
    return values


def render_and_measure(item: tuple[str, scenarios.Scenario], *, root: Path) -> tuple[list[float], list[float]]:
    name, scenario = item
    truth = synthetic_dataset.render(scenario, root / f"{name}.mp4")
    return nuisances(root / f"{name}.mp4"), motion(truth)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    chosen = scenarios.covering_scenarios(count, 0)
    table, missing = scenarios.coverage(chosen)
    pairs = f"{table['covered_pairs'].sum()} of {table['possible_pairs'].sum()} pairs of factors"
    print(f"{count} scenarios, {sum(s.label for s in chosen)} anomalous; {pairs}")
    items = [(f"{n:04d}_{s.scene}_{s.event}", s) for n, s in enumerate(chosen)]
    with TemporaryDirectory() as scratch:
        started, measured = time.perf_counter(), {}
        work = partial(render_and_measure, root=Path(scratch))
        for item, numbers, error in parallel.map_videos(work, items, engine="processes", workers=2, desc="rendering"):
            if error:
                raise SystemExit(f"{item[0]}: {error}")
            measured[item[0]] = numbers
        seconds = time.perf_counter() - started
    used = sum(getattr(resource.getrusage(resource.RUSAGE_CHILDREN), name) for name in ("ru_utime", "ru_stime"))
    print(f"rendered, with truth, and measured in {seconds:.0f} s by two processes ({used:.0f} CPU seconds)")
    x = pd.DataFrame([measured[name][0] for name, _ in items], columns=NUISANCES)
    y, worlds = np.array([s.label for s in chosen]), np.array([s.world_seed for s in chosen])

    def auc(scores) -> float:
        return metrics.video_auc(dict(enumerate(scores)), dict(enumerate(y)))

    rows = [[name, max(auc(x[name]), 1 - auc(x[name]))] for name in NUISANCES]
    model = make_pipeline(StandardScaler(), LogisticRegression())
    by_world = dict(cv=GroupKFold(5), groups=worlds, method="predict_proba")
    scores = cross_val_predict(model, x, y, **by_world)[:, 1]
    rows.append(["all four, logistic regression, 5 folds by world", auc(scores)])
    nuisance_table = pd.DataFrame(rows, columns=["nuisance", "video_auc"]).assign(videos=count, missing_pairs=len(missing))
    print(nuisance_table.round(3).to_string(index=False))
    tracks = np.array([measured[name][1] for name, _ in items])
    scores = cross_val_predict(RandomForestClassifier(500, random_state=0), tracks, y, **by_world)[:, 1]
    print(f"a forest on true tracks: video AUC {auc(scores):.3f}")
    if count >= 200:
        curves = project() / "data" / "results" / "studies" / "curves"
        result_tables.write_curve(curves / "scenario_nuisances.csv", nuisance_table.round(4))
        result_tables.write_curve(curves / "scenario_coverage.csv", table.round(4))


if __name__ == "__main__":
    main()
