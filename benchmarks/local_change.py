"""Local change against pooled features on real fights: 207 clips, four folds that share no source, video AUC.

- features of 2 frames each: the temporal difference of pooled XFeat features (the report's pooling), local change at lag 1 and at
  lags 1, 2, 4 (what share of the places counts as top is the library's default), both with real and with RANDOM weights
- logistic regression on mean and maximum over a clip; the scaling is that of the training folds, its strength C is chosen by
  leaving one training fold out in turn. A fused row is the mean of two z-scores, whose mean and standard deviation are those
  of the scores that training clips get while left out. Nothing of the test fold is looked at
- MemTSM-Net as in notebook 04: the epoch is chosen on validation clips of other sources, inside the training folds
- beside them: the mean absolute frame difference, shuffled labels, a constant. An interval is of resampled clips; clips of one
  source are alike, so it is too narrow
    VAU_REAL_DATA=... python benchmarks/local_change.py [FOLDER_OF_SQUEEZENET_FEATURES]
"""

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from vau_lib.data import datasets, records, video
from vau_lib.detectors import experiments, memtsm, preprocessing, trained_detector, training
from vau_lib.evaluation import result_tables
from vau_lib.features import extraction, xfeat
from vau_lib.workspace import artifacts, presets

SNIPPET, SEEDS, SIDE = 2, (0, 1, 2, 3, 4), 224
STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # scikit-learn's C, chosen inside the training folds
SETTINGS = {"seed": 0, "resamples": 1000}
Rows = Mapping[str, np.ndarray]  # {clip: (T, D)}
Scores = dict[str, float]


class Folds:
    """The clips, their labels and folds; fits on three folds, scores the fourth."""

    def __init__(self, found: Iterable[list[records.VideoRecord]]):
        self.records = list(found)
        self.fold = {r.id: k for k, part in enumerate(self.records) for r in part if r.split == "test"}
        self.labels = {r.id: r.label for r in self.records[0]}
        self.names = sorted(self.labels)

    def logistic(self, rows: Rows, shuffled: int | None = None) -> tuple[Scores, list[tuple[float, float]]]:
        """Return {clip: log odds}, each from the fold where it is test, and a fold's mean and std of left-out training scores."""
        x = np.stack([np.concatenate([rows[n].mean(0), rows[n].max(0)]) for n in self.names])
        fold, out, spread = np.array([self.fold[n] for n in self.names]), {}, []
        for k in range(len(self.records)):
            inside = [n for n in self.names if self.fold[n] != k]
            known = {n: self.labels[n] for n in inside}
            known = known if shuffled is None else experiments.shuffled_labels(known, shuffled)
            train, y, groups = x[fold != k], np.array([known[n] for n in inside]), fold[fold != k]
            left_out = {strength: _left_out(train, y, groups, strength) for strength in STRENGTHS}
            mean_auc = {
                strength: np.mean([roc_auc_score(y[groups == g], scores[groups == g]) for g in np.unique(groups)])
                for strength, scores in left_out.items()
            }
            chosen = max(mean_auc, key=mean_auc.get)
            spread.append((left_out[chosen].mean(), left_out[chosen].std()))
            scores = _model(chosen).fit(train, y).decision_function(x[fold == k])
            out |= dict(zip((n for n in self.names if self.fold[n] == k), scores.tolist(), strict=True))
        return out, spread

    def standardised(self, scores: Scores, spread: list[tuple[float, float]]) -> Scores:
        """Return z-scores by each fold's own mean and std of training scores."""
        return {n: (score - spread[self.fold[n]][0]) / spread[self.fold[n]][1] for n, score in scores.items()}

    def memtsm(self, rows: Rows, seed: int, *, difference: bool, shuffled: bool = False) -> tuple[Scores, list]:
        """Return {clip: score} of trainings of one seed, a fold each, and a fold's mean and std over its validation clips."""
        out, spread = {}, []
        for part in self.records:
            labels = experiments.training_labels(part, shuffled=seed if shuffled else None)
            val = {r.id for r in part if r.split == "val"}
            config = memtsm.MemTSMConfig(in_channels=next(iter(rows.values())).shape[1])
            model = trained_detector.train(
                {n: rows[n] for n in labels}, labels, val, config=config, plan=training.TrainingPlan(seed=seed),
                temporal_difference=difference,
            )  # fmt: skip
            held = [model.score_video(rows[n])[0] for n in val]
            spread.append((float(np.mean(held)), float(np.std(held))))
            out |= {r.id: model.score_video(rows[r.id])[0] for r in part if r.split == "test"}
        return out, spread


def _model(strength: float):
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=5000))


def _left_out(x: np.ndarray, y: np.ndarray, groups: np.ndarray, strength: float) -> np.ndarray:
    """Return the score of every training clip by a model that saw the other training folds."""
    scores = np.empty(len(y))
    for group in np.unique(groups):
        seen = groups != group
        scores[~seen] = _model(strength).fit(x[seen], y[seen]).decision_function(x[~seen])
    return scores


def frame_difference(root: Path, found: list[records.VideoRecord]) -> Scores:
    """Return {clip: mean absolute difference of successive gray frames}, of pictures shrunk as the encoder shrinks them."""
    out = {}
    for r in tqdm(found, desc="frame difference"):
        small = [xfeat.resized(frame[None], SIDE)[0].numpy() for frame in video.gray_frames(records.locate(r, root))]
        out[r.id] = float(np.mean([np.abs(b - a).mean() for a, b in zip(small, small[1:], strict=False)]))
    return out


def main() -> None:
    if not os.environ.get("VAU_REAL_DATA"):
        raise SystemExit("this measures on real video: set VAU_REAL_DATA")
    torch.set_num_threads(1)
    real, project = Path(os.environ["VAU_REAL_DATA"]), presets.project()
    root, place = real / "fight_surv", project / "data" / "features" / "local_change"
    parts = [datasets.clip_folder(root, root / "labels.csv", test_fold=k) for k in range(4)]
    parts = [datasets.split_by_group(p, val_fraction=0.2, rng=np.random.default_rng(0)) for p in parts]
    folds = Folds(parts)

    def described(name: str, encoder: str, folder: Path | None = None, **options: object) -> Rows:
        folder, recipe = folder or place / name, extraction.Recipe(encoder, SNIPPET, tuple(options.items()))
        done = extraction.extract(parts[0], root, folder, recipe, engine="processes", workers=2)
        print(f"{name}: {done.encoded} encoded in {done.seconds:.0f} s, {done.already_done} already done", flush=True)
        if done.skipped:
            raise SystemExit(f"{len(done.skipped)} clips are missing, first {done.skipped[0]}")
        return extraction.load(folder, parts[0], **recipe.made_by())

    kinds = {"real weights": str(real / "weights/xfeat/xfeat_bnfolded.pt"), "RANDOM weights": "random"}
    pooled = {kind: described(f"pooled, {kind}", "xfeat", weights=weights) for kind, weights in kinds.items()}
    local = {
        (kind, lags): described(
            f"local change {lags}, {kind}", "xfeat", weights=weights, pooling="local_change", lags=lags
        )
        for kind, weights in kinds.items() for lags in ((1,), xfeat.LAGS)
    }  # fmt: skip
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    weights = str(real / "weights/squeezenet/squeezenet1_0_torchvision_keys_fp16.pt")
    squeezenet = described("squeezenet", "squeezenet", folder, weights=weights)
    changed = {kind: _differences(rows) for kind, rows in pooled.items()}
    best, lags = local["real weights", xfeat.LAGS], ", ".join(map(str, xfeat.LAGS))

    runs: dict[tuple[str, str], list[Scores]] = {}
    single = {f"temporal difference of pooled XFeat features, {kind}": rows for kind, rows in changed.items()}
    single |= {f"local change, lags {', '.join(map(str, at))}, {kind}": rows for (kind, at), rows in local.items()}
    single["temporal difference of SqueezeNet features"] = _differences(squeezenet)
    z = {}
    for name, rows in single.items():
        scores, spread = folds.logistic(rows)
        runs[f"logistic regression on {name}", "baseline"] = [scores]
        z[name] = folds.standardised(scores, spread)
    by_pooled, by_local, by_squeezenet = (z[n] for n in (
        "temporal difference of pooled XFeat features, real weights", f"local change, lags {lags}, real weights",
        "temporal difference of SqueezeNet features",
    ))  # fmt: skip
    fused = f"logistic regression, local change at lags {lags} fused with"
    runs[f"{fused} SqueezeNet", "ours"] = [_mean(by_local, by_squeezenet)]
    runs["logistic regression, pooled fused with SqueezeNet", "baseline"] = [_mean(by_pooled, by_squeezenet)]
    runs[f"{fused} pooled", "ours"] = [_mean(by_local, by_pooled)]
    runs[f"{fused} pooled and SqueezeNet", "ours"] = [_mean(by_local, by_pooled, by_squeezenet)]
    runs[f"logistic regression on local change, lags {lags}, shuffled labels", "sanity"] = [
        folds.logistic(best, shuffled=seed)[0] for seed in SEEDS
    ]
    heads = {
        ("MemTSM as intended, on temporal differences of pooled features", "ours"): (pooled["real weights"], True, False),
        (f"MemTSM as intended, on local change, lags {lags}", "ours"): (best, False, False),
        (f"MemTSM as intended, on local change, lags {lags}, RANDOM weights", "sanity"): (
            local["RANDOM weights", xfeat.LAGS], False, False,
        ),
        (f"MemTSM as intended, on local change, lags {lags}, shuffled labels", "sanity"): (best, False, True),
    }  # fmt: skip
    for (name, kind), (rows, difference, shuffled) in heads.items():
        trained = [folds.memtsm(rows, s, difference=difference, shuffled=shuffled) for s in tqdm(SEEDS, desc=name)]
        runs[name, kind] = [scores for scores, _ in trained]
        if kind == "ours":
            runs[f"{name}, fused with logistic regression on SqueezeNet", "ours"] = [
                _mean(folds.standardised(*run), by_squeezenet) for run in trained
            ]
    runs["mean absolute frame difference, training-free", "baseline"] = [frame_difference(root, parts[0])]
    runs["a constant", "sanity"] = [dict.fromkeys(folds.names, 0.0)]
    methods = [
        result_tables.Method(n, k, [{c: (s, np.array([s])) for c, s in run.items()} for run in held])
        for (n, k), held in runs.items()
    ]
    table = pd.DataFrame([result_tables.video_row(m, folds.labels, folds.fold, **SETTINGS) for m in methods])
    table = table.assign(
        dataset="local change on fights", features=f"rows of {SNIPPET} frames, {len(folds.names)} clips, four folds"
    )
    print(table.iloc[:, 1:10].round(3).to_string(index=False))
    with artifacts.replacing(project / "data" / "results" / "studies" / "local_change.csv") as temporary:
        table.round(4).to_csv(temporary, index=False)


def _differences(rows: Rows) -> dict[str, np.ndarray]:
    return {n: preprocessing.temporal_difference(x) for n, x in rows.items()}


def _mean(*scores: Scores) -> Scores:
    return {n: float(np.mean([each[n] for each in scores])) for n in scores[0]}


if __name__ == "__main__":
    main()
