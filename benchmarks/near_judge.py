"""The kept judge and scorer of near places: `python benchmarks/near_judge.py ROOT`, after `near_pretraining.py`.

data/toy_models/near, which captions, gets a LoRA adapter tuned on the training videos of a world of its own (seed 100: neither
that of pretraining nor the demo's) and merged; the anomaly scorer learns from the same videos, joined by fours. Held-out worlds of
the same seed measure both; rate and steps were chosen on them, so the demo's world (seed 0) is the one that was looked at once.
"""

import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch

from vau_lib.detectors import anomaly_scorer, frame_sampling, trained_detector
from vau_lib.evaluation import metrics
from vau_lib.synthetic import dataset as synthetic_dataset
from vau_lib.toy import dataset as toy_dataset
from vau_lib.toy import long_videos, near_videos, near_world
from vau_lib.vlm import finetuning, models
from vau_lib.workspace import artifacts, presets

TUNING = finetuning.LoraPlan(max_steps=240, learning_rate=5e-3, batch_size=16, warmup_ratio=0.1, log_steps=10, save_steps=10**9)
TAUS = (0.1, 0.03, 0.01, 0.003)
SCORER = dict(hidden=32, heads=2, head_width=8, slots=16)
PLAN = anomaly_scorer.published_plan(epochs=15, learning_rate=2e-3, batch_size=16)
KIND = "toy, trained on drawn near places"


def joined(videos: list, label: int, rng: np.random.Generator, parts: int) -> near_videos.Moments:
    """Return a long video of a random place of the middle part; the others are normal."""
    normal = [one for one in videos if not one.label]
    middle = rng.choice([n for n, one in enumerate(videos) if one.label == label])
    others = [normal[n] for n in rng.permutation(len(normal))[: parts - 1]]
    place = int(rng.integers(parts))
    return near_videos.join([*others[:place], videos[middle], *others[place:]])


def train_scorer(train: list, val: list) -> tuple[trained_detector.TrainedDetector, float, float]:
    """Return the scorer, its frame AUC and the best tau on the videos that chose its epoch."""
    rng, features, targets, chosen = np.random.default_rng(1), {}, {}, set()
    for side, videos, count in (("train", train, 240), ("val", val, 60)):
        for number in range(count):
            one, name = joined(videos, number % 2, rng, 4), f"{side}{number}"
            features[name], targets[name] = near_videos.features(one), one.inside.astype(np.uint8)
            chosen |= {name} if side == "val" else set()
    config = anomaly_scorer.ScorerConfig(width=features["train0"].shape[1], **SCORER)
    trained = trained_detector.train(features, targets, chosen, config=config, plan=PLAN, steps=48, temporal_difference=False)
    scores = {name: trained.score(features[name]) for name in chosen}
    anomalous = [name for name in chosen if targets[name].any()]
    sample = partial(frame_sampling.density_aware_sample, num_frames=near_world.MOMENTS)
    hits = {tau: np.mean([targets[n][sample(scores[n], tau=tau)].mean() for n in anomalous]) for tau in TAUS}
    return trained, float(metrics.frame_auc(scores, {name: targets[name] for name in chosen})), max(hits, key=hits.get)


def main() -> None:
    """Render or read the tuning world, train both, measure them on its held-out worlds, save them."""
    torch.set_num_threads(1)
    root, place = Path(sys.argv[1]), presets.project() / "data" / "toy_models"
    found = synthetic_dataset.make_dataset(root, num_videos=300, seed=100, duration_s=6.0, engine="processes")
    vlm = models.load(place / "near", dtype=torch.float32, local_only=True)
    encoded = {record.id: near_videos.encode(vlm, root, record) for record in found}
    train, val, test = ([encoded[r.id] for r in found if r.split == split] for split in ("train", "val", "test"))
    trained, auc, tau = train_scorer(train, val)
    print(f"scorer: frame AUC {auc:.3f} on joined videos that chose its epoch, tau {tau}", flush=True)
    rows = [row for row in near_world.instructions(found) if row["split"] == "train"]
    tuned, _ = near_world.tune(vlm, rows, root, plan=TUNING)
    tuned = tuned.replace(model=finetuning.merge(tuned.model))
    ways = {"evenly spaced": near_videos.evenly, "chosen by ATS": partial(near_videos.by_scores, score=trained.score, tau=tau)}
    short = near_videos.judge(tuned, test, {"evenly spaced": near_videos.evenly})
    print(short.assign(event=short["id"].map(toy_dataset.scenarios.event_of)).groupby("event")["right"].agg(["mean", "size"]))
    pairs = near_videos.long_pairs({one.parts[0].id: one for one in test})
    long = long_videos.summary(near_videos.judge(tuned, pairs, ways))
    print(f"short {short['right'].mean():.3f} of {len(short)}\n{long.round(3).to_string()}")
    made_by = artifacts.read_json(place / "near" / "made_by.json")
    measured = dict(short=round(float(short["right"].mean()), 4), test_videos=len(short),
                    long={row["frames"]: round(row["judgement"], 4) for _, row in long.iterrows()}, worlds_seed=100)  # fmt: skip
    tuning = dict(asdict(TUNING), rank=64, rows=len(rows), worlds_seed=100)
    models.save(tuned.replace(kind=KIND), place / "near", pretraining=made_by, tuning=tuning, measured=measured,
                as_video=True, num_frames=2 * near_world.MOMENTS, command="python benchmarks/near_judge.py ROOT")  # fmt: skip
    trained_detector.save(place / "near_scorer", trained, kind=KIND, tau=tau,
                          features="mean and largest visual token of data/toy_models/near",
                          val_frame_auc=round(auc, 4), command="python benchmarks/near_judge.py ROOT")  # fmt: skip


if __name__ == "__main__":
    main()
