"""What does a judgement cost that is made from a fifth of the tokens? With a toy, on SYNTHETIC close-ups. One run.

- the model is the kept InternVL twin, LoRA-tuned here on twelve frames a question (192 picture tokens) of films with holes: cut
  by our rule to a share drawn for every film, log-uniform in [.1, 1]. Peers are judged by the same weights, which favours ours
- worlds of tuning, of validation (where frames, steps, rate and shares were chosen) and of the test are apart; intervals are over
  worlds, whose twins stay together
- blind: black frames; shuffled: tuned on shuffled answers. The random rule draws other tokens for every film
    python benchmarks/token_accuracy.py [test]      without "test" it speaks of the validation worlds
A stopped run goes on: films and adapters are kept under data/.
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
from vau_lib.evaluation import result_tables
from vau_lib.toy import benchmark as toy_benchmark
from vau_lib.toy import dataset as toy_dataset
from vau_lib.vlm import finetuning, inference, instruction_data, models
from vau_lib.workspace import artifacts, presets

FRAMES, FPS = 12, 2.0  # all of a close-up's
SETS = {"train": (480, 0), "val": (160, 5001), "test": (240, 41001)}  # close-ups, seed
KEEP_RATIOS = (0.5, 0.3, 0.2, 0.1)
PLAN = finetuning.LoraPlan(
    max_steps=700, learning_rate=3e-3, warmup_ratio=0.1, batch_size=16, log_steps=20, save_steps=10**9
)
LEAST = 0.1  # share of the tokens a film shows in tuning, at least
OURS = next(iter(token_selection.RULES))
PEERS = [name for name in token_selection.RULES if name not in (OURS, "keep all")]
TUNED_ON = {"our holes": [OURS]}


def lots(name: str, rng: np.random.Generator):
    """Return a rule of that name; the random one with another lot at every call."""
    rule = token_selection.RULES[name]
    if name != "random":
        return rule
    return lambda features, *, keep_ratio: rule(features, keep_ratio=keep_ratio, seed=int(rng.integers(2**31)))


def drawn(names: list[str], rng: np.random.Generator):
    """Return a rule that cuts every film by one of `names` to a share drawn from [LEAST, share]."""
    rules = [lots(name, rng) for name in names]
    return lambda features, *, keep_ratio: rules[rng.integers(len(rules))](
        features, keep_ratio=float(np.exp(rng.uniform(np.log(LEAST), np.log(keep_ratio))))
    )


def tune(
    twin: models.VLM, root: Path, rows: list[dict], folder: Path, names: list[str], *, steps: int = PLAN.max_steps
) -> models.VLM:
    """Return the twin with an adapter trained on rows, films cut by rules of `names` (none: whole); kept in `folder`."""
    facts = dict(frames=FRAMES, fps=FPS, steps=steps, rate=PLAN.learning_rate, rules=names, rows=len(rows))
    try:
        artifacts.check_made_by(folder, **facts)
        return twin.replace(model=finetuning.load_adapter(twin.model, folder), kind=f"{twin.kind}, LoRA")
    except artifacts.StoreError:
        pass
    tuned = twin.replace(model=finetuning.lora(twin.model, seed=PLAN.seed), kind=f"{twin.kind}, LoRA")
    rule = drawn(names, np.random.default_rng(PLAN.seed))
    curve = finetuning.fit(
        tuned,
        instruction_data.InstructionSamples(rows, root, tuned, num_frames=FRAMES, seed=PLAN.seed),
        plan=replace(PLAN, max_steps=steps),
        wrap_model=partial(token_pruning.prune_tokens, keep_ratio=1.0, rule=rule) if names else None,
    )
    tuned.model.eval().save_pretrained(folder)
    artifacts.write_made_by(folder, **facts, loss=float(curve["loss"].iloc[-1]))
    return tuned


class Judge:
    """Asks about every film of a set and says what the judgement is worth, beside the whole films'."""

    def __init__(self, root: Path, found: list[records.VideoRecord]):
        self.root, self.lines = root, []
        self.rows = [row for row in toy_dataset.instructions(found) if row["task"] == "judgement"]
        group = {record.path: record.group for record in found}
        self.worlds = np.array([group[row["video"]] for row in self.rows])

    def right(self, vlm: models.VLM, **how) -> np.ndarray:
        """Return which judgements are right, bool (rows,)."""
        _, said = inference.judge(vlm, self.rows, self.root, num_frames=FRAMES, **how)
        return np.array(
            [
                answer_parsing.parse_verdict(a) == answer_parsing.parse_verdict(row["answer"])
                for a, row in zip(said, self.rows, strict=True)
            ]
        )

    def cut(self, vlm: models.VLM, rule: str, keep_ratio: float) -> np.ndarray:
        """Return which judgements are right from a share of the tokens."""
        chosen = lots(rule, np.random.default_rng(0))
        return self.right(vlm.replace(model=token_pruning.prune_tokens(vlm.model, keep_ratio=keep_ratio, rule=chosen)))

    def over_worlds(self, values: np.ndarray) -> tuple[float, float, float]:
        """Return a mean and its 95 % interval over worlds."""
        each = np.array([values[self.worlds == world].mean() for world in np.unique(self.worlds)])
        lot = each[np.random.default_rng(0).integers(0, len(each), (4000, len(each)))].mean(1)
        return float(each.mean()), *(float(edge) for edge in np.quantile(lot, (0.025, 0.975)))

    def enter(self, tuned_on: str, rule: str, keep_ratio: float, right: np.ndarray, whole: np.ndarray) -> None:
        """Add a line to the table and print it; `whole` are the judgements from all tokens, by the same weights."""
        mean, low, high = self.over_worlds(right.astype(float))
        fall, fall_low, fall_high = self.over_worlds(whole.astype(float) - right)
        self.lines.append(dict(tuned_on=tuned_on, rule=rule, keep_ratio=keep_ratio, judgement=mean, low=low, high=high, fall=fall,
                               fall_low=fall_low, fall_high=fall_high, videos=len(right), frames=FRAMES))  # fmt: skip
        falls = f"falls {fall:+.3f} [{fall_low:+.3f}, {fall_high:+.3f}]"
        print(f"  {tuned_on:20} {rule:28}{keep_ratio:5.0%}  {mean:.3f} [{low:.3f}, {high:.3f}]  {falls}", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    project, part = presets.project(), "test" if "test" in sys.argv else "val"
    folder, found = project / "data" / "synthetic" / "token_accuracy", {}
    kept = project / "data" / "models" / "vlm" / "token_accuracy"
    places = {"train": folder / "train", "val": folder / "val", "test": folder / "token_test"}
    for name, (count, seed) in SETS.items():
        films = dict(num_videos=count, seed=seed, splits={name: 1.0}, fps=FPS, engine="processes")
        found[name] = toy_dataset.make_dataset(places[name], **films)
    rows, judge = toy_dataset.instructions(found["train"]), Judge(places[part], found[part])
    taught = partial(toy_benchmark.load_pretrained, project / "data" / "toy_models" / "internvl")
    print(f"{len(judge.rows)} {part} close-ups, {FRAMES} frames, judgement right:")
    for name, rules in TUNED_ON.items():
        vlm = tune(taught(), folder / "train", rows, kept / name.replace(" ", "_"), rules)
        whole = judge.right(vlm)
        judge.enter(name, "keep all", 1.0, whole, whole)
        for rule in [OURS, *PEERS] if part == "test" else [OURS]:
            for keep_ratio in KEEP_RATIOS if rule == OURS else (0.3, 0.2):
                judge.enter(name, rule, keep_ratio, judge.cut(vlm, rule, keep_ratio), whole)
        judge.enter(name, "blind", 1.0, judge.right(vlm, blind=True), whole)
    if part == "test":
        shuffled = instruction_data.shuffle_answers(rows, seed=0)
        noise = tune(taught(), folder / "train", shuffled, kept / "shuffled", TUNED_ON["our holes"], steps=150)
        judge.enter("shuffled answers", OURS, 0.2, judge.cut(noise, OURS, 0.2), whole)
        table = pd.DataFrame(judge.lines).assign(model=vlm.label)
        result_tables.write_curve(
            project / "data" / "results" / "studies" / "curves" / "token_accuracy.csv", table.round(4)
        )


if __name__ == "__main__":
    main()
