"""Transfer from synthetic to real video: detectors trained on rendered scenarios, tested on real fights and UCSD Ped2.

- features: XFeat with real weights, 2 frames each, at the fights' 25 frames a second; temporal differences of them are learned from
- learned on drawings: logistic regression on videos and on snippet features (event spans are known), MemTSM-Net as intended with an
  epoch chosen on drawn validation videos; the same with shuffled labels. Nothing real is looked at before the test
- beside them: what needs no training, what was learned on real video (rows of data/results, or made here), a constant
- the drawn test worlds stand in the table too: a detector that fails at home has nothing to carry over
- AUCs on the fights are means over the four folds of their own table; seeds that end far apart have intervals (of their mean
  score) that miss the mean of AUCs
    VAU_REAL_DATA=... python benchmarks/transfer.py [SCENARIOS]
"""

import os
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vau_lib.data import datasets, records
from vau_lib.detectors import baselines, memtsm, preprocessing, trained_detector, training
from vau_lib.evaluation import result_tables
from vau_lib.features import extraction
from vau_lib.synthetic import dataset as synthetic_dataset
from vau_lib.synthetic import scenarios
from vau_lib.workspace import artifacts, parallel, presets

FPS, SNIPPET, SEEDS, SHARES = 25.0, 2, (0, 1, 2), {"train": 0.7, "val": 0.15, "test": 0.15}
SETTINGS = {"seed": 0, "resamples": 1000}
ANOMALIES = ("all anomalies", "fights")  # what counts as an anomaly among the drawings


def film(root: Path, count: int) -> list[records.VideoRecord]:
    """Return records of drawn scenarios, an anomaly and its everyday counterpart of one world beside each other in one split."""
    chosen = scenarios.covering_scenarios(count, 77, duration_s=5.0, fps=FPS)
    turn = np.random.default_rng(77).permutation(count // 2)  # the grammar's list is not in random order
    items = [(f"{n:04d}_{s.scene}_{s.event}", s) for n, s in enumerate(chosen)]
    found = []
    for (name, s), spans, error in parallel.map_videos(
        partial(_film, root=root), items, engine="processes", workers=2, desc="filming"
    ):
        if error:
            raise SystemExit(f"{name}: {error}")
        place = (turn[int(name[:4]) // 2] + 0.5) / (count // 2)
        split = "train" if place < SHARES["train"] else "val" if place < 1 - SHARES["test"] else "test"
        found.append(records.VideoRecord(
            id=name, path=f"{name}.mp4", dataset="scenarios", split=split, label=s.label, classes=(s.event,), events=spans,
            fps=FPS, num_frames=s.num_frames, group=f"world-{s.world_seed}",
        ))  # fmt: skip
    return sorted(found, key=lambda r: r.id)


def _film(item: tuple[str, scenarios.Scenario], *, root: Path) -> tuple:
    return synthetic_dataset.render_to_file(item[1], root / f"{item[0]}.mp4")


class RowModel:
    """Logistic regression on how single rows change, learned where events' spans are known: rows (T, D) -> scores (T,)."""

    def __init__(self, rows: dict[str, np.ndarray], found: list[records.VideoRecord], kinds: tuple[str, ...]):
        x, y = [], []
        for r in found:
            inside = records.frame_labels(r)[::SNIPPET] if r.classes[0] in kinds else np.zeros(len(rows[r.id]))
            x.append(preprocessing.temporal_difference(rows[r.id]))
            y.append(inside[: len(rows[r.id])])
        self.model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000, class_weight="balanced"))
        self.model.fit(np.concatenate(x), np.concatenate(y))

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return self.model.predict_proba(preprocessing.temporal_difference(rows))[:, 1]


def learned(rows: dict, found: list, test: dict, aim: str) -> list[result_tables.Method]:
    """Return what was learned on drawings, scoring the videos of `test`, {key: (T, D)}."""
    kinds = scenarios.ANOMALOUS_EVENTS if aim == "all anomalies" else ("fight",)
    known = [r for r in found if r.split != "test"]
    labels = {r.id: int(r.classes[0] in kinds) for r in known}
    val = {r.id for r in known if r.split == "val"}
    seen, said = {name: rows[name] for name in labels}, f"learned on drawings ({aim})"
    lengths = {name: len(x) for name, x in test.items()}
    found_by_rows = RowModel(rows, known, kinds)
    by_videos = baselines.logistic_on_difference(seen, labels, test)
    out = [
        result_tables.per_video(f"logistic regression on videos, {said}", "baseline", by_videos, lengths),
        result_tables.per_row(
            f"logistic regression on snippet features, {said}", "baseline", {n: found_by_rows(x) for n, x in test.items()}
        ),
    ]  # fmt: skip
    for title, kind in (("MemTSM as intended, on temporal differences (ours)", "ours"), ("MemTSM, shuffled labels", "sanity")):
        runs = []
        for seed in SEEDS:
            names = sorted(labels)
            shuffled = np.random.default_rng(seed).permutation([labels[n] for n in names]).tolist()
            truth = labels if kind == "ours" else dict(zip(names, shuffled, strict=True))
            config = memtsm.MemTSMConfig(in_channels=next(iter(rows.values())).shape[1])
            plan = training.TrainingPlan(epochs=20, learning_rate=1e-4, seed=seed)
            model = trained_detector.train(seen, truth, val, config=config, plan=plan)
            runs.append({name: model.score_video(x) for name, x in test.items()})
        out.append(result_tables.Method(f"{title}, {said}", kind, runs))
    return out


def main() -> None:
    if not os.environ.get("VAU_REAL_DATA"):
        raise SystemExit("this compares with real video: set VAU_REAL_DATA")
    torch.set_num_threads(1)
    count, real = int(sys.argv[1]) if len(sys.argv) > 1 else 400, Path(os.environ["VAU_REAL_DATA"])
    project = presets.project()
    root, rows_of = project / "data" / "synthetic" / "transfer", project / "data" / "features" / "transfer"
    recipe = extraction.Recipe("xfeat", SNIPPET, (("weights", str(real / "weights/xfeat/xfeat_bnfolded.pt")),))

    def described(name: str, found: list, place: Path) -> dict[str, np.ndarray]:
        done = extraction.extract(found, place, rows_of / name, recipe, engine="processes", workers=2)
        print(f"{name}: {done.encoded} encoded, {done.already_done} already done, skipped {list(done.skipped)}", flush=True)
        return extraction.load(rows_of / name, found)

    drawn = film(root, count)
    rows = described("drawings", drawn, root)
    clips = _clips(real, 0)
    walks = datasets.ucsd_ped2(real / "ucsd_ped2")
    fights, ped2 = described("fights", clips, real / "fight_surv"), described("ped2", walks, real / "ucsd_ped2")
    homes = {
        "drawings": ([r for r in drawn if r.split == "test"], rows),
        "fights": ([r for r in clips if r.id in fights], fights),
        "ped2": ([r for r in walks if r.split == "test"], ped2),
    }
    normal = np.concatenate([ped2[r.id] for r in walks if r.split == "train"])
    every = {(name, r.id): held[r.id] for name, (found, held) in homes.items() for r in found}
    everywhere, table = [m for aim in ANOMALIES for m in learned(rows, drawn, every, aim)], []
    for name, (found, held) in homes.items():
        test = {r.id: held[r.id] for r in found}
        methods = [result_tables.Method(m.name, m.kind, [{n: run[name, n] for n in test} for run in m.runs]) for m in everywhere]
        differences = {n: baselines.difference(x) for n, x in test.items()}
        methods += [
            result_tables.per_row("temporal difference of XFeat features, not trained", "baseline", differences),
            result_tables.per_row("a constant", "sanity", {n: np.zeros(len(x)) for n, x in test.items()}),
        ]  # fmt: skip
        if name == "ped2":
            cloud = {
                n: baselines.cloud_distance(preprocessing.temporal_difference(normal), preprocessing.temporal_difference(x))
                for n, x in test.items()
            }
            methods.append(
                result_tables.per_row("distance from normal cloud, temporal differences, learned on Ped2", "baseline", cloud)
            )
            truth = {r.id: records.frame_labels(r) for r in found}
            lines = [result_tables.frame_row(m, truth, SNIPPET, **SETTINGS) for m in methods]
        else:
            labels, folds = {r.id: r.label for r in found}, dict.fromkeys(test, 0)
            if name == "fights":
                folds = {r.id: k for k in range(4) for r in _clips(real, k) if r.split == "test"}
            lines = [
                result_tables.video_row(m, labels, folds, **SETTINGS)
                for m in methods
                if name == "fights" or "(fights)" not in m.name
            ]
        part = pd.DataFrame(lines).assign(dataset=f"transfer to {name}", features=f"XFeat, {len(test)} videos")
        if name == "drawings":  # what learned fights only is asked for fights only
            fought = {r.id: int(r.classes[0] == "fight") for r in found}
            asked = [m for m in methods if ANOMALIES[0] not in m.name]
            lines = [result_tables.video_row(m, fought, folds, **SETTINGS) for m in asked]
            note = f"XFeat, {len(test)} videos, {sum(fought.values())} fights"
            part = pd.concat([part, pd.DataFrame(lines).assign(dataset="transfer to drawn fights", features=note)])
        table.append(pd.concat([part, at_home(project, name)], ignore_index=True))
        print(part.iloc[:, :8].round(3).to_string(index=False), flush=True)
    with artifacts.replacing(project / "data" / "results" / "studies" / "transfer.csv") as temporary:
        pd.concat(table, ignore_index=True).round(4).to_csv(temporary, index=False)


def _clips(real: Path, fold: int) -> list[records.VideoRecord]:
    return datasets.clip_folder(real / "fight_surv", real / "fight_surv" / "labels.csv", test_fold=fold)


def at_home(project: Path, name: str) -> pd.DataFrame:
    """Return the rows of data/results for what was learned on the real set itself, by the same rows; its folds are its own."""
    wanted = {
        "fights": [
            "MemTSM as intended, on temporal differences (ours)",
            "logistic regression on temporal differences of XFeat features",
        ],
        "ped2": ["XFeat features, 5 nearest normal neighbours", "flow, 5×5 box mean, training-free"],
    }
    if name not in wanted:
        return pd.DataFrame()
    board = pd.read_csv(project / "data" / "results" / name / f"{name}.csv")
    part = board[board["method"].isin(wanted[name])]
    word = "" if name == "ped2" else ", learned on fights"
    return part.assign(method=part["method"] + word, kind="baseline", dataset=f"transfer to {name}")


if __name__ == "__main__":
    main()
