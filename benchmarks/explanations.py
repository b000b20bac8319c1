"""Does looking where the scores are make the judgement better? On long SYNTHETIC videos, with a toy. One run.

- a long video is 15 close-ups joined, 90 s; in half of them one, in the middle part, shows an event of a few seconds; the
  other half is the same film with that place's normal twin, so that nothing but the event tells them apart
- the model is the kept twin, LoRA-tuned here on short close-ups; the scorer is trained on the twin's own rows of others
- frames: uniform; ATS with RANDOM weights; ATS trained on the tower's class token (which nothing taught to say anything) and
  on its picture tokens, at the paper's tau, and at the tau that put most frames into events of the videos that chose the epoch;
  and the true span (uniform where there is no event)
- last, the model is tuned on with long videos of the tuning worlds, shown as it will be asked: its ATS's frames, or even ones
Worlds: tuning, scorer and held-out have seeds of their own; the intervals are over held-out worlds.
    python benchmarks/explanations.py [SEED OF THE HELD-OUT WORLDS]
"""

import sys
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import torch

from vau_lib import explain
from vau_lib.data import answer_parsing, records, video
from vau_lib.detectors import anomaly_scorer, frame_sampling
from vau_lib.evaluation import metrics
from vau_lib.features import frame_features
from vau_lib.toy import benchmark as toy_benchmark
from vau_lib.toy import dataset as toy_dataset
from vau_lib.vlm import finetuning, inference, instruction_data, models
from vau_lib.workspace import presets

PARTS, FRAMES, STRIDE = 15, 6, 2  # close-ups in a long video; frames in a prompt; frames from a glance to the next
HELD_OUT = int(sys.argv[1]) if len(sys.argv) > 1 else 7001
SETS = {"tuning": (480, 0), "scorer": (160, 5001), f"held_out_{HELD_OUT}": (160, HELD_OUT)}  # close-ups, seed
JOINED = 240  # rows of long videos the scorer learns from, a quarter of them to choose the epoch by
SCORER = dict(hidden=32, heads=2, head_width=8, slots=16)
TAUS = (0.1, 0.03, 0.01, 0.003)  # the paper's first
PLAN = anomaly_scorer.recipe(epochs=20, learning_rate=2e-3, batch_size=16)
LONG_WORLDS = 150  # tuning worlds whose long videos the model is tuned on with
OWN_TAU = 0.01  # then; with rate and steps chosen on 60 other tuning worlds (.842; .808 at tau .1; .775 at rate 1e-3)
TUNING_ON = finetuning.LoraPlan(
    max_steps=200, learning_rate=3e-3, warmup_share=0.1, batch_size=16, log_steps=20, save_steps=10**9
)


def parts_of(found: list, place: int, anomalous: bool, rng: np.random.Generator) -> list:
    """Return the close-ups of one long video: normal ones of other worlds, and at `place` one twin of a world drawn."""
    world = rng.choice(sorted({record.group for record in found}))
    (one,) = (record for record in found if record.group == world and bool(record.label) == anomalous)
    normal = [record for record in found if not record.label and record.group != world]
    others = [normal[n] for n in rng.permutation(len(normal))[: PARTS - 1]]
    return [*others[:place], one, *others[place:]]


def closeup_rows(eye: explain.VisionTower, root: Path, found: list) -> dict[str, np.ndarray]:
    return {
        record.id: frame_features.FrameFeatures(root / record.path, eye, stride=STRIDE).features() for record in found
    }


def train_scorer(eye: explain.VisionTower, root: Path, found: list) -> tuple[anomaly_scorer.Trained, float, float]:
    """Train on joined rows, the event anywhere; return scorer, frame AUC and best tau on the videos that chose the epoch.

    A row is made from its frame alone, so rows joined are the rows of joined films.
    """
    rows, rng = closeup_rows(eye, root, found), np.random.default_rng(1)
    worlds = sorted({record.group for record in found})
    later = set(worlds[-len(worlds) // 4 :])  # worlds of the videos that choose the epoch
    sides = [[r for r in found if (r.group in later) == side] for side in (False, True)]
    features, targets, val = {}, {}, set()
    for number in range(JOINED):
        name, side = str(number), number % 4 == 3
        chosen = parts_of(sides[side], int(rng.integers(PARTS)), bool(number // 4 % 2), rng)
        features[name] = np.concatenate([rows[record.id] for record in chosen])
        truth = [anomaly_scorer.frame_targets(r, len(rows[r.id]), stride=STRIDE) for r in chosen]
        targets[name] = np.concatenate(truth)
        val |= {name} if side else set()
    config = anomaly_scorer.ScorerConfig(width=features["0"].shape[1], **SCORER)
    trained = anomaly_scorer.train(features, targets, val, config=config, plan=PLAN, steps=len(features["0"]))
    scores = {name: trained.score(features[name]) for name in val}
    hits = {
        tau: np.mean([targets[n][frame_sampling.density_aware_sample(scores[n], FRAMES, tau=tau)].mean() for n in val])
        for tau in TAUS
    }
    return trained, metrics.frame_auc(scores, {name: targets[name] for name in val}), max(hits, key=hits.get)


def join(root: Path, found: list) -> list[dict]:
    """Write the long held-out videos; return a judgement row each, with world, event (frames) and file."""
    rng, rows = np.random.default_rng(2), []
    for world in sorted({record.group for record in found}):
        normal = [record for record in found if not record.label and record.group != world]
        others = [normal[n] for n in rng.permutation(len(normal))[: PARTS - 1]]
        place = int(rng.integers(PARTS // 4, PARTS - PARTS // 4))
        question = str(rng.choice(toy_dataset.QUESTIONS["judgement"]))
        for one in (record for record in found if record.group == world):
            path = Path("long") / f"{one.id}.mp4"
            if not (root / path).exists():
                films = [root / record.path for record in (*others[:place], one, *others[place:])]
                frames = [video.read_frames(film, range(video.probe(film).num_frames)) for film in films]
                video.write_video(root / path, np.concatenate(frames), fps=one.fps, crf=12)
            before = place * one.num_frames
            event = np.flatnonzero(records.frame_labels(one)) + before
            answer = toy_dataset.answer("judgement", toy_dataset.event_of(one))
            rows.append(dict(id=one.id, level="video", task="judgement", video=str(path), span_s=None, question=question,
                             answer=answer, world=world, event=event))  # fmt: skip
    return rows


def by_scores(eye: explain.VisionTower, root: Path, score, tau: float, row: dict) -> np.ndarray:
    glances = frame_features.FrameFeatures(root / row["video"], eye, stride=STRIDE)
    return frame_sampling.choose_frames(score(glances.features()), glances.num_frames, FRAMES, stride=STRIDE, tau=tau)


def evenly(root: Path, row: dict) -> np.ndarray:
    return video.sample_index(video.probe(root / row["video"]).num_frames, FRAMES)


def true_span(root: Path, row: dict) -> np.ndarray:
    event = row["event"]
    return event[video.sample_index(len(event), FRAMES)] if len(event) else evenly(root, row)


def tune_on(vlm: models.VLM, root: Path, rows: list[dict], choose) -> models.VLM:
    """Return a copy of the model, its adapter trained further on long videos shown as `choose(row)` says."""
    picks = {row["id"]: choose(row) for row in rows}
    fresh = vlm.replace(model=deepcopy(vlm.model))
    finetuning.fit(
        fresh,
        instruction_data.InstructionSamples(rows, root, fresh, picks=lambda row: picks[row["id"]]),
        plan=TUNING_ON,
        progress=False,
    )
    return fresh


def interval(values: np.ndarray, worlds: np.ndarray) -> str:
    """Return a mean with 95 % over worlds, whose twins stay together."""
    each = np.array([values[worlds == world].mean() for world in np.unique(worlds)])
    drawn = each[np.random.default_rng(0).integers(0, len(each), (4000, len(each)))].mean(1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return f"{each.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


def main() -> None:
    torch.set_num_threads(1)
    project = presets.project()
    root = project / "data" / "synthetic" / "explanations"
    found = {}
    for name, (count, seed) in SETS.items():
        split = {"test" if name.startswith("held_out") else "train": 1.0}
        found[name] = toy_dataset.make_dataset(
            root / name, num_videos=count, seed=seed, splits=split, engine="processes"
        )
    twin = toy_benchmark.taught(project / "data" / "toy_models" / "internvl")
    rows = toy_dataset.instructions(found["tuning"])
    tuned, _ = toy_benchmark.tune_judgement(twin, root / "tuning", rows, folder=root / "adapter")
    held = root / f"held_out_{HELD_OUT}"
    short = [row for row in toy_dataset.instructions(found[held.name]) if row["task"] == "judgement"]
    accuracy, _ = toy_benchmark.judge(tuned, held, short, frames=FRAMES)
    print(f"{tuned.label}: judgement on {len(short)} short held-out close-ups {accuracy['judgement']:.3f}")

    ways = {"uniform": partial(evenly, held)}
    chance = explain.random_scorer(twin.model.config.vision_config.hidden_size).score
    ways["ATS, RANDOM weights"] = partial(by_scores, explain.VisionTower(twin), held, chance, TAUS[0])
    for rows_of, describe in (("class token", None), ("picture tokens", explain.mean_and_max_tokens)):
        eye = explain.VisionTower(twin, describe=describe)
        trained, known, tau = train_scorer(eye, root / "scorer", found["scorer"])
        if describe:
            facts = dict(
                rows="mean and largest picture token of the kept InternVL twin", tau=tau, val_frame_auc=round(known, 4)
            )
            anomaly_scorer.save_trained(
                project / "data" / "toy_models" / "scorer", trained, kind="toy, trained on drawn close-ups", **facts
            )
        print(f"scorer of {rows_of}: frame AUC {known:.3f}, best tau {tau}, on joined rows that chose its epoch")
        for each in dict.fromkeys((TAUS[0], tau)):
            ways[f"ATS, {rows_of}, tau {each}"] = partial(by_scores, eye, held, trained.score, each)
    last = trained.score, OWN_TAU  # of picture tokens
    ways["true span"] = partial(true_span, held)
    tuning = root / "tuning"
    few = set(sorted({record.group for record in found["tuning"]})[:LONG_WORLDS])
    long = join(tuning, [record for record in found["tuning"] if record.group in few])
    asked = join(held, found[held.name])
    shown = {name: (tuned, choose) for name, choose in ways.items()}
    own = tune_on(tuned, tuning, long, partial(by_scores, eye, tuning, *last))
    even = tune_on(tuned, tuning, long, partial(evenly, tuning))
    shown["uniform, tuned on so"] = (even, partial(evenly, held))
    shown["ATS, tuned on so"] = (own, partial(by_scores, eye, held, *last))
    report(held, asked, shown)


def report(held: Path, asked: list[dict], ways: dict) -> None:
    """Print each way's accuracy, and its gain over uniform frames with the same tuning."""
    worlds, right = np.array([row["world"] for row in asked]), {}
    anomalous = np.array([len(row["event"]) > 0 for row in asked])
    print(f"\n{len(asked)} long videos of {len(set(worlds))} worlds, half with an event; {FRAMES} frames shown")
    for name, (vlm, choose) in ways.items():
        picks = {row["id"]: choose(row) for row in asked}
        data = instruction_data.InstructionSamples(
            asked, held, vlm, picks=lambda row, picks=picks: picks[row["id"]], answers=False
        )
        said = inference.answers(vlm, data)
        right[name] = np.array(
            [
                answer_parsing.parse_verdict(a) == answer_parsing.parse_verdict(r["answer"])
                for a, r in zip(said, asked, strict=True)
            ]
        )
        hits = [np.isin(picks[row["id"]], row["event"]).mean() for row in asked if len(row["event"])]
        total = inference.judgement_accuracy(said, asked)
        print(
            f"  {name:31} accuracy {total['judgement']:.3f} [{total['low']:.3f}, {total['high']:.3f}], named {total['name']:.3f}; "
            f"event found {right[name][anomalous].mean():.3f}, no false alarm {right[name][~anomalous].mean():.3f}; "
            f"frames inside events {np.mean(hits):.3f}",
            flush=True,
        )
    for name in list(ways)[1:]:
        peer = "uniform, tuned on so" if name == "ATS, tuned on so" else "uniform"
        gap = right[name].astype(float) - right[peer]
        print(f"  {name} - {peer}: {interval(gap, worlds)} (95 % over worlds)")


if __name__ == "__main__":
    main()
