"""Making and measuring the tiny models that notebook 09 starts from: `python -m vau_lib.toy.benchmark FAMILY`.

Renders the synthetic close-ups, pretrains a random tiny model on them and saves it in data/toy_models/FAMILY. Then fine-tunes it
by LoRA on instructions and measures its judgements of held-out worlds, beside baselines: the majority answer, black frames, and
shuffled answers. Of InternVL a small adapter that judges is kept as well: `vau guard` uses it.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import torch

from vau_lib.data import records
from vau_lib.data.records import VideoRecord
from vau_lib.toy import dataset as toy_dataset
from vau_lib.toy import pretraining, tiny_vlm
from vau_lib.vlm import finetuning, inference, instruction_data, models
from vau_lib.workspace import artifacts, presets

NUM_VIDEOS = 1200
TUNING = finetuning.LoraPlan(max_steps=160, learning_rate=3e-3, warmup_ratio=0.1, batch_size=16, log_steps=20, save_steps=10**9)
JUDGE = dict(r=16, alpha=32, plan=replace(TUNING, max_steps=140, learning_rate=5e-3))  # of the adapter that is kept
JUDGE_WORLDS = dict(num_videos=300, seed=1, splits={"train": 0.7, "test": 0.3})  # those of notebook 09; pretraining never saw them
NUM_FRAMES = pretraining.PretrainingPlan().num_frames
JUDGEMENTS = (toy_dataset.NEGATIVE, *(toy_dataset.answer("judgement", event) for event in toy_dataset.EVENTS))


def majority_accuracy(train: Sequence[dict], test: Sequence[dict]) -> dict[str, float]:
    """Return the accuracy of always giving the training rows' most frequent judgement."""
    most = pd.Series([row["answer"] for row in train]).mode()[0]
    return inference.judgement_accuracy([most] * len(test), test)


def split_rows(video_records: Sequence[VideoRecord], *, seed: int = 0) -> tuple[list[dict], list[dict], list[dict]]:
    """Return instruction rows: all of the training split, the judgements among them, the judgements of the test split."""
    rows = toy_dataset.instructions(video_records, seed=seed)
    train = [row for row in rows if row["split"] == "train"]
    judgements = [row for row in rows if row["task"] == "judgement"]
    return train, *([row for row in judgements if row["split"] == split] for split in ("train", "test"))


def forced_choice_accuracy(vlm: models.VLM, root: Path, rows: Sequence[dict]) -> dict[str, float]:
    """Return the accuracy of the likeliest of all judgements: a fair reading of a model that does not know their form."""
    data = instruction_data.InstructionSamples(rows, root, vlm, random=False, num_frames=NUM_FRAMES)
    return inference.judgement_accuracy(inference.likeliest_answers(vlm, data, JUDGEMENTS), rows)


def make_tiny_model(
    family: str, root: Path, out: Path, *, num_videos: int = NUM_VIDEOS, workers: int = 2,
    plan: pretraining.PretrainingPlan | None = None,
) -> models.VLM:  # fmt: skip
    """Render the close-ups in `root`, pretrain a tiny model on them and save it in `out`.

    Its made_by holds the plan, the last losses, and the seconds (wall, CPU) of both steps.

    Args:
        family: "internvl" or "qwen2_5_vl".
        root: where the close-ups are, or will be.
        out: folder of the model.
        num_videos: how many close-ups to render.
        workers: processes that render.
        plan: length and learning rates, the defaults where None.
    """
    plan, begin = plan or pretraining.PretrainingPlan(), _now()
    video_records = toy_dataset.make_dataset(root, num_videos=num_videos, engine="processes", workers=workers)
    rendered = _now()
    vlm, curves = pretraining.pretrain(tiny_vlm.tiny(family, seed=plan.seed), root, video_records, plan=plan)
    seconds = {"rendering": _between(begin, rendered), "pretraining": _between(rendered, _now())}
    loss = {name: table.iloc[-1].round(3).to_dict() for name, table in curves.items()}
    facts = dict(pretraining=asdict(plan), num_videos=num_videos, events=list(toy_dataset.EVENTS))
    models.save(vlm, out, **facts, seconds=seconds, loss=loss)
    return vlm


def measure(
    root: Path, out: Path, *, plan: finetuning.LoraPlan = TUNING, seed: int = 0, log: Callable[[str], object] | None = None
) -> dict:
    """Fine-tune the model saved in `out` and its baselines, judge the test split, save and return the accuracies."""
    video_records, begin, measured = records.read_records(root / "records.jsonl"), _now(), {}

    def note(name: str, accuracy: dict) -> None:
        measured[name] = {key: round(value, 4) for key, value in accuracy.items()}
        if log is not None:
            log(f"{name}: {measured[name]}")

    train, judging, test = split_rows(video_records, seed=seed)
    vlm = load_pretrained(out)
    note("majority", majority_accuracy(judging, test))
    note("untuned", inference.judge(vlm, test, root, num_frames=NUM_FRAMES)[0])
    note("untuned, forced to choose", forced_choice_accuracy(vlm, root, test))
    started = _now()
    tuned, _ = finetuning.tune_lora(vlm, train, root, plan=plan, num_frames=NUM_FRAMES)
    measured["tuning seconds"] = dict(zip(("wall", "cpu"), _between(started, _now()), strict=True))
    note("tuned", inference.judge(tuned, test, root, num_frames=NUM_FRAMES)[0])
    note("blind", inference.judge(tuned, test, root, num_frames=NUM_FRAMES, blind=True)[0])
    noise = instruction_data.shuffle_answers(train, seed=seed + 1)
    noisy, _ = finetuning.tune_lora(load_pretrained(out), noise, root, plan=plan, num_frames=NUM_FRAMES)
    note("shuffled answers", inference.judge(noisy, test, root, num_frames=NUM_FRAMES)[0])
    measured["seconds"] = dict(zip(("wall", "cpu"), _between(begin, _now()), strict=True))
    made_by = artifacts.read_json(out / "made_by.json")
    artifacts.write_json(out / "made_by.json", made_by | {"measured": measured})
    return measured


def make_judge(root: Path, model: Path, out: Path, *, seed: int = 0) -> dict[str, float]:
    """Tune a small adapter on worlds that pretraining never saw, save it in `out`; return its accuracy on held-out ones."""
    found = toy_dataset.make_dataset(root, **JUDGE_WORLDS, engine="processes")
    train, _, test = split_rows(found, seed=seed)
    tuned, _ = finetuning.tune_lora(load_pretrained(model), train, root, num_frames=NUM_FRAMES, **JUDGE)
    accuracy, _ = inference.judge(tuned, test, root, num_frames=NUM_FRAMES)
    facts = {key: round(value, 4) for key, value in accuracy.items()}
    finetuning.save_adapter(tuned, out, rows=len(train), worlds_seed=JUDGE_WORLDS["seed"], measured=facts)
    return facts


def _now() -> tuple[float, float]:
    used = os.times()
    return time.perf_counter(), used.user + used.system + used.children_user + used.children_system


def _between(then: tuple[float, float], now: tuple[float, float]) -> list[int]:
    return [round(now[0] - then[0]), round(now[1] - then[1])]


def load_pretrained(out: Path) -> models.VLM:
    """Return the saved tiny model, before fine-tuning."""
    return models.load(out, dtype=torch.float32, local_only=True)


def main() -> None:
    """Read the command line, make the models, print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", default=["internvl", "qwen2_5_vl"])
    parser.add_argument("--videos", type=int, default=NUM_VIDEOS)
    options = parser.parse_args()
    torch.set_num_threads(1)  # toy widths are slower with more
    for family in options.families:
        place = presets.project() / "data"
        root = place / "synthetic" / "closeups_toy"
        make_tiny_model(family, root, place / "toy_models" / family, num_videos=options.videos)
        measure(root, place / "toy_models" / family, log=print)
        if family == "internvl":
            judge = place / "toy_models" / "judge"
            print("judge:", make_judge(place / "synthetic" / "closeups_judge", place / "toy_models" / family, judge))


if __name__ == "__main__":
    main()
