"""Make the twin that notebook 09 starts from, from nothing, and measure what it can do: `python -m vau_lib.twinning FAMILY`.

Films the close-up world, teaches a random twin stills and captions, keeps it in data/toy_models/FAMILY; then tunes it by LoRA on
instructions and answers for held-out worlds, beside what a guess is worth: the majority, black frames, shuffled answers.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
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

TUNING = finetuning.LoraPlan(
    max_steps=160, learning_rate=3e-3, warmup_ratio=0.1, batch_size=16, log_steps=20, save_steps=10**9
)

FRAMES = pretraining.CaptionSamples().frames

JUDGEMENTS = (toy_dataset.NEGATIVE, *(toy_dataset.answer("judgement", event) for event in toy_dataset.EVENTS))


def majority(train: Sequence[dict], test: Sequence[dict]) -> dict[str, float]:
    """Return the accuracy of always giving the training rows' most frequent judgement."""
    most = pd.Series([row["answer"] for row in train]).mode()[0]
    return inference.judgement_accuracy([most] * len(test), test)


def split_rows(found: Sequence[VideoRecord], *, seed: int = 0) -> tuple[list[dict], list[dict], list[dict]]:
    """Return instruction rows: (to train on, judgements among them, judgements of the test worlds)."""
    rows = toy_dataset.instructions(found, seed=seed)
    train = [row for row in rows if row["split"] == "train"]
    judging = [row for row in rows if row["task"] == "judgement"]
    return train, *([row for row in judging if row["split"] == split] for split in ("train", "test"))


def forced(vlm: models.VLM, root: Path, rows: Sequence[dict], *, frames: int = FRAMES) -> dict[str, float]:
    """Return the accuracy of a model made to choose among the judgements: the fair reading before it knows their form."""
    data = instruction_data.InstructionSamples(rows, root, vlm, random=False, num_frames=frames)
    return inference.judgement_accuracy(inference.likeliest_answers(vlm, data, JUDGEMENTS), rows)


def make(
    family: str, root: Path, out: Path, *, num_videos: int = NUM_VIDEOS, workers: int = 2,
    lessons: pretraining.CaptionSamples | None = None,
) -> models.VLM:  # fmt: skip
    """Film, teach and keep a twin in `out`; its made_by says how, and the seconds (wall, CPU) it took."""
    lessons, begin = lessons or pretraining.CaptionSamples(), _now()
    found = toy_dataset.make_dataset(root, num_videos=num_videos, engine="processes", workers=workers)
    filmed = _now()
    twin, curves = pretraining.teach(tiny_vlm.tiny(family, seed=lessons.seed), root, found, lessons=lessons)
    seconds = {"film": _between(begin, filmed), "teach": _between(filmed, _now())}
    loss = {name: table.iloc[-1].round(3).to_dict() for name, table in curves.items()}
    facts = dict(lessons=asdict(lessons), num_videos=num_videos, events=list(toy_dataset.EVENTS))
    models.save(twin, out, **facts, seconds=seconds, loss=loss)
    return twin


def measure(
    root: Path,
    out: Path,
    *,
    plan: finetuning.LoraPlan = TUNING,
    seed: int = 0,
    log: Callable[[str], object] | None = None,
) -> dict:
    """Tune the twin kept in `out` and its peers, answer for the test worlds, and keep and return the accuracies."""
    found, begin, measured = records.read_records(root / "records.jsonl"), _now(), {}

    def note(name: str, accuracy: dict) -> None:
        measured[name] = {key: round(value, 4) for key, value in accuracy.items()}
        if log is not None:
            log(f"{name}: {measured[name]}")

    train, judging, test = split_rows(found, seed=seed)
    twin = taught(out)
    note("majority", majority(judging, test))
    note("untuned", inference.judge(twin, test, root, num_frames=FRAMES)[0])
    note("untuned, forced to choose", forced(twin, root, test))
    started = _now()
    tuned, _ = finetuning.tune_lora(twin, train, root, plan=plan, num_frames=FRAMES)
    measured["tuning seconds"] = dict(zip(("wall", "cpu"), _between(started, _now()), strict=True))
    note("tuned", inference.judge(tuned, test, root, num_frames=FRAMES)[0])
    note("blind", inference.judge(tuned, test, root, num_frames=FRAMES, blind=True)[0])
    noise = instruction_data.shuffle_answers(train, seed=seed + 1)
    noisy, _ = finetuning.tune_lora(taught(out), noise, root, plan=plan, num_frames=FRAMES)
    note("shuffled answers", inference.judge(noisy, test, root, num_frames=FRAMES)[0])
    measured["seconds"] = dict(zip(("wall", "cpu"), _between(begin, _now()), strict=True))
    made_by = artifacts.read_json(out / "made_by.json")
    artifacts.write_json(out / "made_by.json", made_by | {"measured": measured})
    return measured


def _now() -> tuple[float, float]:
    used = os.times()
    return time.perf_counter(), used.user + used.system + used.children_user + used.children_system


def _between(then: tuple[float, float], now: tuple[float, float]) -> list[int]:
    return [round(now[0] - then[0]), round(now[1] - then[1])]


def taught(out: Path) -> models.VLM:
    """Return the kept twin as it was before tuning."""
    return models.load(out, dtype=torch.float32, local_only=True)


def main() -> None:
    """Read the command line, make twins, print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", default=["internvl", "qwen2_5_vl"])
    parser.add_argument("--videos", type=int, default=NUM_VIDEOS)
    given = parser.parse_args()
    torch.set_num_threads(1)  # toy widths are slower with more
    for family in given.families:
        place = presets.project() / "data"
        root = place / "synthetic" / "closeups_twin"
        make(family, root, place / "toy_models" / family, num_videos=given.videos)
        measure(root, place / "toy_models" / family, log=print)


if __name__ == "__main__":
    main()
