"""Does rewarding the right order teach a toy more than supervision had? SYNTHETIC close-ups cut at their events. One run.

- the kept InternVL twin, LoRA: supervised on order (two pieces) and judgement questions, stopped early so that something is left to
  learn; from there rewarded (GRPO), rewarded against the shuffled film too (T-GRPO's idea), and, as a control, by truths dealt out
- sampled at temperature .3: a toy's probabilities are flat, at 1 it babbles and is paid for form only (measured, see the diary)
- worlds of training, of validation (where steps and rates were chosen) and of the test are apart; three seeds of reinforcement from
  one start; intervals are over videos, of the mean of the seeds
- three pieces are asked too. "two": nobody taught them, and the toy cannot say "3". "three": supervision asks both, longer, and the
  digits' own vectors learn; what it says of three is mostly no order then; reward teaches it to give one, and so do dealt truths
    python benchmarks/ordering.py two|three [test]      without "test" it speaks of the validation worlds
"""

import sys
import time
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from vau_lib.evaluation import result_tables
from vau_lib.toy import benchmark as toy_benchmark
from vau_lib.toy import dataset as toy_dataset
from vau_lib.vlm import event_order, finetuning, grpo, inference, models
from vau_lib.workspace import presets

SETS = {"train": (480, 0), "val": (160, 5001)}  # close-ups, seed
START = finetuning.LoraPlan(learning_rate=3e-3, warmup_share=0.1, batch_size=16, log_steps=19, save_steps=10**9)
PLAN = grpo.GRPOPlan(steps=120, questions=16, learning_rate=3e-4, temperature=0.3, max_new_tokens=16)
JUDGEMENTS = 0.25  # share of the questions


@dataclass(frozen=True)
class Study:
    """What is taught before reinforcement, how it is reinforced, and worlds looked at once."""

    counts: tuple[int, ...]
    start_steps: int
    plan: grpo.GRPOPlan
    digits: bool
    test_seed: int


STUDIES = {
    "two": Study((2,), 36, PLAN, False, 51001),
    "three": Study((2, 3), 150, replace(PLAN, steps=60), True, 61001),
}
SEEDS = (1, 2, 3)  # of reinforcement
WAYS = {
    "rewarded": {},
    "rewarded, against the shuffled video": {"contrasted": True},
    "rewarded, shuffled labels": {"dealt": True},
}


class Exam:
    """Order questions (two cuts of every anomalous video, two and three pieces) and judgements of held-out worlds."""

    def __init__(self, root: Path, found: list):
        self.root = root
        self.order = [row for seed in (1, 2) for row in event_order.order_rows(found, seed=seed)]
        self.judgement = [row for row in toy_dataset.instructions(found) if row["task"] == "judgement"]

    def ask(self, vlm: models.VLM, rows: list[dict], length: int) -> list[str]:
        shown, said = event_order.OrderPrompts(vlm, self.root), []
        for start in range(0, len(rows), 16):
            turns = [shown(row) for row in rows[start : start + 16]]
            said += inference.generate(vlm, turns, max_new_tokens=length, tell=None)
        return said

    def sit(self, vlm: models.VLM) -> pd.DataFrame:
        """Return a row per question and part of the exam it counts for: question, video, right."""
        said, judged = self.ask(vlm, self.order, 8), self.ask(vlm, self.judgement, 24)
        rows = []
        for row, answer in zip(self.order, said, strict=True):
            name, right = f"order, {row['pieces']} pieces", event_order.order_reward(answer, row["order"]) == 1
            rows.append((name, row["video"], right))
            if row["pieces"] == 2:
                rows.append((f"{name}, {row['event']}", row["video"], right))
        for row, answer in zip(self.judgement, judged, strict=True):
            rows.append(("judgement", row["video"], event_order.judgement_reward(answer, row["answer"]) == 1))
        return pd.DataFrame(rows, columns=["question", "video", "right"])


def lines(method: str, sat: list[pd.DataFrame]) -> list[dict]:
    """Return accuracy over seeds by part of the exam, with an interval over videos, a row each."""
    found = []
    for question, part in pd.concat(dict(enumerate(sat)), names=["seed"]).groupby("question"):
        each, seeds = part.groupby("video")["right"].mean().to_numpy(), part.groupby("seed")["right"].mean()
        drawn = each[np.random.default_rng(0).integers(0, len(each), (4000, len(each)))].mean(1)
        low, high = np.quantile(drawn, (0.025, 0.975))
        found.append({
            "method": method, "question": question, "accuracy": part["right"].mean(), "low": low, "high": high, "seeds": len(sat),
            "worst_seed": seeds.min(), "best_seed": seeds.max(), "questions": len(part) // len(sat), "videos": len(each),
        })  # fmt: skip
    return found


def rows_of(found: list, counts: tuple[int, ...]) -> list[dict]:
    """Return training questions, order ones twice with other cuts."""
    order = [row for seed in (0, 3) for row in event_order.order_rows(found, counts=counts, seed=seed)]
    judgement = [row for row in toy_dataset.instructions(found) if row["task"] == "judgement"]
    return order + event_order.with_cuts(judgement, found)


def learner_of(project: Path, study: Study) -> models.VLM:
    """Return the kept twin with a fresh adapter, and the digits' vectors free where a study needs to say new ones."""
    twin = toy_benchmark.taught(project / "data" / "toy_models" / "internvl")
    digits = twin.tokenizer.convert_tokens_to_ids(["1", "2", "3"]) if study.digits else ()
    return twin.replace(model=finetuning.lora(twin.model, tokens=digits, seed=0), kind=f"{twin.kind}, LoRA")


def main() -> None:
    torch.set_num_threads(1)
    name, part = sys.argv[1], "test" if "test" in sys.argv else "val"
    study, project = STUDIES[name], presets.project()
    folder, found = project / "data" / "synthetic" / "token_accuracy", {}
    for side, (count, seed) in (SETS | {"test": (160, study.test_seed)}).items():
        place = folder / (side if side != "test" else f"ordering_test_{seed}")
        if side in ("train", part):
            found[side] = toy_dataset.make_dataset(
                place, num_videos=count, seed=seed, splits={side: 1.0}, engine="processes"
            )
            exam = Exam(place, found[side])
    rows, vlm = rows_of(found["train"], study.counts), learner_of(project, study)
    begun = time.process_time()
    event_order.supervised_start(vlm, rows, folder / "train", plan=replace(START, max_steps=study.start_steps))
    print(f"supervised start: {time.process_time() - begun:.0f} CPU s")
    rated, curves = lines("supervised start", [exam.sit(vlm)]), []
    for method, options in WAYS.items():
        if name == "three" and "contrasted" in options:
            continue  # it paid nothing on orders with two
        sat = []
        for seed in SEEDS:
            learner, begun = vlm.replace(model=deepcopy(vlm.model)), (time.perf_counter(), time.process_time())
            plan = replace(study.plan, seed=seed)
            curve = event_order.train(learner, rows, folder / "train", plan=plan, judgements=JUDGEMENTS, **options)
            print(
                f"{method}, seed {seed}: {time.perf_counter() - begun[0]:.0f} s, {time.process_time() - begun[1]:.0f} CPU s",
                flush=True,
            )
            sat.append(exam.sit(learner))
            curves.append(curve.assign(method=method, seed=seed))
        rated += lines(method, sat)
    table = pd.DataFrame(rated)
    print(table.pivot(index="question", columns="method", values="accuracy").round(3).to_string())
    print(table[table["seeds"] > 1].round(3).to_string(index=False))
    if part == "test":
        place, end = project / "data" / "results" / "curves", "" if name == "two" else f"_{name}"
        result_tables.write_curve(place / f"ordering{end}.csv", table.assign(model=vlm.label).round(4))
        result_tables.write_curve(place / f"ordering{end}_reward.csv", pd.concat(curves).round(4))


if __name__ == "__main__":
    main()
