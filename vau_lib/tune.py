"""Tune a vision-language model on instruction files, and reinforce it by rewards: what `vau tune` and `vau reinforce` run.

- rows of several files, each with its folder of videos; both verdicts come equally often (`balanced`), whatever the files hold
- reinforcement asks judgements of the files' rows and the order of shuffled pieces of the videos in the records.jsonl beside them;
  before and after it the model takes an exam on videos of another split, and the table of both is the result
- a stopped run goes on where it stood; a folder that holds another run is refused
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from vau_lib.compression import token_pruning, token_selection
from vau_lib.data import records
from vau_lib.evaluation import metrics
from vau_lib.vlm import event_order, finetuning, grpo, inference, instruction_data
from vau_lib.vlm.models import VLM
from vau_lib.workspace import artifacts, formats

EXAM_TOKENS = 32  # longest answer in an exam


@dataclass(frozen=True)
class Shown:
    """What the model is shown of a video: up to `frames`, as one video or as pictures, at most `fps` a second, in `max_pixels`.

    `keep_ratio` below 1 trains on a random fraction of the visual tokens, from it to 1, which `token_rule` chooses as it does in
    `vau guard`.
    """

    frames: int = 16
    as_video: bool = False
    fps: float | None = None
    max_pixels: int | None = None
    keep_ratio: float = 1.0
    token_rule: str = "few moments"

    def __post_init__(self):
        token_selection.token_rule(self.token_rule)
        if not 0 < self.keep_ratio <= 1:
            raise ValueError(f"keep_ratio must be above 0 and at most 1, got {self.keep_ratio}")
        if self.frames < 1:
            raise ValueError(f"frames must be 1 or more, got {self.frames}")


def tune(
    vlm: VLM,
    files: Mapping[Path, Path],
    out: Path,
    *,
    plan: finetuning.LoraPlan,
    shown: Shown,
    rank: int = 64,
    balance: bool = True,
    progress: bool = False,
) -> tuple[VLM, pd.DataFrame, int]:
    """Return the model with a LoRA adapter tuned on instruction files, the loss curve and the number of rows.

    Args:
        vlm: the model; the adapter is put into it.
        files: {file of instruction rows: folder of its videos}; rows of the split "train" are used.
        out: folder for checkpoints and the adapter.
        plan: how to train.
        shown: what the model is shown of a video.
        rank: of the adapter; alpha is twice it.
        balance: repeat judgements of the rarer verdict until both come equally often.
        progress: show a bar.
    """
    rows = instruction_data.read_rows(files)
    rows = instruction_data.balanced(rows, seed=plan.seed) if balance else rows
    tuned = vlm.replace(model=finetuning.lora(vlm.model, r=rank, alpha=2 * rank, seed=plan.seed))
    samples = instruction_data.InstructionSamples(
        rows,
        "/",
        tuned,
        num_frames=shown.frames,
        as_video=shown.as_video,
        fps=shown.fps,
        max_pixels=shown.max_pixels,
        seed=plan.seed,
    )
    rule = token_selection.random_ratio(shown.keep_ratio, token_selection.token_rule(shown.token_rule))
    wrap_model = partial(token_pruning.prune_tokens, keep_ratio=1.0, rule=rule) if shown.keep_ratio < 1 else None
    facts = {"rank": rank, **asdict(shown)}
    losses = finetuning.fit(tuned, samples, plan=plan, folder=out, wrap_model=wrap_model, facts=facts, progress=progress)
    return tuned, losses, len(rows)


def questions(files: Mapping[Path, Path], *, split: str, counts: Sequence[int], frames: int, seed: int = 0) -> list[dict]:
    """Return the judgements of instruction files and the order questions of the records.jsonl beside them, paths made whole.

    ValueError where a split has neither.
    """
    rows: list[dict] = []
    for file, root in files.items():
        asked = [row for row in instruction_data.read_rows({file: root}, split=split) if row.get("task") == "judgement"]
        beside = file.parent / "records.jsonl"
        found = records.read_records(beside) if beside.is_file() and counts else []
        usable = [record for record in found if record.split == split and long_enough(record, counts)]
        order = event_order.order_rows(usable, counts=counts, frames=frames, seed=seed)
        rows += asked + [{**row, "video": str(records.inside(row["video"], root).resolve())} for row in order]
    if not rows:
        raise ValueError(f"no judgement and no order question of split {split!r} in {len(files)} files")
    return rows


def long_enough(record: records.VideoRecord, counts: Sequence[int]) -> bool:
    """Return whether a video can be cut into as many pieces."""
    try:
        return all(bool(event_order.boundaries(record, count=count, min_frames=2)) for count in counts)
    except ValueError:
        return False


def exam(vlm: VLM, rows: Sequence[dict], shown: Shown, *, batch_size: int = 8) -> pd.DataFrame:
    """Return a row per question that was asked greedily: question, video, answer, right."""
    samples = event_order.order_samples(
        vlm, rows, "/", frames=shown.frames, answers=False, as_video=shown.as_video, fps=shown.fps, max_pixels=shown.max_pixels
    )
    texts = inference.answers(vlm, samples, batch_size=batch_size, max_new_tokens=EXAM_TOKENS)
    kinds = [f"order, {row['pieces']} pieces" if row["task"] == "order" else row["task"] for row in rows]
    right = [sum(event_order.reward_parts(row, text).values()) >= 1 for row, text in zip(rows, texts, strict=True)]
    return pd.DataFrame({"question": kinds, "video": [row["video"] for row in rows], "answer": texts, "right": right})


def summary(results: Mapping[str, pd.DataFrame], *, seed: int = 0) -> pd.DataFrame:
    """Return accuracy per method and kind of question, the mean over videos, with its 95 % interval over videos, a row each."""
    rows = []
    for method, table in results.items():
        for question, part in table.groupby("question"):
            found = metrics.grouped_mean(part["right"], part["video"], rng=np.random.default_rng(seed))
            facts = dict(accuracy=found.value, low=found.low, high=found.high, questions=len(part), videos=part["video"].nunique())
            rows.append({"question": question, "method": method, **facts})
    return pd.DataFrame(rows).sort_values(["question", "method"], ignore_index=True, ascending=[True, False])


def reinforce(
    vlm: VLM,
    files: Mapping[Path, Path],
    out: Path,
    *,
    plan: grpo.GRPOPlan,
    shown: Shown,
    counts: Sequence[int] = (2,),
    judgement_fraction: float = 0.5,
    exam_split: str = "test",
    progress: bool = False,
) -> pd.DataFrame:
    """Reinforce the weights that train and save adapter, rewards.csv and exam.csv in `out`; return the exam's `summary`.

    Args:
        vlm: the model with an adapter that trains (`finetuning.lora` or `finetuning.trainable_adapter`).
        files: {file of instruction rows: folder of its videos}; rows of the split "train" are trained on.
        out: folder of the results; a stopped run there goes on.
        plan: how to optimise.
        shown: what the model is shown of a video; `frames` of it also of an order question.
        counts: numbers of pieces that are put in order; none asks judgements only.
        judgement_fraction: fraction of the questions that are judgements, where there are both kinds.
        exam_split: whose videos the exams are on, before and after.
        progress: show a bar.
    """
    if shown.keep_ratio < 1:
        rule = token_selection.token_rule(shown.token_rule)
        vlm = vlm.replace(model=token_pruning.prune_tokens(vlm.model, keep_ratio=shown.keep_ratio, rule=rule))
    asked = partial(questions, files, counts=counts, frames=shown.frames, seed=plan.seed)
    train, held_out = instruction_data.balanced(asked(split="train"), seed=plan.seed), asked(split=exam_split)
    _claim(out, vlm, train, plan, shown)
    before = out / "exam_before.csv"
    if before.is_file() and (out / "policy.pt").is_file():  # a run that goes on: the weights have changed since
        results = {"before": formats.read_table(before, keep_default_na=False)}
    else:
        results = {"before": exam(vlm, held_out, shown)}
        artifacts.write_table(before, results["before"])
    curves = event_order.train(
        vlm, train, "/", plan=plan, judgement_fraction=judgement_fraction, frames=shown.frames, as_video=shown.as_video,
        fps=shown.fps, max_pixels=shown.max_pixels, folder=out, progress=progress,
    )  # fmt: skip
    results["after"] = exam(vlm, held_out, shown)
    table = summary(results, seed=plan.seed)
    for name, part in {"exam_after": results["after"], "rewards": curves, "exam": table}.items():
        artifacts.write_table(out / f"{name}.csv", part)
    inner = vlm.replace(model=vlm.model.model) if shown.keep_ratio < 1 else vlm
    question = vlm.question or instruction_data.judgement_question(train)
    finetuning.save_adapter(inner.replace(question=question, num_frames=shown.frames), out, **_facts(vlm, train, plan, shown))
    return table


def _facts(vlm: VLM, rows: Sequence[dict], plan: grpo.GRPOPlan, shown: Shown) -> dict:
    rows_hash = hashlib.sha256(json.dumps(rows, default=str).encode()).hexdigest()
    fixed = {name: value for name, value in asdict(plan).items() if name not in grpo.MAY_CHANGE}
    return {"reinforced": fixed, "shown": asdict(shown), "rows": rows_hash, "trainable": finetuning.trainable_weights(vlm.model)[0]}


def _claim(out: Path, vlm: VLM, rows: Sequence[dict], plan: grpo.GRPOPlan, shown: Shown) -> None:
    """Write what a folder's run is of; where it holds a checkpoint, check that it is of the same."""
    facts = _facts(vlm, rows, plan, shown)
    if (out / "policy.pt").is_file():
        artifacts.check_made_by(out, **facts)
    else:
        artifacts.write_made_by(out, model=vlm.name, kind=vlm.kind, **facts)
