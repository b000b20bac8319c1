"""MemTSM-Net on local change of real fights: one encoder, two fused, beside logistic regression and shuffled labels; video AUC.

- 207 clips, four folds that share no source, five seeds; validation clips choose the epoch, and of SqueezeNet's local change the
  learning rate (two seeds); the report's rate stands beside it
- a fusion averages log odds in standard deviations of the validation clips
    VAU_REAL_DATA=... vau run fights 01 03 05 && python benchmarks/fights_memtsm.py
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from vau_lib.detectors import baselines, experiments, memtsm, trained_detector, training
from vau_lib.evaluation import metrics, result_tables
from vau_lib.workspace import artifacts, presets

INPUTS, FOLDS, SEEDS, CHOOSERS, STEPS = ("squeezenet_local_change", "xfeat_local_change"), 4, 5, 2, 32
RATES = (1e-4, 3e-4, 1e-3)  # the report's first
RECORDS = "data/raw/fights/records_fold*.jsonl"


def trainings(name: str, rate: float, seeds: Sequence[int], *, shuffled: bool = False) -> tuple[dict, dict]:
    """Train on every fold; return scores as `experiments.read_trainings` does: of test clips and of validation clips."""
    folder, tests, vals = presets.project_path("data/features/fights") / name, {}, {}
    for seed, fold in tqdm([(s, k) for s in seeds for k in range(FOLDS)], desc=f"{name}, rate {rate:g}"):
        found, rows = experiments.read_fold(RECORDS, fold, folder)
        labels = experiments.training_labels(found, shuffled=seed if shuffled else None)
        config = memtsm.MemTSMConfig(in_channels=next(iter(rows.values())).shape[1])
        detector = trained_detector.train(
            {n: rows[n] for n in labels}, labels, {r.id for r in found if r.split == "val"}, config=config, steps=STEPS,
            plan=training.TrainingPlan(learning_rate=rate, seed=seed), temporal_difference=False,
        )  # fmt: skip
        for record in found:
            if record.split == "test":
                tests.setdefault(seed, {})[record.id] = detector.score_video(rows[record.id])
            elif record.split == "val":
                score = detector.score_video(rows[record.id])[0]
                vals.setdefault((seed, fold), {})[record.id] = (score, labels[record.id])
    return tests, vals


def regression(name: str) -> dict:
    """Return {test clip: (log odds, [log odds])} of logistic regressions, a fold each, C as in the published table."""
    folder, run = presets.project_path("data/features/fights") / name, {}
    for fold in range(FOLDS):
        found, rows = experiments.read_fold(RECORDS, fold, folder)
        labels = experiments.training_labels(found)
        test = {r.id: rows[r.id] for r in found if r.split == "test"}
        odds = baselines.logistic_on_difference({n: rows[n] for n in labels}, labels, test, temporal_difference=False)
        run |= {n: (value, [value]) for n, value in odds.items()}
    return run


def main() -> None:
    torch.set_num_threads(1)
    parts = [experiments.read_fold(RECORDS, k, presets.project_path("data/features/fights") / INPUTS[0])[0] for k in range(FOLDS)]
    fold_of = {r.id: k for k, part in enumerate(parts) for r in part if r.split == "test"}
    labels = {r.id: r.label for part in parts for r in part}
    chosen = {}
    for rate in RATES:
        vals = trainings(INPUTS[0], rate, range(CHOOSERS))[1].values()
        auc = [metrics.video_auc({n: s for n, (s, _) in v.items()}, {n: y for n, (_, y) in v.items()}) for v in vals]
        chosen[rate] = float(np.mean(auc))
    best = max(chosen, key=chosen.get)
    print("validation video AUC:", {rate: round(value, 4) for rate, value in chosen.items()}, "chosen:", best)
    methods = [(n, result_tables.Method("logistic regression", "baseline", [regression(n)])) for n in INPUTS]
    for rate in dict.fromkeys((RATES[0], best)):
        runs = {name: trainings(name, rate, range(SEEDS)) for name in INPUTS}
        title = f"MemTSM as intended (ours), rate {rate:g}"
        methods += [(name, result_tables.Method(title, "ours", list(runs[name][0].values()))) for name in INPUTS]
        fused = list(experiments.fuse(list(runs.values()), fold_of).values())
        methods.append((" + ".join(INPUTS), result_tables.Method(f"{title}, fused", "ours", fused)))
    shuffled = list(trainings(INPUTS[0], best, range(SEEDS), shuffled=True)[0].values())
    methods.append((INPUTS[0], result_tables.Method("MemTSM as intended, shuffled labels", "sanity", shuffled)))
    rows = [{"input": i, **result_tables.video_row(m, labels, fold_of, seed=0, resamples=1000)} for i, m in methods]
    table = pd.DataFrame(rows).assign(
        dataset="fights", videos=len(fold_of), **{f"validation_at_{k:g}": v for k, v in chosen.items()}
    )
    print(
        table[["method", "input", "video_auc", "video_auc_std", "ensemble_video_auc", "low", "high"]]
        .round(3)
        .to_string(index=False)
    )
    with artifacts.replacing(presets.project_path("data/results/studies/fights_memtsm.csv")) as temporary:
        table.round(4).to_csv(temporary, index=False)


if __name__ == "__main__":
    main()
