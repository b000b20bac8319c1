"""Does tuning on generated instruction rows judge, or say one thing always? Balanced accuracy on held-out worlds.

- rows are `export.instructions`: captions, judgements of event and video, descriptions, analyses, each in several wordings
- close-ups: the world the kept tiny model was pretrained on; generated: videos as `vau generate` renders them, seen from far
- "answers shuffled" is the control: the same rows, each task's answers dealt to other rows
- "one class twice" leaves out the normal videos' event-level judgements, as rows were before they were balanced
- `--side N` shows a square of N pixels around the main actor instead of what a world shows: a close-up is 56 of 160, a generated
  video 192 x 144; `--picture` gives the model more pixels of it (InternVL interpolates its positions). Both change how many of the
  model's patches a person spans, and nothing else
- `--probe` trains no language model: a logistic regression tells anomalous videos by what the frozen tower hands on of their frames
- worlds of training and test are apart; the question is the one that most rows ask, the answer is read by `parse_verdict`
- a training that is written is not done again: its row is of this world, rows, seed and number of steps
    python benchmarks/generated_rows.py closeups|generated [--side N] [--picture N] [--steps 400] [--arms balanced ...] [--write]
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vau_lib.data import answer_parsing, records, video
from vau_lib.evaluation import metrics, result_tables
from vau_lib.synthetic import dataset as synthetic_dataset
from vau_lib.synthetic import export, scenarios, text_to_video
from vau_lib.toy import benchmark as toy_benchmark
from vau_lib.toy import dataset as toy_dataset
from vau_lib.toy import tiny_vlm
from vau_lib.vlm import chat, finetuning, inference, instruction_data, models
from vau_lib.workspace import presets

CLOSE_UPS = {"train": (480, 0), "test": (160, 71001)}  # videos, seed
GENERATED = {"train": (240, 0), "test": (120, 71001)}
NUM_FRAMES = 6
PLAN = finetuning.LoraPlan(learning_rate=3e-3, warmup_ratio=0.1, batch_size=16, log_steps=100, save_steps=10**9)


def close_up_rows(folder: Path, side: str) -> tuple[Path, list[dict]]:
    """Return the folder of some close-ups and their generated rows."""
    count, seed = CLOSE_UPS[side]
    root = folder / "token_accuracy" / (side if side == "train" else f"generated_rows_{seed}")
    found = toy_dataset.make_dataset(root, num_videos=count, seed=seed, splits={side: 1.0}, engine="processes")
    drawn = toy_dataset.close_up_scenarios(count, seed=seed)
    rows = []
    for record, scenario in zip(found, drawn, strict=True):
        truth = SimpleNamespace(scenario=scenario, events=record.events)
        rows += export.instructions(record.id, truth, video=record.path, split=side)
    return root, rows


def generated_rows(folder: Path, side: str) -> tuple[Path, list[dict]]:
    """Return the folder of videos as `vau generate` makes them and its rows."""
    count, seed = GENERATED[side]
    root = folder / f"generated_rows_{side}"
    chosen = scenarios.covering_scenarios(count, seed)
    text_to_video.run(text_to_video.Procedural(), chosen, root, seed=seed, workers=2)
    return root, instruction_data.read_rows({root / "instructions.jsonl": root})


def square_rows(folder: Path, side: str, *, world: str, pixels: int, videos: dict[str, int]) -> tuple[Path, list[dict]]:
    """Return the folder of squares of `pixels` around the main actor of a world's first videos, and their rows."""
    count, seed = (CLOSE_UPS if world == "closeups" else GENERATED)[side]
    count = videos.get(side, count)
    drawn = (toy_dataset.close_up_scenarios if world == "closeups" else scenarios.covering_scenarios)(count, seed=seed)
    root = folder / f"generated_rows_{world}_{pixels}_{count}_{side}"
    items = [(f"{number:04d}_{scenario.event}", scenario, side) for number, scenario in enumerate(drawn)]
    write = partial(_write_square, pixels=pixels)
    if not (root / "records.jsonl").is_file():  # written last
        synthetic_dataset.write_items(root, items, write, dataset=root.name, engine="processes", workers=2)
    found = records.read_records(root / "records.jsonl")
    rows = []
    for record, scenario in zip(found, drawn, strict=True):
        rows += export.instructions(
            record.id, SimpleNamespace(scenario=scenario, events=record.events), video=record.path, split=side
        )
    return root, rows


def _write_square(item: synthetic_dataset.Item, *, root: Path, pixels: int):
    """Write a video as `toy_dataset.close_up` sees it, in a square of another size."""
    name, scenario, _ = item
    rendering, rng = synthetic_dataset.render(scenario), np.random.default_rng([scenario.seed, 12])
    moment_s = rendering.events[0].start_s if rendering.events else scenario.duration_s * rng.uniform(0.25, 0.5)
    boxes, room = rendering.boxes[:, 0], np.array([scenario.width, scenario.height])
    seen = np.flatnonzero(~np.isnan(boxes[:, 0]))
    box = boxes[seen[np.abs(seen - moment_s * scenario.fps).argmin()]] if len(seen) else np.r_[room, 0, 0]
    left, top = np.clip((box[:2] + box[2:] - pixels) / 2, 0, np.maximum(room - pixels, 0)).astype(int)
    frames = rendering.frames[:, top : top + pixels, left : left + pixels]
    video.write_video(root / "videos" / f"{name}.mp4", frames, fps=scenario.fps, crf=12)
    return rendering.events


def with_pixels(vlm: models.VLM, side: int) -> models.VLM:
    """Return a tiny InternVL that reads squares of `side` pixels, by interpolated positions."""
    vlm.processor.image_processor.size = {"height": side, "width": side}
    vlm.processor.image_seq_length = vlm.model.config.image_seq_length = (side // tiny_vlm.PATCH_PX // tiny_vlm.PATCH_MERGE) ** 2
    return vlm


def one_class_twice(rows: list[dict]) -> list[dict]:
    """Return the rows as they were: a normal video had no event-level judgement and description."""
    normal = {row["video"] for row in rows if row["task"] == "judgement" and answer_parsing.parse_verdict(row["answer"]) == 0}
    return [row for row in rows if row["level"] != "event" or row["video"] not in normal]


def balanced_accuracy(chosen: dict[str, int], labels: dict[str, int]) -> float:
    """Return the mean of both classes' recalls over videos."""
    if len(set(labels.values())) < 2:
        raise metrics.OneClassError("balanced accuracy needs both classes")
    return balanced_accuracy_score(list(labels.values()), [chosen[name] for name in labels])


def judged(vlm: models.VLM, rows: list[dict], root: Path) -> dict[str, float]:
    """Return balanced accuracy of the video-level judgements, its interval over videos, and how often "anomaly" is the answer."""
    exam = [
        {**row, "question": vlm.question or row["question"]}
        for row in rows
        if (row["level"], row["task"]) == ("video", "judgement")
    ]
    _, texts = inference.judge(vlm, exam, root, num_frames=NUM_FRAMES)
    truth = np.array([answer_parsing.parse_verdict(row["answer"]) for row in exam])
    read = [answer_parsing.parse_verdict(text) for text in texts]
    found = np.array([1 - true if verdict is None else verdict for verdict, true in zip(read, truth, strict=True)])  # none is wrong
    chosen, labels = (dict(zip((row["video"] for row in exam), side, strict=True)) for side in (found, truth))
    balanced = metrics.bootstrap_ci(balanced_accuracy, chosen, labels, rng=np.random.default_rng(0))
    facts = dict(balanced_accuracy=balanced.value, low=balanced.low, high=balanced.high)
    return facts | dict(answers_anomaly=np.mean([one == 1 for one in read]), no_verdict=np.mean([one is None for one in read]))


def probe(vlm: models.VLM, train: list[dict], train_root: Path, test: list[dict], test_root: Path) -> dict[str, float]:
    """Return the AUC of a logistic regression on the tower's visual tokens: their mean, largest values and spread over time."""
    features, labels = [], []
    for rows, root in ((train, train_root), (test, test_root)):
        asked = [row for row in rows if (row["level"], row["task"]) == ("video", "judgement")]
        samples = instruction_data.InstructionSamples(asked, root, vlm, random=False, num_frames=NUM_FRAMES)
        labels.append([answer_parsing.parse_verdict(row["answer"]) for row in asked])
        found = []
        for place in range(len(asked)):
            images = chat.prepare_images(vlm, chat.to_images(samples.frames(place)[0]))
            with torch.no_grad():
                tokens = torch.stack(chat.image_tokens(chat.encode_images(vlm.model, images)))  # (frames, tokens, width)
            found.append(torch.cat([tokens.mean((0, 1)), tokens.amax((0, 1)), tokens.std(0).amax(0)]).numpy())
        features.append(np.stack(found))
    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)).fit(features[0], labels[0])
    scores, truth = (dict(enumerate(side)) for side in (fitted.decision_function(features[1]), labels[1]))
    auc = metrics.bootstrap_ci(
        lambda chosen, true: roc_auc_score(list(true.values()), [chosen[name] for name in true]), scores, truth,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    fit = roc_auc_score(labels[0], fitted.decision_function(features[0]))
    return dict(auc=auc.value, low=auc.low, high=auc.high, training_auc=fit, videos=len(truth))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("world", choices=["closeups", "generated"])
    parser.add_argument("--side", type=int, default=0, help="pixels of the square that is shown, 0 for what the world shows")
    parser.add_argument("--videos", type=int, nargs=2, metavar=("TRAIN", "TEST"), help="with --side: fewer of them, the first")
    parser.add_argument("--picture", type=int, default=0, help="side of the model's picture in pixels, 0 for its own (112)")
    parser.add_argument("--probe", action="store_true", help="what the frozen tower shows, by a logistic regression")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--arms", nargs="*", help="only these rows: their first words")
    parser.add_argument("--write", action="store_true", help="keep each row for RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    project = presets.project()
    make = close_up_rows if options.world == "closeups" else generated_rows
    if options.side:
        fewer = dict(zip(("train", "test"), options.videos or (), strict=False))
        make = partial(square_rows, world=options.world, pixels=options.side, videos=fewer)
    view = ", ".join([options.world, *(f"{name} {vars(options)[name]}" for name in ("side", "picture") if vars(options)[name])])
    (train_root, train), (test_root, test) = (make(project / "data" / "synthetic", side) for side in ("train", "test"))
    if options.probe:
        vlm = toy_benchmark.load_pretrained(project / "data" / "toy_models" / "internvl")
        vlm = with_pixels(vlm, options.picture) if options.picture else vlm
        print(
            {"view": view}
            | {name: round(float(value), 3) for name, value in probe(vlm, train, train_root, test, test_root).items()}
        )
        return
    arms = {"balanced": train, "one class twice": one_class_twice(train)}
    arms["answers shuffled"] = instruction_data.shuffle_answers(train, seed=1)
    place = project / "data" / "results" / "studies" / "curves" / "generated_rows.csv"
    table = pd.read_csv(place).to_dict("records") if options.write and place.is_file() else []
    done = {(row["world"], row["rows"], row["seed"], row["steps"]) for row in table}
    for method, rows in arms.items():
        if options.arms and method.split()[0] not in options.arms:
            continue
        for seed in range(options.seeds):
            facts = dict(world=view, rows=method, seed=seed, steps=options.steps)
            if tuple(facts.values()) in done:
                continue
            vlm = toy_benchmark.load_pretrained(project / "data" / "toy_models" / "internvl")
            vlm = with_pixels(vlm, options.picture) if options.picture else vlm
            plan = replace(PLAN, max_steps=options.steps, seed=seed)
            tuned, losses = finetuning.tune_lora(vlm, rows, train_root, plan=plan, num_frames=NUM_FRAMES)
            found = judged(tuned, test, test_root)
            table.append({**facts, "number": len(rows), **found, "loss": losses["loss"].iloc[-1], "model": vlm.label})
            print(pd.DataFrame(table[-1:]).round(3).to_string(index=False), flush=True)
            if options.write:
                result_tables.write_curve(place, pd.DataFrame(table).round(4))


if __name__ == "__main__":
    main()
