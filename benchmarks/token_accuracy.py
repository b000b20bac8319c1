"""Accuracy of judgements from a part of the visual tokens: a tiny model on SYNTHETIC close-ups, one run.

- The model is the saved InternVL of data/toy_models, tuned here by LoRA on twelve frames per question (192 visual tokens). In
  tuning our rule prunes every video to a keep ratio drawn log-uniform from [.1, 1]. The baseline rules are judged with the same
  weights, which favours ours.
- The worlds of tuning, of validation (where frames, steps, rate and keep ratios were chosen) and of the test are apart. Intervals
  are over worlds, because both videos of a world belong together.
- blind: black frames. shuffled answers: tuned on answers shuffled among the questions. The random rule uses another seed for every
  video.
    python benchmarks/token_accuracy.py [test]      without "test" it judges the validation worlds
A stopped run continues: videos and adapters are kept under data/.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from vau_lib.compression import token_pruning, token_selection
from vau_lib.data import answer_parsing, records
from vau_lib.evaluation import metrics, result_tables
from vau_lib.toy import benchmark as toy_benchmark
from vau_lib.toy import dataset as toy_dataset
from vau_lib.vlm import finetuning, inference, instruction_data, models
from vau_lib.workspace import artifacts, presets

NUM_FRAMES, FPS = 12, 2.0  # all of a close-up's
SETS = {"train": (480, 0), "val": (160, 5001), "test": (240, 41001)}  # close-ups, seed
KEEP_RATIOS = (0.5, 0.3, 0.2, 0.1)
PLAN = finetuning.LoraPlan(max_steps=700, learning_rate=3e-3, warmup_ratio=0.1, batch_size=16, log_steps=20, save_steps=10**9)
LEAST_RATIO = 0.1  # of the tokens of a video in tuning
OURS = next(iter(token_selection.RULES))
BASELINES = [name for name in token_selection.RULES if name not in (OURS, "keep all")]


def rule_of(name: str, rng: np.random.Generator):
    """Return the rule of that name; the random one with another seed at every call."""
    rule = token_selection.RULES[name]
    if name != "random":
        return rule
    return lambda features, *, keep_ratio: rule(features, keep_ratio=keep_ratio, seed=int(rng.integers(2**31)))


def random_ratio(rng: np.random.Generator):
    """Return our rule with a keep ratio drawn for every video, log-uniform in [LEAST_RATIO, keep_ratio]."""
    return lambda features, *, keep_ratio: token_selection.keep_mask(
        features, keep_ratio=float(np.exp(rng.uniform(np.log(LEAST_RATIO), np.log(keep_ratio))))
    )


def tune(vlm: models.VLM, root: Path, rows: list[dict], folder: Path, *, steps: int = PLAN.max_steps) -> models.VLM:
    """Return the model with an adapter tuned on rows whose videos are pruned by our rule; the adapter is kept in `folder`."""
    facts = dict(frames=NUM_FRAMES, fps=FPS, steps=steps, rate=PLAN.learning_rate, rules=[OURS], rows=len(rows))
    try:
        artifacts.check_made_by(folder, **facts)
        return vlm.replace(model=finetuning.load_adapter(vlm.model, folder), kind=f"{vlm.kind}, LoRA")
    except artifacts.StoreError:
        pass
    tuned = vlm.replace(model=finetuning.lora(vlm.model, seed=PLAN.seed), kind=f"{vlm.kind}, LoRA")
    rule = random_ratio(np.random.default_rng(PLAN.seed))
    curve = finetuning.fit(
        tuned,
        instruction_data.InstructionSamples(rows, root, tuned, num_frames=NUM_FRAMES, seed=PLAN.seed),
        plan=replace(PLAN, max_steps=steps),
        wrap_model=partial(token_pruning.prune_tokens, keep_ratio=1.0, rule=rule),
    )
    tuned.model.eval().save_pretrained(folder)
    artifacts.write_made_by(folder, **facts, loss=float(curve["loss"].iloc[-1]))
    return tuned


class Judge:
    """Judges every video of a set and compares with the judgements from all tokens."""

    def __init__(self, root: Path, video_records: list[records.VideoRecord]):
        self.root, self.lines = root, []
        self.rows = [row for row in toy_dataset.instructions(video_records) if row["task"] == "judgement"]
        group = {record.path: record.group for record in video_records}
        self.worlds = np.array([group[row["video"]] for row in self.rows])
        self.truth = [answer_parsing.parse_verdict(row["answer"]) for row in self.rows]

    def correct(self, vlm: models.VLM, *, blind: bool = False) -> np.ndarray:
        """Return which judgements are correct, bool (rows,)."""
        _, answers = inference.judge(vlm, self.rows, self.root, num_frames=NUM_FRAMES, blind=blind)
        return np.array([answer_parsing.parse_verdict(answer) for answer in answers]) == np.array(self.truth)

    def correct_pruned(self, vlm: models.VLM, name: str, keep_ratio: float) -> np.ndarray:
        """Return which judgements are correct when a rule prunes the tokens."""
        rule = rule_of(name, np.random.default_rng(0))
        return self.correct(vlm.replace(model=token_pruning.prune_tokens(vlm.model, keep_ratio=keep_ratio, rule=rule)))

    def interval(self, values: np.ndarray) -> tuple[float, float, float]:
        """Return the mean over worlds and its 95 % interval."""
        return metrics.grouped_mean(values, self.worlds, rng=np.random.default_rng(0))[:3]

    def add(self, tuned_on: str, rule: str, keep_ratio: float, correct: np.ndarray, whole: np.ndarray) -> None:
        """Add a line to the table and print it; `whole` is what is correct from all tokens, by the same weights."""
        mean, low, high = self.interval(correct.astype(float))
        fall, fall_low, fall_high = self.interval(whole.astype(float) - correct)
        line = dict(tuned_on=tuned_on, rule=rule, keep_ratio=keep_ratio, judgement=mean, low=low, high=high)
        line |= dict(fall=fall, fall_low=fall_low, fall_high=fall_high, videos=len(correct), frames=NUM_FRAMES)
        self.lines.append(line)
        falls = f"falls {fall:+.3f} [{fall_low:+.3f}, {fall_high:+.3f}]"
        print(f"  {tuned_on:20} {rule:28}{keep_ratio:5.0%}  {mean:.3f} [{low:.3f}, {high:.3f}]  {falls}", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    project, part = presets.project(), "test" if "test" in sys.argv else "val"
    folder, sets = project / "data" / "synthetic" / "token_accuracy", {}
    adapters = project / "data" / "models" / "vlm" / "token_accuracy"
    places = {"train": folder / "train", "val": folder / "val", "test": folder / "token_test"}
    for name, (count, seed) in SETS.items():
        options = dict(num_videos=count, seed=seed, splits={name: 1.0}, fps=FPS, engine="processes")
        sets[name] = toy_dataset.make_dataset(places[name], **options)
    rows, judge = toy_dataset.instructions(sets["train"]), Judge(places[part], sets[part])
    load = partial(toy_benchmark.load_pretrained, project / "data" / "toy_models" / "internvl")
    print(f"{len(judge.rows)} {part} close-ups, {NUM_FRAMES} frames, correct judgements:")
    vlm = tune(load(), folder / "train", rows, adapters / "our_rule")
    whole = judge.correct(vlm)
    judge.add("our rule", "keep all", 1.0, whole, whole)
    for rule in [OURS, *BASELINES] if part == "test" else [OURS]:
        for keep_ratio in KEEP_RATIOS if rule == OURS else (0.3, 0.2):
            judge.add("our rule", rule, keep_ratio, judge.correct_pruned(vlm, rule, keep_ratio), whole)
    judge.add("our rule", "blind", 1.0, judge.correct(vlm, blind=True), whole)
    if part == "test":
        shuffled = instruction_data.shuffle_answers(rows, seed=0)
        noise = tune(load(), folder / "train", shuffled, adapters / "shuffled", steps=150)
        judge.add("shuffled answers", OURS, 0.2, judge.correct_pruned(noise, OURS, 0.2), whole)
        table = pd.DataFrame(judge.lines).assign(model=vlm.label)
        result_tables.write_curve(project / "data" / "results" / "studies" / "curves" / "token_accuracy.csv", table.round(4))


if __name__ == "__main__":
    main()
