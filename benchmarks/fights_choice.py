"""Which features tell real fights, chosen without the test folds: nested cross-validation on 207 clips, video AUC.

- four outer folds that share no source; inside each one's three training folds, five inner folds by source, twice
- chosen by the inner folds, for each outer fold alone: the summary of a clip over time, the strength C of the logistic
  regression, the one input that is best alone, and the inputs (three at most) whose fusion is best
- a fusion is the mean of z-scores; mean and standard deviation are those of the scores that training clips get while left out
- every input's own number stands beside, so that the choice can be judged; what was chosen on the way to these inputs
  is told in LAB.md
    VAU_REAL_DATA=... vau run fights 01 03 05 && python benchmarks/fights_choice.py
"""

import itertools
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from tqdm import tqdm

from vau_lib.detectors import experiments, preprocessing
from vau_lib.workspace import artifacts, presets

INPUTS = {  # folder of features: whether its temporal difference is read
    "xfeat": True, "squeezenet": True, "xfeat_local_change": False, "squeezenet_local_change": False, "flow": False,
}  # fmt: skip
SUMMARIES = {"mean": ("mean",), "mean, max": ("mean", "max"), "mean, std": ("mean", "std")}
STRENGTHS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)  # scikit-learn's C
REPEATS, INNER, MOST = 2, 5, 3


def scores_of(x: np.ndarray, y: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the log odds (len(STRENGTHS), N) of rows `wanted` (N, D) by regressions on rows x with labels y.

    The penalty does not change when the axes are turned, so wide rows are first written in the few axes that x spans.
    """
    mean, std = x.mean(0), x.std(0) + 1e-8
    x, wanted = (x - mean) / std, (wanted - mean) / std
    if x.shape[1] > len(x):
        values, vectors = np.linalg.eigh(x @ x.T)
        kept = values > 1e-8 * values.max()
        length, turned = np.sqrt(values[kept]), vectors[:, kept]
        x, wanted = turned * length, wanted @ x.T @ turned / length
    fits = (LogisticRegression(C=strength, max_iter=1000, tol=1e-3).fit(x, y) for strength in STRENGTHS)
    return np.stack([fit.decision_function(wanted) for fit in fits])


def left_out(x: np.ndarray, y: np.ndarray, sources: Sequence[str]) -> np.ndarray:
    """Return the log odds (REPEATS, len(STRENGTHS), N) that training clips get from clips of other sources."""
    found = np.empty((REPEATS, len(STRENGTHS), len(y)))
    for repeat in range(REPEATS):
        parts = StratifiedGroupKFold(INNER, shuffle=True, random_state=repeat).split(x, y, sources)
        for seen, out in parts:
            found[repeat][:, out] = scores_of(x[seen], y[seen], x[out])
    return found


def inner_auc(scores: np.ndarray, y: np.ndarray) -> float:
    """Return the mean AUC of scores (REPEATS, N)."""
    return float(np.mean([roc_auc_score(y, repeat) for repeat in scores]))


def main() -> None:
    warnings.filterwarnings("ignore", category=ConvergenceWarning)
    records_file, folder = "data/raw/fights/records_fold*.jsonl", presets.project_path("data/features/fights")
    parts = [experiments.read_fold(records_file, fold, folder / "xfeat")[0] for fold in range(4)]
    fold_of = {r.id: fold for fold, part in enumerate(parts) for r in part if r.split == "test"}
    clips = sorted(parts[0], key=lambda r: r.id)
    y, fold = np.array([r.label for r in clips]), np.array([fold_of[r.id] for r in clips])
    sources = np.array([r.source for r in clips])
    designs = {}
    for name, difference in INPUTS.items():
        rows = experiments.read_fold(records_file, 0, folder / name)[1]
        rows = {n: preprocessing.temporal_difference(x) if difference else x for n, x in rows.items()}
        for summary, parts_of in SUMMARIES.items():
            x = [np.concatenate([getattr(rows[r.id].astype(np.float64), part)(0) for part in parts_of]) for r in clips]
            designs[name, summary] = np.stack(x)

    chosen, tests = {}, {}  # {(fold, input): (inner AUC, summary, C, left-out z-scores)}, {(fold, input): z-scores of test}
    for k, name in tqdm(list(itertools.product(range(4), INPUTS)), desc="inner folds"):
        inside, best = fold != k, None
        for summary in SUMMARIES:
            found = left_out(designs[name, summary][inside], y[inside], sources[inside])
            for place, strength in enumerate(STRENGTHS):
                value = inner_auc(found[:, place], y[inside])
                if best is None or value > best[0]:
                    best = value, summary, strength, found[:, place]
        mean, std = best[3].mean(), best[3].std()
        x = designs[name, best[1]]
        outer = scores_of(x[inside], y[inside], x[~inside])[STRENGTHS.index(best[2])]
        chosen[k, name], tests[k, name] = (*best[:3], (best[3] - mean) / std), (outer - mean) / std

    subsets = [c for most in range(1, MOST + 1) for c in itertools.combinations(INPUTS, most)]
    rows = []

    def row(method: str, picks: Sequence[tuple[str, ...]]) -> None:
        inner = [inner_auc(sum(chosen[k, n][3] for n in picks[k]), y[fold != k]) for k in range(4)]
        outer = [roc_auc_score(y[fold == k], sum(tests[k, n] for n in picks[k])) for k in range(4)]
        read = "; ".join(" + ".join(f"{n} ({chosen[k, n][1]}; C {chosen[k, n][2]:g})" for n in picks[k]) for k in range(4))
        rows.append({"method": method, "inner_video_auc": np.mean(inner), "video_auc": np.mean(outer), "low_fold": min(outer),
                     "high_fold": max(outer), "chosen_in_each_fold": read})  # fmt: skip

    for name, difference in INPUTS.items():
        row(f"{name}, {'temporal differences' if difference else 'as it is'}", [(name,)] * 4)
    row("best input by the inner folds", [max(((n,) for n in INPUTS), key=lambda c, k=k: chosen[k, c[0]][0]) for k in range(4)])
    best = [max(subsets, key=lambda c, k=k: inner_auc(sum(chosen[k, n][3] for n in c), y[fold != k])) for k in range(4)]
    row("best fusion by the inner folds", best)
    for seed in range(5):  # labels permuted among the training clips: what is reached without any knowledge
        x, values = designs["squeezenet_local_change", "mean, max"], []
        for k in range(4):
            known = np.random.default_rng(seed).permutation(y[fold != k])
            found = scores_of(x[fold != k], known, x[fold == k])[STRENGTHS.index(0.01)]
            values.append(roc_auc_score(y[fold == k], found))
        rows.append({"method": f"squeezenet_local_change, shuffled labels, seed {seed}", "video_auc": np.mean(values),
                     "low_fold": min(values), "high_fold": max(values)})  # fmt: skip
    table = pd.DataFrame(rows).assign(
        dataset="fights, chosen inside the training folds", clips=len(clips), model="logistic regression"
    )
    print(table.drop(columns=["dataset", "clips", "model"]).round(3).to_string(index=False))
    with artifacts.replacing(presets.project_path("data/results/studies/fights_choice.csv")) as temporary:
        table.round(4).to_csv(temporary, index=False)


if __name__ == "__main__":
    main()
