"""Does rewarding the right order teach a toy more than supervision had? SYNTHETIC close-ups cut at their events. One run.

- the kept InternVL twin, LoRA: supervised on order (two pieces) and judgement questions, stopped early so that something is left to
  learn; from there rewarded (GRPO), rewarded against the shuffled film too (T-GRPO's idea), and, as a control, by truths dealt out
- sampled at temperature .3: a toy's probabilities are flat, at 1 it babbles and is paid for form only (measured, see the diary)
- worlds of training, of validation (where steps and rates were chosen) and of the test are apart; intervals are over questions
- three pieces are asked too: nobody taught them, and the toy has no way to say "3"
    python benchmarks/ordering.py [test]      without "test" it speaks of the validation worlds
"""

import sys
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from scipy.stats import binomtest

from vau_lib import closeups, ordering, policy, presets, results, twinning, vlm

SETS = {"train": (480, 0), "val": (160, 5001), "test": (160, 51001)}  # close-ups, seed
START = vlm.LoraPlan(max_steps=36, learning_rate=3e-3, warmup_share=0.1, batch_size=16, log_steps=19, save_steps=10**9)
PLAN = policy.PolicyPlan(steps=120, questions=16, learning_rate=3e-4, temperature=0.3, max_new_tokens=16)
JUDGEMENTS = 0.25  # share of the questions
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

    def lines(self, who: str, speaker: vlm.Speaker) -> list[dict]:
        """Return accuracy by number of pieces, by event, and of judgement, a row each."""
        said = self.ask(speaker, self.order, 8)
        right = [ordering.order_reward(a, r["order"]) == 1 for a, r in zip(said, self.order, strict=True)]
        table = pd.DataFrame(self.order).assign(right=right)
        judged = self.ask(speaker, self.judgement, 24)
        told = [ordering.judgement_reward(a, r["answer"]) == 1 for a, r in zip(judged, self.judgement, strict=True)]
        parts = {f"order, {count} pieces": part["right"] for count, part in table.groupby("pieces")}
        two = table[table["pieces"] == 2]
        parts |= {f"order, 2 pieces, {event}": part["right"] for event, part in two.groupby("event")}
        parts["judgement"] = pd.Series(told)
        return [{"who": who, "asked": name} | _rate(right) for name, right in parts.items()]


def _rate(right: pd.Series) -> dict:
    interval = binomtest(int(right.sum()), len(right)).proportion_ci(0.95, "wilson")
    return {"accuracy": right.mean(), "low": interval.low, "high": interval.high, "questions": len(right)}


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
    lines, curves = exam.lines("supervised start", speaker), []
    for who, how in WAYS.items():
        learner, begun = speaker.but(model=deepcopy(speaker.model)), (time.perf_counter(), time.process_time())
        curve = ordering.train(
            learner, rows, folder / "train", plan=replace(PLAN, seed=1), judgements=JUDGEMENTS, **how
        )
        print(f"{who}: {time.perf_counter() - begun[0]:.0f} s, {time.process_time() - begun[1]:.0f} CPU s", flush=True)
        lines += exam.lines(who, learner)
        curves.append(curve.assign(who=who))
    table = pd.DataFrame(lines)
    print(table.pivot(index="asked", columns="who", values="accuracy").round(3).to_string())
    if part == "test":
        place = project / "data" / "results" / "curves"
        results.write_curve(place / "ordering.csv", table.assign(speaker=speaker.label).round(4))
        results.write_curve(place / "ordering_reward.csv", pd.concat(curves).round(4))


if __name__ == "__main__":
    main()
