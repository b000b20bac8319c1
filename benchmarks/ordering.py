"""Does rewarding the right order teach a toy more than supervision had? SYNTHETIC close-ups cut at their events. One run.

- the kept InternVL twin, LoRA: supervised on order (two pieces) and judgement questions, stopped early so that something is left to
  learn; from there rewarded (GRPO), rewarded against the shuffled film too (T-GRPO's idea), and, as a control, by truths dealt out
- sampled at temperature .3: a toy's probabilities are flat, at 1 it babbles and is paid for form only (measured, see the diary)
- worlds of training, of validation (where steps and rates were chosen) and of the test are apart; three seeds of reinforcement from
  one start; intervals are over videos, of the mean of the seeds
- three pieces are asked too: nobody taught them, and the toy has no way to say "3"
    python benchmarks/ordering.py [test]      without "test" it speaks of the validation worlds
"""

import sys
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from vau_lib import closeups, ordering, policy, presets, results, twinning, vlm

SETS = {"train": (480, 0), "val": (160, 5001), "test": (160, 51001)}  # close-ups, seed
START = vlm.LoraPlan(max_steps=36, learning_rate=3e-3, warmup_share=0.1, batch_size=16, log_steps=19, save_steps=10**9)
PLAN = policy.PolicyPlan(steps=120, questions=16, learning_rate=3e-4, temperature=0.3, max_new_tokens=16)
JUDGEMENTS = 0.25  # share of the questions
SEEDS = (1, 2, 3)  # of reinforcement
WAYS = {
    "rewarded": {},
    "rewarded, against the shuffled film": {"contrasted": True},
    "rewarded by dealt truths": {"dealt": True},
}


class Exam:
    """Order questions (two cuts of every anomalous video, two and three pieces) and judgements of held-out worlds."""

    def __init__(self, root: Path, found: list):
        self.root = root
        self.order = [row for seed in (1, 2) for row in ordering.order_rows(found, seed=seed)]
        self.judgement = [row for row in closeups.instructions(found) if row["task"] == "judgement"]

    def ask(self, speaker: vlm.Speaker, rows: list[dict], length: int) -> list[str]:
        shown, said = ordering.Turns(speaker, self.root), []
        for start in range(0, len(rows), 16):
            turns = [shown(row) for row in rows[start : start + 16]]
            said += vlm.generate(speaker, turns, max_new_tokens=length, tell=None)
        return said

    def sit(self, speaker: vlm.Speaker) -> pd.DataFrame:
        """Return a row per question and part of the exam it counts for: asked, video, right."""
        said, judged = self.ask(speaker, self.order, 8), self.ask(speaker, self.judgement, 24)
        rows = []
        for row, answer in zip(self.order, said, strict=True):
            name, right = f"order, {row['pieces']} pieces", ordering.order_reward(answer, row["order"]) == 1
            rows.append((name, row["video"], right))
            if row["pieces"] == 2:
                rows.append((f"{name}, {row['event']}", row["video"], right))
        for row, answer in zip(self.judgement, judged, strict=True):
            rows.append(("judgement", row["video"], ordering.judgement_reward(answer, row["answer"]) == 1))
        return pd.DataFrame(rows, columns=["asked", "video", "right"])


def lines(who: str, sat: list[pd.DataFrame]) -> list[dict]:
    """Return accuracy over seeds by part of the exam, with an interval over videos, a row each."""
    found = []
    for asked, part in pd.concat(dict(enumerate(sat)), names=["seed"]).groupby("asked"):
        each, seeds = part.groupby("video")["right"].mean().to_numpy(), part.groupby("seed")["right"].mean()
        drawn = each[np.random.default_rng(0).integers(0, len(each), (4000, len(each)))].mean(1)
        low, high = np.quantile(drawn, (0.025, 0.975))
        found.append({
            "who": who, "asked": asked, "accuracy": part["right"].mean(), "low": low, "high": high, "seeds": len(sat),
            "worst_seed": seeds.min(), "best_seed": seeds.max(), "questions": len(part) // len(sat), "videos": len(each),
        })  # fmt: skip
    return found


def rows_of(found: list) -> list[dict]:
    """Return training questions, order ones twice with other cuts."""
    order = [row for seed in (0, 3) for row in ordering.order_rows(found, counts=(2,), seed=seed)]
    judgement = [row for row in closeups.instructions(found) if row["task"] == "judgement"]
    return order + ordering.with_cuts(judgement, found)


def main() -> None:
    torch.set_num_threads(1)
    project, part = presets.project(), "test" if "test" in sys.argv else "val"
    folder, found = project / "data" / "synthetic" / "token_accuracy", {}
    for name in ("train", part):
        count, seed = SETS[name]
        place = folder / (name if name != "test" else "ordering_test_51001")
        found[name] = closeups.make_dataset(place, num_videos=count, seed=seed, splits={name: 1.0}, engine="processes")
    rows, exam = rows_of(found["train"]), Exam(place, found[part])
    twin = twinning.taught(project / "data" / "twins" / "internvl")
    speaker = twin.but(model=vlm.lora(twin.model, seed=0), kind=f"{twin.kind}, LoRA")
    begun = time.process_time()
    ordering.start(speaker, rows, folder / "train", plan=START)
    print(f"supervised start: {time.process_time() - begun:.0f} CPU s")
    rated, curves = lines("supervised start", [exam.sit(speaker)]), []
    for who, how in WAYS.items():
        sat = []
        for seed in SEEDS:
            learner, begun = speaker.but(model=deepcopy(speaker.model)), (time.perf_counter(), time.process_time())
            plan = replace(PLAN, seed=seed)
            curve = ordering.train(learner, rows, folder / "train", plan=plan, judgements=JUDGEMENTS, **how)
            print(
                f"{who}, seed {seed}: {time.perf_counter() - begun[0]:.0f} s, {time.process_time() - begun[1]:.0f} CPU s",
                flush=True,
            )
            sat.append(exam.sit(learner))
            curves.append(curve.assign(who=who, seed=seed))
        rated += lines(who, sat)
    table = pd.DataFrame(rated)
    print(table.pivot(index="asked", columns="who", values="accuracy").round(3).to_string())
    print(table[table["seeds"] > 1].round(3).to_string(index=False))
    if part == "test":
        place = project / "data" / "results" / "curves"
        results.write_curve(place / "ordering.csv", table.assign(speaker=speaker.label).round(4))
        results.write_curve(place / "ordering_reward.csv", pd.concat(curves).round(4))


if __name__ == "__main__":
    main()
