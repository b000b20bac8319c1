"""Make the twin that notebook 09 starts from, from nothing, and measure what it can do: `python -m vau_lib.twinning FAMILY`.

Films the close-up world, teaches a random twin stills and captions, keeps it in data/twins/FAMILY; then tunes it by LoRA on
instructions and answers for held-out worlds, beside what a guess is worth: the majority, black frames, shuffled answers.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from vau_lib import closeups, presets, seeing, vlm
from vau_lib.records import VideoRecord

NUM_VIDEOS = 1200
TUNING = vlm.LoraPlan(
    max_steps=120, learning_rate=2e-3, warmup_share=0.1, batch_size=16, log_steps=20, save_steps=10**9
)
FRAMES = seeing.Lessons().frames


def tune(
    speaker: vlm.Speaker, root: Path, rows: Sequence[dict], *, plan: vlm.LoraPlan = TUNING, frames: int = FRAMES,
    folder: Path | None = None, progress: bool = False,
) -> tuple[vlm.Speaker, pd.DataFrame]:  # fmt: skip
    """Return the speaker with an adapter trained on instruction rows, and the loss curve. The speaker's weights stay."""
    tuned = speaker.but(model=vlm.lora(speaker.model, seed=plan.seed), kind=f"{speaker.kind}, LoRA")
    data = vlm.Samples(rows, root, tuned, num_frames=frames, seed=plan.seed)
    return tuned, vlm.fit(tuned, data, plan=plan, folder=folder, progress=progress)


def shuffled(rows: Sequence[dict], *, seed: int) -> list[dict]:
    """Return the rows with the answers of each task dealt out at random among them."""
    rng, dealt = np.random.default_rng(seed), list(rows)
    for task in {row["task"] for row in rows}:
        places = [n for n, row in enumerate(rows) if row["task"] == task]
        for place, source in zip(places, rng.permutation(places), strict=True):
            dealt[place] = {**rows[place], "answer": rows[source]["answer"]}
    return dealt


def judge(
    speaker: vlm.Speaker, root: Path, rows: Sequence[dict], *, frames: int = FRAMES, blind: bool = False
) -> tuple[dict[str, float], list[str]]:
    """Return (accuracy of judgement and of name, answers) on rows of the task judgement, frames from interval middles."""
    data = vlm.Samples(rows, root, speaker, answers=False, random=False, num_frames=frames, blind=blind)
    said = vlm.answers(speaker, data)
    return vlm.judgement_accuracy(said, rows), said


def majority(train: Sequence[dict], test: Sequence[dict]) -> dict[str, float]:
    """Return the accuracy of always giving the training rows' most frequent judgement."""
    most = pd.Series([row["answer"] for row in train]).mode()[0]
    return vlm.judgement_accuracy([most] * len(test), test)


def split_rows(found: Sequence[VideoRecord], *, seed: int = 0) -> tuple[list[dict], list[dict], list[dict]]:
    """Return instruction rows: (to train on, judgements among them, judgements of the test worlds)."""
    rows = closeups.instructions(found, seed=seed)
    train = [row for row in rows if row["split"] == "train"]
    judging = [row for row in rows if row["task"] == "judgement"]
    return train, *([row for row in judging if row["split"] == split] for split in ("train", "test"))


def make(
    family: str, root: Path, out: Path, *, num_videos: int = NUM_VIDEOS, workers: int = 2,
    lessons: seeing.Lessons | None = None, plan: vlm.LoraPlan = TUNING, peers: bool = True,
) -> dict:  # fmt: skip
    """Make and keep a taught twin in `out`; return what was measured: accuracies and seconds of every stage."""
    lessons, clock = lessons or seeing.Lessons(), {"begin": time.perf_counter()}
    found = closeups.make_dataset(root, num_videos=num_videos, engine="processes", workers=workers)
    clock["filmed"] = time.perf_counter()
    twin, curves = seeing.teach(vlm.tiny(family, seed=lessons.seed), root, found, lessons=lessons)
    clock["taught"] = time.perf_counter()
    train, judging, test = split_rows(found, seed=lessons.seed)
    measured = {"untuned": judge(twin, root, test)[0], "majority": majority(judging, test)}
    vlm.save(twin, out, lessons=asdict(lessons), num_videos=num_videos, events=list(closeups.EVENTS))
    tuned, _ = tune(twin, root, train, plan=plan)
    clock["tuned"] = time.perf_counter()
    measured["tuned"], measured["blind"] = (judge(tuned, root, test, blind=blind)[0] for blind in (False, True))
    if peers:
        fresh = vlm.load(out, dtype=torch.float32, local_only=True)
        measured["shuffled answers"] = judge(tune(fresh, root, shuffled(train, seed=1), plan=plan)[0], root, test)[0]
    moments = list(clock)
    measured["seconds"] = {b: round(clock[b] - clock[a]) for a, b in zip(moments, moments[1:], strict=False)}
    measured["loss"] = {name: table.iloc[-1].round(3).to_dict() for name, table in curves.items()}
    vlm.save(twin_again(out), out, lessons=asdict(lessons), num_videos=num_videos, events=list(closeups.EVENTS),
             measured=measured)  # fmt: skip
    return measured


def twin_again(out: Path) -> vlm.Speaker:
    """Return the kept twin as it was before tuning."""
    return vlm.load(out, dtype=torch.float32, local_only=True)


def main() -> None:
    """Read the command line, make twins, print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", default=["internvl"])
    parser.add_argument("--videos", type=int, default=NUM_VIDEOS)
    given = parser.parse_args()
    torch.set_num_threads(1)  # toy widths are slower with more
    for family in given.families:
        place = presets.project() / "data"
        root = place / "synthetic" / "closeups"
        print(family, make(family, root, place / "twins" / family, num_videos=given.videos))


if __name__ == "__main__":
    main()
