"""What does a judgement cost that is made from a fifth of the tokens? With a toy, on SYNTHETIC close-ups. One run.

- the speaker is the kept InternVL twin, LoRA-tuned here on twelve frames a question (192 picture tokens), once on all of them and
  once on a share drawn for every film from [.1, 1], so that it has met films with holes (the peers are judged by the same weights)
- worlds of tuning, of validation (where steps and rate were chosen) and of the test are apart; intervals are over test worlds
- blind: black frames; shuffled: tuned on answers dealt at random
    python benchmarks/token_accuracy.py [test]      without "test" it speaks of the validation worlds
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from vau_lib import closeups, presets, results, tokens, twinning, vlm

FRAMES = 12  # all of a close-up's
SETS = {"train": (480, 0), "val": (160, 5001), "test": (240, 21001)}  # close-ups, seed
SHARES = (1.0, 0.5, 0.3, 0.2, 0.1)
PLAN = vlm.LoraPlan(max_steps=200, learning_rate=3e-3, warmup_share=0.1, batch_size=16, log_steps=20, save_steps=10**9)
LEAST = 0.1  # share of the tokens a film shows in tuning, at least


def drawn_share(rng: np.random.Generator):
    """Return a rule that keeps another share of every film."""
    return lambda features, *, share: tokens.keep_mask(features, share=float(rng.uniform(LEAST, share)))


def tune(twin: vlm.Speaker, root: Path, rows: list[dict], *, holes: bool) -> vlm.Speaker:
    """Return the twin with an adapter trained on rows, on whole films or on films with holes."""
    tuned = twin.but(model=vlm.lora(twin.model, seed=PLAN.seed), kind=f"{twin.kind}, LoRA")
    seen = tuned
    if holes:
        small = tokens.compressed(tuned.model, share=1.0, rule=drawn_share(np.random.default_rng(PLAN.seed)))
        seen = tuned.but(model=small)
    vlm.fit(seen, vlm.Samples(rows, root, tuned, num_frames=FRAMES, seed=PLAN.seed), plan=PLAN, progress=False)
    tuned.model.eval()
    return tuned


def judged(speaker: vlm.Speaker, root: Path, rows: list[dict], **how) -> np.ndarray:
    """Return which judgements are right, bool (rows,)."""
    _, said = twinning.judge(speaker, root, rows, frames=FRAMES, **how)
    return np.array([vlm.judged(a) == vlm.judged(row["answer"]) for a, row in zip(said, rows, strict=True)])


def cut(speaker: vlm.Speaker, rule: str, share: float) -> vlm.Speaker:
    return speaker.but(model=tokens.compressed(speaker.model, share=share, rule=tokens.RULES[rule]))


def over_worlds(values: np.ndarray, worlds: np.ndarray) -> tuple[float, float, float]:
    """Return a mean and its 95 % interval over worlds, whose twins stay together."""
    each = np.array([values[worlds == world].mean() for world in np.unique(worlds)])
    drawn = each[np.random.default_rng(0).integers(0, len(each), (4000, len(each)))].mean(1)
    return float(each.mean()), *(float(edge) for edge in np.quantile(drawn, (0.025, 0.975)))


def main() -> None:
    torch.set_num_threads(1)
    project = presets.project()
    part = "test" if "test" in sys.argv else "val"
    folder, found = project / "data" / "synthetic" / "token_accuracy", {}
    for name, (count, seed) in SETS.items():
        found[name] = closeups.make_dataset(
            folder / name, num_videos=count, seed=seed, splits={name: 1.0}, engine="processes"
        )
    rows = closeups.instructions(found["train"])
    asked = [row for row in closeups.instructions(found[part]) if row["task"] == "judgement"]
    group = {record.path: record.group for record in found[part]}
    worlds = np.array([group[row["video"]] for row in asked])
    root, lines = folder / part, []

    def enter(name: str, rule: str, share: float, right: np.ndarray, whole: np.ndarray) -> None:
        mean, low, high = over_worlds(right.astype(float), worlds)
        fall, fall_low, fall_high = over_worlds(whole.astype(float) - right, worlds)
        lines.append(dict(tuned_on=name, rule=rule, share=share, judgement=mean, low=low, high=high, fall=fall,
                          fall_low=fall_low, fall_high=fall_high, videos=len(right)))  # fmt: skip
        falls = f"falls {fall:+.3f} [{fall_low:+.3f}, {fall_high:+.3f}]"
        print(f"  {name:18} {rule:28}{share:5.0%}  {mean:.3f} [{low:.3f}, {high:.3f}]  {falls}", flush=True)

    ours = next(iter(tokens.RULES))
    print(f"{len(asked)} {part} close-ups, {FRAMES} frames, judgement right:")
    for name, holes in (("all tokens", False), ("films with holes", True)):
        speaker = tune(twinning.taught(project / "data" / "twins" / "internvl"), folder / "train", rows, holes=holes)
        judge = partial(judged, root=root, rows=asked)
        whole = judge(speaker)
        for rule in tokens.RULES if holes and part == "test" else (ours,):
            for share in SHARES if rule == ours else SHARES[2:]:
                enter(name, rule, share, judge(cut(speaker, rule, share)) if share < 1 else whole, whole)
        enter(name, "blind", 1.0, judge(speaker, blind=True), whole)
    if part == "test":
        dealt = tune(
            twinning.taught(project / "data" / "twins" / "internvl"),
            folder / "train",
            twinning.shuffled(rows, seed=0),
            holes=True,
        )
        enter("shuffled", ours, 0.2, judged(cut(dealt, ours, 0.2), root, asked), whole)
        results.write_curve(
            project / "data" / "results" / "curves" / "token_accuracy.csv", pd.DataFrame(lines).round(4)
        )


if __name__ == "__main__":
    main()
