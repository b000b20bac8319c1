"""Event order by reward: accuracy after supervised tuning and after GRPO, on SYNTHETIC close-ups cut at their events. One run.

- the kept InternVL tiny model with LoRA: supervised on order (two pieces) and judgement questions, stopped early so that
  something is left to learn; from there rewarded (GRPO), rewarded with a bonus against the shuffled video (T-GRPO's idea),
  and, as a control, rewarded with shuffled labels
- sampled at temperature .3: a toy's probabilities are flat, and at 1 it earns rewards for form only (measured, see the diary)
- worlds of training, of validation (where steps and rates were chosen) and of the test are apart; three seeds of reinforcement
  from one start; intervals are over videos, of the mean of the seeds
- three pieces are asked too. "two": they were never trained, and the toy cannot say "3". "three": supervision trains both,
  longer, and the digits' embeddings learn; its answers on three pieces are mostly no order then; rewards teach it to give
  one, and so do shuffled labels
- a training that is finished is kept (data/runs/ordering), so that a stopped study goes on with the next one; all methods of one
  seed come before the next seed
    python benchmarks/ordering.py two|three [test] [--seeds 3]      without "test" it reports the validation worlds
"""

import argparse
import hashlib
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from vau_lib.evaluation import metrics, result_tables
from vau_lib.toy import benchmark as toy_benchmark
from vau_lib.toy import dataset as toy_dataset
from vau_lib.vlm import event_order, finetuning, grpo, inference, models, policy
from vau_lib.workspace import artifacts, presets

SETS = {"train": (480, 0), "val": (160, 5001)}  # close-ups, seed
START = finetuning.LoraPlan(learning_rate=3e-3, warmup_ratio=0.1, batch_size=16, log_steps=19, save_steps=10**9)
PLAN = grpo.GRPOPlan(steps=120, questions=16, learning_rate=1.5e-4, updates=2, temperature=0.3, max_new_tokens=16)
JUDGEMENT_FRACTION = 0.25  # of the questions


@dataclass(frozen=True)
class Study:
    """Numbers of pieces, supervised steps, how it is reinforced, whether digits learn, and the test worlds' seed."""

    counts: tuple[int, ...]
    start_steps: int
    plan: grpo.GRPOPlan
    digits: bool
    test_seed: int


STUDIES = {"two": Study((2,), 36, PLAN, False, 51001), "three": Study((2, 3), 150, replace(PLAN, steps=60), True, 61001)}
METHODS = {
    "rewarded": {},
    "rewarded, against the shuffled video": {"contrast_bonus": True},
    "rewarded, shuffled labels": {"shuffled_labels": True},
}


class Exam:
    """Order questions (two cuts of every anomalous video, two and three pieces) and judgements of held-out worlds."""

    def __init__(self, root: Path, found: list):
        self.root = root
        self.order = [row for seed in (1, 2) for row in event_order.order_rows(found, seed=seed)]
        self.judgement = [row for row in toy_dataset.instructions(found) if row["task"] == "judgement"]

    def answers(self, vlm: models.VLM, rows: list[dict], max_new_tokens: int) -> list[str]:
        samples = event_order.order_samples(vlm, rows, self.root, answers=False)
        return inference.answers(vlm, samples, max_new_tokens=max_new_tokens)

    def take(self, vlm: models.VLM) -> pd.DataFrame:
        """Return a row per question and part of the exam it counts for: question, video, right."""
        orders, judgements = self.answers(vlm, self.order, 8), self.answers(vlm, self.judgement, 24)
        rows = []
        for row, answer in zip(self.order, orders, strict=True):
            name, right = f"order, {row['pieces']} pieces", event_order.order_reward(answer, row["order"]) == 1
            rows.append((name, row["video"], right))
            if row["pieces"] == 2:
                rows.append((f"{name}, {row['event']}", row["video"], right))
        for row, answer in zip(self.judgement, judgements, strict=True):
            rows.append(("judgement", row["video"], event_order.judgement_reward(answer, row["answer"]) == 1))
        return pd.DataFrame(rows, columns=["question", "video", "right"])


def accuracy_rows(method: str, results: list[pd.DataFrame]) -> list[dict]:
    """Return accuracy over seeds by part of the exam, with an interval over videos, a row each."""
    rows = []
    for question, part in pd.concat(dict(enumerate(results)), names=["seed"]).groupby("question"):
        seeds = part.groupby("seed")["right"].mean()
        mean = metrics.grouped_mean(part["right"], part["video"], rng=np.random.default_rng(0))
        rows.append({
            "method": method, "question": question, "accuracy": mean.value, "low": mean.low, "high": mean.high,
            "seeds": len(results), "worst_seed": seeds.min(), "best_seed": seeds.max(),
            "questions": len(part) // len(results), "videos": part["video"].nunique(),
        })  # fmt: skip
    return rows


def rows_of(found: list, counts: tuple[int, ...]) -> list[dict]:
    """Return training questions, order ones twice with other cuts."""
    order = [row for seed in (0, 3) for row in event_order.order_rows(found, counts=counts, seed=seed)]
    judgement = [row for row in toy_dataset.instructions(found) if row["task"] == "judgement"]
    return order + event_order.with_pieces(judgement, found)


def learner_of(project: Path, study: Study) -> models.VLM:
    """Return the saved tiny model with a fresh adapter, and the digits' vectors free where a study needs new ones."""
    toy_vlm = toy_benchmark.load_pretrained(project / "data" / "toy_models" / "internvl")
    digits = toy_vlm.tokenizer.convert_tokens_to_ids(["1", "2", "3"]) if study.digits else ()
    return toy_vlm.replace(model=finetuning.lora(toy_vlm.model, tokens=digits, seed=0), kind=f"{toy_vlm.kind}, LoRA")


def kept_folder(project: Path, study: Study, part: str) -> Path:
    """Return where finished trainings are kept; another study, code of the loop or tiny model has another folder."""
    sources = [Path(module.__file__) for module in (event_order, grpo, policy, finetuning)]
    weights = sorted((project / "data" / "toy_models" / "internvl").glob("*.safetensors"))
    facts = (
        f"{part} {study} {START} {SETS} {METHODS} {JUDGEMENT_FRACTION} {[artifacts.sha256(path) for path in [*sources, *weights]]}"
    )
    return project / "data" / "runs" / "ordering" / hashlib.sha256(facts.encode()).hexdigest()[:16]


def kept(path: Path, make: Callable[[], dict[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    """Return the tables of a finished training, else make them and keep them beside `path`."""
    places = {name: path.with_name(f"{path.name}_{name}.csv") for name in ("exam", "curve")}
    if all(place.is_file() for place in places.values()):
        return {name: pd.read_csv(place) for name, place in places.items()}
    tables = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        with artifacts.replacing(places[name]) as temporary:
            table.to_csv(temporary, index=False)
    return tables


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=list(STUDIES))
    parser.add_argument("part", nargs="?", default="val", choices=["val", "test"])
    parser.add_argument("--seeds", type=int, default=3, help="of reinforcement")
    options = parser.parse_args()
    name, part = options.name, options.part
    study, project = STUDIES[name], presets.project()
    store = kept_folder(project, study, part)
    folder, found = project / "data" / "synthetic" / "token_accuracy", {}
    for side, (count, seed) in (SETS | {"test": (160, study.test_seed)}).items():
        place = folder / (side if side != "test" else f"ordering_test_{seed}")
        if side in ("train", part):
            found[side] = toy_dataset.make_dataset(place, num_videos=count, seed=seed, splits={side: 1.0}, engine="processes")
            exam = Exam(place, found[side])
    rows, vlm = rows_of(found["train"], study.counts), learner_of(project, study)
    begun = time.process_time()
    samples = event_order.order_samples(vlm, rows, folder / "train")
    finetuning.fit(vlm, samples, plan=replace(START, max_steps=study.start_steps))
    print(f"supervised start: {time.process_time() - begun:.0f} CPU s", flush=True)
    rated = accuracy_rows("supervised start", [exam.take(vlm)])
    print(pd.DataFrame(rated).round(3).to_string(index=False), flush=True)
    # with three, the bonus is left out: it gained nothing on orders of two
    methods = {method: extra for method, extra in METHODS.items() if name == "two" or "contrast_bonus" not in extra}
    results, curves = {method: [] for method in methods}, []

    def trained(extra: dict, seed: int) -> dict[str, pd.DataFrame]:
        learner, begun = vlm.replace(model=deepcopy(vlm.model)), (time.perf_counter(), time.process_time())
        plan = replace(study.plan, seed=seed)
        curve = event_order.train(learner, rows, folder / "train", plan=plan, judgement_fraction=JUDGEMENT_FRACTION, **extra)
        print(f"{time.perf_counter() - begun[0]:.0f} s, {time.process_time() - begun[1]:.0f} CPU s", flush=True)
        return {"exam": exam.take(learner), "curve": curve}

    for seed in range(1, options.seeds + 1):
        for method, extra in methods.items():
            print(f"{method}, seed {seed}", flush=True)
            path = store / f"{list(METHODS).index(method)}_{seed}"
            tables = kept(path, lambda extra=extra, seed=seed: trained(extra, seed))
            results[method].append(tables["exam"])
            curves.append(tables["curve"].assign(method=method, seed=seed))
            print(tables["exam"].groupby("question")["right"].mean().round(3).to_dict(), flush=True)
    rated += [row for method, exams in results.items() for row in accuracy_rows(method, exams)]
    table = pd.DataFrame(rated)
    print(table.pivot(index="question", columns="method", values="accuracy").round(3).to_string())
    print(table[table["seeds"] > 1].round(3).to_string(index=False))
    if part == "test":
        place, end = project / "data" / "results" / "studies" / "curves", "" if name == "two" else f"_{name}"
        result_tables.write_curve(place / f"ordering{end}.csv", table.assign(model=vlm.label).round(4))
        result_tables.write_curve(place / f"ordering{end}_reward.csv", pd.concat(curves).round(4))


if __name__ == "__main__":
    main()
