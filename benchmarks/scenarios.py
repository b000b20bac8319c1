"""How long do 200 scenarios take to film, are all pairs of factors there, and does anything cheap give the anomalies away? One run.

SYNTHETIC, 192 x 144, 10 frames a second, about 6 s each; anomalies and everyday twins in turn, a world for each pair.
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
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vau_lib import cluster, metrics, results, synthesis, video
from vau_lib.presets import project

NUISANCES = ("brightness", "file size", "length", "total motion")


def nuisances(path: Path) -> list[float]:
    """Return brightness, bytes, frames, and mean change between frames of a video."""
    gray = np.stack(list(video.gray_frames(path))).astype(np.int16)
    return [float(gray.mean()), path.stat().st_size, len(gray), float(np.abs(np.diff(gray, axis=0)).mean())]


def filmed(item: tuple[str, synthesis.Scenario], *, root: Path) -> list[float]:
    name, scenario = item
    synthesis.render(scenario, root / f"{name}.mp4")
    return nuisances(root / f"{name}.mp4")


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    chosen = synthesis.scenarios(count, 0)
    table, missing = synthesis.coverage(chosen)
    pairs = f"{table['seen'].sum()} of {table['possible'].sum()} pairs of factors"
    print(f"{count} scenarios, {sum(s.label for s in chosen)} anomalous; {pairs}")
    items = [(f"{n:04d}_{s.scene}_{s.event}", s) for n, s in enumerate(chosen)]
    with TemporaryDirectory() as scratch:
        started, measured = time.perf_counter(), {}
        work = partial(filmed, root=Path(scratch))
        for item, numbers, error in cluster.map_videos(work, items, engine="processes", workers=2, desc="filming"):
            if error:
                raise SystemExit(f"{item[0]}: {error}")
            measured[item[0]] = numbers
        seconds = time.perf_counter() - started
    used = sum(getattr(resource.getrusage(resource.RUSAGE_CHILDREN), name) for name in ("ru_utime", "ru_stime"))
    print(f"filmed, with truth, and measured in {seconds:.0f} s by two processes ({used:.0f} CPU seconds)")
    x = pd.DataFrame([measured[name] for name, _ in items], columns=NUISANCES)
    y, worlds = np.array([s.label for s in chosen]), np.array([s.world_seed for s in chosen])
    lines = []
    for names in ([name] for name in NUISANCES):
        auc = metrics.video_auc(dict(enumerate(x[names[0]])), dict(enumerate(y)))
        lines.append([names[0], max(auc, 1 - auc)])
    model = make_pipeline(StandardScaler(), LogisticRegression())
    said = cross_val_predict(model, x, y, cv=GroupKFold(5), groups=worlds, method="predict_proba")[:, 1]
    lines.append(
        [
            "all four, logistic regression, 5 folds by world",
            metrics.video_auc(dict(enumerate(said)), dict(enumerate(y))),
        ]
    )
    found = pd.DataFrame(lines, columns=["nuisance", "video_auc"]).assign(videos=count, missing_pairs=len(missing))
    print(found.round(3).to_string(index=False))
    if count >= 200:
        results.write_curve(project() / "data" / "results" / "curves" / "scenario_nuisances.csv", found.round(4))
        results.write_curve(project() / "data" / "results" / "curves" / "scenario_coverage.csv", table.round(4))


if __name__ == "__main__":
    main()
