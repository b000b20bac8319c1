"""MemTSM-Net on real fights without validation clips, everything chosen inside the training folds; 207 clips, video AUC.

- 30 validation clips a fold misled (`fights_memtsm.py`): here a head trains on all clips it may see, 20 epochs, the last is kept
- inputs: local change of SqueezeNet, XFeat and EfficientNet-Lite0's 112-channel map, every second frame at 224 pixels, at lags of
  2, 4 and 8 frames
- a head reads the 48 longest principal axes of the training clips' mean rows (a fifth of the time of all channels, and fewer
  weights). Heads that compete, for each outer fold and input alone: every axis of the same variance, or of the variance it has; a
  score is the clip's log odds, or its mean with those of the highest quarter of steps
- beside each a logistic regression on the same rows, its summary over time and C chosen by the same inner folds
- fusions that compete: heads, regressions, both; equal weights of log odds in standard deviations of the left-out scores
- rule: the highest inner AUC, the mean over three inner folds by source inside the three training folds. `inner` scores,
  `decide` writes what won, `test` trains five seeds, `outer` reads the test labels once. The issue's rows are
  "one encoder": the SqueezeNet head, and "fused": the fusion that the inner folds choose for each outer fold
    VAU_REAL_DATA=... python benchmarks/fights_inner.py features | inner INPUT | decide | test INPUT | outer
"""

import itertools
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fights_choice import STRENGTHS, SUMMARIES, scores_of
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from tqdm import tqdm

from vau_lib.data import datasets, video
from vau_lib.detectors import experiments, memtsm, trained_detector, training
from vau_lib.evaluation import result_tables
from vau_lib.features import image_encoders, xfeat
from vau_lib.workspace import artifacts, presets

STRIDE, FOLDS, SEEDS, STEPS = 2, 4, 5, 32
REPEATS, INNER, SHUFFLED = 1, 3, 2  # the last: seeds with shuffled labels
INPUTS = ("squeezenet", "xfeat", "lite0")
AXES, RATE = 48, 1e-3
HEADS = {"same variance": True, "own variance": False}  # whether axes are standardised
FUSIONS = {"heads": ("head",), "regressions": ("regression",), "heads and regressions": ("head", "regression")}
POOLINGS = ("clip", "clip and top steps")
Rows = Mapping[str, np.ndarray]  # {clip: (T, D)}


class MiddleOfLite0(image_encoders.EfficientNetLiteEncoder):
    """EfficientNet-Lite0's last map with 16 pixels a place, 112 channels."""

    channels = 112

    @torch.inference_mode()
    def maps(self, frames: np.ndarray) -> Iterator[torch.Tensor]:
        """Yield the map, (t, 112, side / 16, side / 16), of frames (T, H, W, 3), RGB, in batches."""
        for pixels in self._pixels(frames):
            yield self.net.features[:6](pixels)


def encoders() -> dict:
    """Return {input: its encoder}."""
    weights = Path(os.environ["VAU_REAL_DATA"]) / "weights/squeezenet/squeezenet1_0_torchvision_keys_fp16.pt"
    squeezenet = image_encoders.SqueezeNetEncoder(weights, pooling="local_change")
    squeezenet.net = squeezenet.net.to(memory_format=torch.channels_last)  # 35 ms a frame for 58
    xfeat_32 = xfeat.XFeatEncoder(pooling="local_change", bfloat16=False)
    return {"squeezenet": squeezenet, "xfeat": xfeat_32, "lite0": MiddleOfLite0(pooling="local_change")}


def clips() -> tuple[list, np.ndarray, np.ndarray, list[str]]:
    """Return the records by id, their labels and outer folds (N,), and their sources."""
    root = Path(os.environ["VAU_REAL_DATA"]) / "fight_surv"
    parts = [datasets.clip_folder(root, root / "labels.csv", test_fold=k) for k in range(FOLDS)]
    fold_of = {r.id: k for k, part in enumerate(parts) for r in part if r.split == "test"}
    found = sorted(parts[0], key=lambda r: r.id)
    return found, np.array([r.label for r in found]), np.array([fold_of[r.id] for r in found]), [r.source for r in found]


def folder() -> Path:
    """Return where features and left-out scores lie."""
    return presets.project_path("data/features/fights_inner")


def features() -> None:
    """Write the inputs' rows, {clip: (T, D)}, a row per second frame."""
    root, made, rows = Path(os.environ["VAU_REAL_DATA"]) / "fight_surv", encoders(), {name: {} for name in INPUTS}
    for record in tqdm(clips()[0], desc="features", mininterval=5):
        frames = np.stack(list(video.rgb_frames(root / record.path))[::STRIDE])
        for name, encoder in made.items():
            rows[name][record.id] = encoder(frames, snippet_frames=1)
    for name in INPUTS:
        with artifacts.replacing(folder() / f"{name}.npz") as temporary, open(temporary, "wb") as file:
            np.savez(file, **rows[name])


def projected(rows: Rows, inside: Sequence[str]) -> dict[str, np.ndarray]:
    """Return rows (T, D) as (T, AXES), in the longest principal axes of the standardised mean rows of the clips `inside`.

    The mean variance of an axis over those clips' rows is 1, so that a network meets numbers of the usual size.
    """
    every = np.concatenate([rows[n] for n in inside]).astype(np.float64)
    mean, std = every.mean(0), every.std(0) + 1e-6
    means = np.stack([(rows[n].mean(0) - mean) / std for n in inside])
    turned = np.linalg.svd(means - means.mean(0), full_matrices=False)[2][:AXES].T / std[:, None]  # (D, AXES)
    scale = np.sqrt(((every - mean) @ turned).var(0).mean())
    return {n: ((x - mean) @ turned / scale).astype(np.float32) for n, x in rows.items()}


def head_scores(rows: Rows, labels: Mapping[str, int], wanted: Sequence[str], *, standardise: bool, seed: int) -> np.ndarray:
    """Train on the clips in `labels`, no validation clips; return the log odds (len(POOLINGS), N) of the clips `wanted`."""
    config = memtsm.MemTSMConfig(in_channels=next(iter(rows.values())).shape[1])
    plan = training.TrainingPlan(learning_rate=RATE, seed=seed)
    options = {"config": config, "plan": plan, "steps": STEPS, "temporal_difference": False, "standardise": standardise}
    detector = trained_detector.train({n: rows[n] for n in labels}, labels, None, **options)
    with torch.inference_mode():
        output = detector.model(torch.stack([detector.preprocessing(rows[n], STEPS) for n in wanted]))
    top = output.segment_logit.topk(STEPS // memtsm.SEGMENTS_PER_CHOICE, dim=1).values.mean(1)
    return torch.stack([output.logit, (output.logit + top) / 2]).double().numpy()


def inner_folds(labels: np.ndarray, sources: Sequence[str]) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    """Yield (repeat, inner fold, places seen, places left out)."""
    for repeat in range(REPEATS):
        parts = StratifiedGroupKFold(INNER, shuffle=True, random_state=repeat).split(labels, labels, sources)
        yield from ((repeat, part, seen, out) for part, (seen, out) in enumerate(parts))


def inner_auc(scores: np.ndarray, part_of: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean AUC over repeats and inner folds of left-out scores (REPEATS, N), whose inner folds are `part_of`."""
    inside = [(s[p == k], labels[p == k]) for s, p in zip(scores, part_of, strict=True) for k in range(INNER)]
    return float(np.mean([roc_auc_score(y, s) for s, y in inside]))


def standardised(scores: np.ndarray, part_of: np.ndarray) -> tuple[np.ndarray, float]:
    """Return left-out scores (REPEATS, N) with mean 0 and std 1 in every inner fold, and the mean of those stds."""
    found, stds = np.empty_like(scores), []
    for repeat, k in itertools.product(range(REPEATS), range(INNER)):
        place = part_of[repeat] == k
        stds.append(scores[repeat, place].std())
        found[repeat, place] = (scores[repeat, place] - scores[repeat, place].mean()) / stds[-1]
    return found, float(np.mean(stds))


def design(rows: Rows, names: Sequence[str], summary: str) -> np.ndarray:
    """Return the clips' summaries over time, (N, D or 2 D)."""
    return np.stack([np.concatenate([getattr(rows[n].astype(np.float64), s)(0) for s in SUMMARIES[summary]]) for n in names])


def inner(name: str) -> None:
    """Score every left-out clip by every candidate of one input; write inner_<input>.npz and .csv."""
    found, labels, fold, sources = clips()
    rows, table, kept = dict(np.load(folder() / f"{name}.npz")), [], {}
    for k in range(FOLDS):
        inside = np.flatnonzero(fold != k)
        ids, y = [found[i].id for i in inside], labels[inside]
        parts = list(inner_folds(y, [sources[i] for i in inside]))
        part_of = np.empty((REPEATS, len(y)), int)
        for repeat, part, _, out in parts:
            part_of[repeat, out] = part
        scores = {}
        for repeat, part, seen, out in tqdm(parts, desc=f"{name}, fold {k}", mininterval=5):
            known = {ids[i]: int(y[i]) for i in seen}
            written = projected({n: rows[n] for n in ids}, list(known))
            for title, standardise in HEADS.items():
                values = head_scores(written, known, [ids[i] for i in out], standardise=standardise, seed=INNER * repeat + part)
                for pooling, value in zip(POOLINGS, values, strict=True):
                    scores.setdefault(("head", title, pooling), np.empty(part_of.shape))[repeat, out] = value
        for summary in SUMMARIES:
            x = design(rows, ids, summary)
            for repeat, _, seen, out in parts:
                for strength, value in zip(STRENGTHS, scores_of(x[seen], y[seen], x[out]), strict=True):
                    place = ("regression", f"C {strength:g}", summary)
                    scores.setdefault(place, np.empty(part_of.shape))[repeat, out] = value
        for place, values in scores.items():
            method, choice, pooling = place
            table.append({"input": name, "fold": k, "place": len(table), "method": method, "choice": choice, "pooling": pooling,
                          "inner_video_auc": inner_auc(values, part_of, y)})  # fmt: skip
            kept[f"{k} {table[-1]['place']}"] = values
        kept[f"{k} parts"] = part_of
    with artifacts.replacing(folder() / f"inner_{name}.npz") as temporary, open(temporary, "wb") as file:
        np.savez(file, **kept)
    with artifacts.replacing(folder() / f"inner_{name}.csv") as temporary:
        pd.DataFrame(table).to_csv(temporary, index=False)


def test(name: str) -> None:
    """Score test clips by what the inner folds chose for one input, five seeds; write test_<input>.npz, compare with no label."""
    found, labels, fold, _ = clips()
    ids, data, kept = np.array([r.id for r in found]), dict(np.load(folder() / f"{name}.npz")), {}
    for k, table in pd.read_csv(folder() / f"inner_{name}.csv").groupby("fold"):
        best = {m: rows.loc[rows["inner_video_auc"].idxmax()] for m, rows in table.groupby("method")}
        inside, wanted, y = ids[fold != k], ids[fold == k], labels[fold != k]
        pooling, place = best["regression"]["pooling"], STRENGTHS.index(float(best["regression"]["choice"].removeprefix("C ")))
        odds = scores_of(design(data, inside, pooling), y, design(data, wanted, pooling))[place]
        kept |= {f"{k} regression {seed}": odds for seed in range(SEEDS)}
        rows, known = projected(data, inside), dict(zip(inside, y.tolist(), strict=True))
        pooling, standardise = POOLINGS.index(best["head"]["pooling"]), HEADS[best["head"]["choice"]]
        for seed in tqdm(range(SEEDS), desc=f"{name}, test fold {k}"):
            kept[f"{k} head {seed}"] = head_scores(rows, known, wanted, standardise=standardise, seed=seed)[pooling]
            if name == INPUTS[0] and seed < SHUFFLED:
                dealt = experiments.shuffled_labels(known, seed)
                kept[f"{k} shuffled {seed}"] = head_scores(rows, dealt, wanted, standardise=standardise, seed=seed)[pooling]
    with artifacts.replacing(folder() / f"test_{name}.npz") as temporary, open(temporary, "wb") as file:
        np.savez(file, **kept)


def decide() -> None:
    """Write every candidate's and fusion's inner AUC, the chosen ones marked; nothing of a test fold is read."""
    every = pd.concat([pd.read_csv(folder() / f"inner_{name}.csv") for name in INPUTS], ignore_index=True)
    best = every.groupby(["fold", "method", "input"])["inner_video_auc"].idxmax()
    every["chosen"] = every.index.isin(best)
    left_out = {name: np.load(folder() / f"inner_{name}.npz") for name in INPUTS}
    _, labels, fold, _ = clips()
    fused = []
    for k, (title, methods) in itertools.product(range(FOLDS), FUSIONS.items()):
        members = every[every["chosen"] & (every["fold"] == k) & every["method"].isin(methods)]
        part_of = left_out[INPUTS[0]][f"{k} parts"]  # the same for every input: it depends on labels and sources alone
        z = sum(standardised(left_out[r.input][f"{k} {r.place}"], part_of)[0] for r in members.itertuples())
        fused.append({"input": title, "fold": k, "method": "fusion", "inner_video_auc": inner_auc(z, part_of, labels[fold != k])})
    fused = pd.DataFrame(fused)
    fused["chosen"] = fused.index.isin(fused.groupby("fold")["inner_video_auc"].idxmax())
    table = pd.concat([every, fused], ignore_index=True)
    mean = table.groupby(["method", "input", "choice", "pooling"], dropna=False)["inner_video_auc"].mean()
    print(mean.round(3).to_string(), table[table["chosen"]].round(3).to_string(index=False), sep="\n")
    with artifacts.replacing(presets.project_path("data/results/studies/fights_inner.csv")) as temporary:
        table.round(4).to_csv(temporary, index=False)


def source_interval(run: Mapping[str, float], labels: np.ndarray, fold: np.ndarray, sources: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the mean AUC over folds when whole sources are resampled: clips of one source are alike."""
    rng, scores, found = np.random.default_rng(0), np.array(list(run.values())), []
    for _ in range(500):
        values = []
        for k in range(FOLDS):
            inside = np.unique(sources[fold == k])
            drawn = np.concatenate([np.flatnonzero(sources == s) for s in rng.choice(inside, len(inside))])
            above, below = scores[drawn][labels[drawn] == 1], scores[drawn][labels[drawn] == 0]
            if above.size and below.size:
                values.append((above[:, None] > below).mean())
        found.append(np.mean(values))
    return tuple(np.quantile(found, (0.025, 0.975)))


def outer() -> None:
    """Compare the test clips' scores with their labels, once, by what `decide` wrote; write fights_without_validation.csv."""
    found, labels, fold, sources = clips()
    ids, picks = np.array([r.id for r in found]), pd.read_csv(presets.project_path("data/results/studies/fights_inner.csv"))
    picks, z, runs, shuffled = picks[picks["chosen"]], {}, {}, [{} for _ in range(SHUFFLED)]
    for pick in picks[picks["method"] != "fusion"].itertuples():
        left_out, tests = np.load(folder() / f"inner_{pick.input}.npz"), np.load(folder() / f"test_{pick.input}.npz")
        std = standardised(left_out[f"{pick.fold} {int(pick.place)}"], left_out[f"{pick.fold} parts"])[1]
        wanted = ids[fold == pick.fold]
        for seed in range(SEEDS):
            odds = tests[f"{pick.fold} {pick.method} {seed}"] / std
            z.setdefault((pick.method, pick.input), [{} for _ in range(SEEDS)])[seed] |= dict(zip(wanted, odds, strict=True))
            if (pick.method, pick.input) == ("head", INPUTS[0]) and seed < SHUFFLED:
                dealt = tests[f"{pick.fold} shuffled {seed}"]
                shuffled[seed] |= {n: (v, np.array([v])) for n, v in zip(wanted, dealt, strict=True)}
    for title, methods in FUSIONS.items():
        members = [run for (method, _), run in z.items() if method in methods]
        z["fusion", title] = [{n: float(np.mean([m[seed][n] for m in members])) for n in ids} for seed in range(SEEDS)]
    won = {int(r.fold): r.input for r in picks[picks["method"] == "fusion"].itertuples()}
    z["fusion", "chosen by the inner folds"] = [
        {n: z["fusion", won[k]][seed][n] for n, k in zip(ids, fold, strict=True)} for seed in range(SEEDS)
    ]
    titles = {"head": ("MemTSM as intended, no validation clips", "ours"), "regression": ("logistic regression", "baseline")}
    for (method, name), scores in z.items():
        title, kind = titles.get(method, ("fusion", "ours"))
        scores = scores[:1] if method == "regression" or name == "regressions" else scores
        runs[title, name, kind] = [{n: (v, np.array([v])) for n, v in run.items()} for run in scores]
    runs["MemTSM as intended, no validation clips, shuffled labels", INPUTS[0], "sanity"] = shuffled
    truth, fold_of = dict(zip(ids, labels.tolist(), strict=True)), dict(zip(ids, fold.tolist(), strict=True))
    table = pd.DataFrame([
        {"input": name, **result_tables.video_row(result_tables.Method(title, kind, held), truth, fold_of, seed=0, resamples=1000),
         **dict(zip(("low_by_source", "high_by_source"), source_interval(
             {n: np.mean([run[n][0] for run in held]) for n in ids}, labels, fold, np.array(sources)), strict=True))}
        for (title, name, kind), held in runs.items()
    ]).assign(dataset="fights, chosen inside the training folds", videos=len(ids))  # fmt: skip
    print(table.drop(columns=["level", "dataset", "videos"]).round(3).to_string(index=False))
    with artifacts.replacing(presets.project_path("data/results/studies/fights_without_validation.csv")) as temporary:
        table.round(4).to_csv(temporary, index=False)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=ConvergenceWarning)
    {"features": features, "inner": inner, "decide": decide, "test": test, "outer": outer}[sys.argv[1]](*sys.argv[2:])
