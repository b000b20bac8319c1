"""Group-relative policy optimisation (GRPO) of a vision-language model with rewards from functions.

Why not TRL's GRPOTrainer: version 1.16 generates with a video, but its log-probability pass has no video argument, so loss and KL
are of raw placeholder embeddings, without any error (tests/test_grpo_conformance.py). On text the losses equal TRL's.
- answers are sampled and scored by `policy`, from one and the same distribution, ended by every end token of the generation config
- several updates per roll-out: old log-probabilities are those of the weights that sampled, so that `clip` acts from the second on
- an update may go through the answers in micro-batches; the gradient is that of all answers at once
- groups whose rewards are all equal teach nothing and are left out; a reward that is not finite stops training
- a reward may come in named parts, which are logged, because the right form is learned before the right answer
- a question may come with a contrast prompt, the same video spoilt: a bonus compares the answers to both (T-GRPO's idea)
- KL is against the weights the run started from
- every step reports to the trackers of VAU_REPORT_TO
- checkpoints hold weights, optimiser, step and the random state of CPU and GPUs: a stopped run goes on as if it had not stopped
Sources: DeepSeekMath (GRPO), arXiv 2402.03300, Eq. 3 and 4; Dr. GRPO, arXiv 2503.20783, section 3.2.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from vau_lib.vlm import chat
from vau_lib.vlm.models import VLM
from vau_lib.vlm.policy import Rollout, VisualTokens, logprobs, sample_answers, visual_places, visual_tokens
from vau_lib.workspace import artifacts, formats, tracking

MAY_CHANGE = ("steps", "save_steps", "micro_batch")  # of a plan, when a stopped run goes on


@dataclass(frozen=True)
class GRPOPlan:
    """How to optimise.

    `divide_by_std` divides advantages by their group's standard deviation and weighs every answer alike (GRPO); without
    it (Dr. GRPO) sums over tokens are divided by a constant, so that length is not rewarded. `micro_batch` and `rollout_batch` are
    answers that are scored and sampled at once, 0 for all: memory is saved; the gradient stays the same.
    """

    steps: int = 150
    questions: int = 8  # per step
    group_size: int = 8  # answers per question
    learning_rate: float = 1e-3
    temperature: float = 1.0
    max_new_tokens: int = 16
    updates: int = 2  # optimisation steps per roll-out
    micro_batch: int = 0
    rollout_batch: int = 0
    clip: float = 0.2  # of the ratio to the sampling policy, on either side
    beta: float = 0.0  # weight of the KL to the reference
    divide_by_std: bool = False
    max_grad_norm: float = 1.0
    warmup_steps: int = 10
    save_steps: int = 50
    seed: int = 0

    def __post_init__(self):
        for name in ("questions", "group_size", "max_new_tokens", "updates", "save_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not self.temperature > 0 or min(self.micro_batch, self.rollout_batch) < 0:
            raise ValueError(
                "need a temperature above 0 and batches of 0 or more, got "
                f"{self.temperature}, {self.micro_batch} and {self.rollout_batch}"
            )


def advantages(rewards: Tensor, *, divide_by_std: bool) -> Tensor:
    """Return how much better each answer is than its group, (B, G) of rewards (B, G); 0 in a group of equal rewards."""
    advantage = rewards - rewards.mean(1, keepdim=True)
    return advantage / (rewards.std(1, keepdim=True) + 1e-4) if divide_by_std else advantage


def objective(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    plan: GRPOPlan,
    reference_logprobs: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss, and kl and clipped fraction to log.

    min(r A, clip(r) A) per token with r = exp(logprobs - old), minus beta KL, KL = r (exp(d) - d - 1), where
    d = reference - logprobs.

    Args:
        logprobs: of the answers' tokens now, (M, N).
        old_logprobs: when they were sampled, (M, N).
        advantage: of the answers, (M,).
        mask: which tokens belong to an answer, (M, N).
        plan: clip, beta and how to average.
        reference_logprobs: by the weights the run started from, (M, N).
    """
    ratio, weight = (logprobs - old_logprobs).exp(), mask.to(logprobs.dtype)
    clipped = ratio.clamp(1 - plan.clip, 1 + plan.clip)
    loss = -torch.minimum(ratio * advantage[:, None], clipped * advantage[:, None])
    kl = logprobs.new_zeros(())
    if plan.beta and reference_logprobs is not None:
        gap = reference_logprobs - logprobs
        per_token = ratio * (gap.exp() - gap - 1)  # weighed by the ratio, as the tokens were drawn from the old policy
        loss = loss + plan.beta * per_token
        kl = (per_token * weight).sum() / weight.sum()
    if plan.divide_by_std:
        total = ((loss * weight).sum(1) / weight.sum(1).clamp_min(1)).mean()
    else:
        total = (loss * weight).sum() / (len(logprobs) * plan.max_new_tokens)
    return total, {"kl": float(kl.detach()), "clipped": float(((ratio != clipped) * weight).sum() / weight.sum().clamp_min(1))}


def rollout(vlm: VLM, batch: Mapping[str, Tensor], tokens: VisualTokens, plan: GRPOPlan, *, group_size: int) -> Rollout:
    """Sample `group_size` answers to each question of a left-padded batch as the plan says."""
    return sample_answers(
        vlm, batch, tokens, group_size=group_size, temperature=plan.temperature, max_new_tokens=plan.max_new_tokens,
        batch_size=plan.rollout_batch,
    )  # fmt: skip


Prompts = Callable[[int, np.random.Generator], list[tuple]]  # step -> [(sample, target[, contrast sample])]
Reward = Callable[[str, object], float | Mapping[str, float]]  # (answer, target) -> reward, or its named parts
Bonus = Callable[[list[float], list[float]], list[float]]  # (group's rewards, contrast group's) -> the group's


def train(
    vlm: VLM,
    prompts: Prompts,
    reward: Reward,
    *,
    plan: GRPOPlan,
    bonus: Bonus | None = None,
    folder: Path | None = None,
    train_vision: bool = False,
    progress: bool = False,
) -> pd.DataFrame:
    """Train the weights that are not frozen, in place; return a row per step.

    Columns: step, reward, deviation (mean standard deviation of the groups), length (tokens), dead (fraction of groups
    with equal rewards), loss, kl, clipped, entropy, and reward_NAME for each named part.

    Args:
        vlm: the model, with an adapter or with weights that train; it may be token-pruned.
        prompts: gives a step's questions as samples of `chat.encode`, each with the target that `reward` needs.
        reward: of an answer's text, a number or named parts.
        plan: how to optimise.
        bonus: changes the rewards of questions that come with a contrast sample.
        folder: where the checkpoint is kept; a stopped run goes on there.
        train_vision: let gradients reach the vision tower.
        progress: show a bar.

    Raises ValueError where a reward is not finite (the answer is named) or nothing can be trained.
    """
    weights = [part for part in vlm.model.parameters() if part.requires_grad]
    if not weights:
        raise ValueError(f"nothing to train: every weight of {vlm.name} is frozen")
    with artifacts.only_one(Path(folder) / ".lock") if folder else nullcontext():
        return _train(vlm, prompts, reward, weights, plan, bonus, folder, train_vision, progress)


def _train(vlm, prompts, reward, weights, plan: GRPOPlan, bonus, folder, train_vision: bool, progress: bool) -> pd.DataFrame:
    optimiser = torch.optim.AdamW(weights, lr=plan.learning_rate, weight_decay=0.0)
    rows, first, start = _resume(folder, plan, weights, optimiser)
    if not rows:
        torch.manual_seed(plan.seed)
        random.seed(plan.seed)
    vlm.model.eval()  # no dropout: the policy that is scored is the one that was sampled
    bar = tqdm(range(first, plan.steps), desc="grpo", disable=not progress, initial=first, total=plan.steps)
    with tracking.reporting(folder or "grpo") as report:
        for step in bar:
            for group in optimiser.param_groups:
                group["lr"] = plan.learning_rate * min(1.0, (step + 1) / max(1, plan.warmup_steps))
            questions = prompts(step, np.random.default_rng([plan.seed, step]))
            samples = [sample for sample, *_ in questions]
            batch = chat.collate_prompts(vlm, samples)
            tokens = visual_tokens(vlm, batch)
            answers = rollout(vlm, batch, tokens, plan, group_size=plan.group_size)
            parts = _reward_parts(answers, [target for _, target, *_ in questions], reward, plan.group_size)
            rewards = [sum(named.values()) for named in parts]
            if bonus is not None:
                rewards = _with_bonus(vlm, questions, rewards, reward, bonus, plan)
            rewards = torch.tensor(rewards, dtype=torch.float64).view(-1, plan.group_size)  # equal stays equal: no rounding
            row = {"step": step} | _reward_summary(rewards, parts, answers)
            bar.set_postfix(reward=f"{row['reward']:.2f}")
            advantage = advantages(rewards, divide_by_std=plan.divide_by_std).flatten()
            if (advantage.abs() > 1e-9).any():
                turn = _Turn(vlm, samples if train_vision else [], batch, tokens, answers, advantage.float().to(answers.ids.device))
                row |= _update(turn, plan, weights, start, optimiser)
            else:
                row |= {"loss": 0.0, "kl": 0.0, "clipped": 0.0, "entropy": math.nan}
            rows.append(row)
            report(step + 1, {name: value for name, value in row.items() if name != "step"})
            if folder and ((step + 1) % plan.save_steps == 0 or step + 1 == plan.steps):
                _save(folder, plan, weights, start, optimiser, rows)
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class _Turn:
    """One roll-out: what was asked (samples only where gradients reach the tower), what was seen, answered and gained."""

    vlm: VLM
    samples: list[dict[str, Tensor]]
    batch: dict[str, Tensor]
    tokens: VisualTokens
    answers: Rollout
    advantage: Tensor

    def logprobs(self, plan: GRPOPlan, rows: Sequence[int], *, learn: bool) -> Tensor:
        """Return the log-probabilities of these answers; with `learn` through the tower where that is trained."""
        tokens = self._fresh_tokens(plan, rows) if learn and self.samples else self.tokens
        return logprobs(self.vlm, self.batch, tokens, self.answers, temperature=plan.temperature, rows=rows)

    def _fresh_tokens(self, plan: GRPOPlan, rows: Sequence[int]) -> VisualTokens:
        """Return the visual tokens, those of these answers' questions made again by the tower as it is now."""
        if isinstance(self.tokens, dict):
            return visual_tokens(self.vlm, self.batch, train_vision=True)
        tokens, places = list(self.tokens), visual_places(self.vlm, self.batch, len(self.tokens))
        for question in sorted({row // plan.group_size for row in rows}):
            own = visual_tokens(self.vlm, self.samples[question], train_vision=True)
            for place, value in zip([*places[0][question], *places[1][question]], own, strict=True):
                tokens[place] = value
        return tuple(tokens)


def _update(turn: _Turn, plan: GRPOPlan, weights: list, start: list, optimiser: torch.optim.Optimizer) -> dict[str, float]:
    """Take the plan's updates on one roll-out; return entropy and kl before them, loss and clipped fraction of the last."""
    count, answers, first = len(turn.advantage), turn.answers, {"entropy": 0.0, "kl": 0.0}
    live = [n for n in range(count) if plan.beta or abs(float(turn.advantage[n])) > 1e-9]  # the others have no gradient
    size = plan.micro_batch or count
    tokens = int(answers.mask[torch.tensor(live)].sum())
    chunks = [live[n : n + size] for n in range(0, len(live), size)]
    old, reference = [None] * len(chunks), [None] * len(chunks)
    with torch.no_grad():
        if plan.updates > 1:
            old = [turn.logprobs(plan, rows, learn=False) for rows in chunks]
        if plan.beta:
            with _borrowed(weights, start):
                reference = [turn.logprobs(plan, rows, learn=False) for rows in chunks]
    for update in range(plan.updates):
        optimiser.zero_grad()
        measured: dict[str, float] = {}
        for rows, before, base in zip(chunks, old, reference, strict=True):
            place = torch.tensor(rows, device=answers.ids.device)
            mask, current = answers.mask[place], turn.logprobs(plan, rows, learn=True)
            before = current.detach() if before is None else before
            loss, facts = objective(current, before, turn.advantage[place], mask, plan=plan, reference_logprobs=base)
            loss = loss * (len(rows) / count)  # both ways to average divide by the number of answers
            loss.backward()
            if update == 0:  # of the policy that sampled; the mean of its tokens is an estimate of the entropy
                first["entropy"] -= float((current.detach() * mask).sum()) / tokens
                first["kl"] += facts["kl"] * int(mask.sum()) / tokens
            for name, value in facts.items():
                measured[name] = measured.get(name, 0.0) + value * int(mask.sum()) / tokens
            measured["loss"] = measured.get("loss", 0.0) + float(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(weights, plan.max_grad_norm)
        if not torch.isfinite(norm):
            raise ValueError(f"the gradient is {float(norm)} in update {update + 1} of a roll-out: nothing was changed by it")
        optimiser.step()
    return measured | first


def _reward_parts(answers: Rollout, targets: Sequence, reward: Reward, group_size: int) -> list[dict[str, float]]:
    """Return the named parts of every answer's reward; a plain number is the part ""."""
    parts = []
    for number, text in enumerate(answers.texts):
        value = reward(text, targets[number // group_size])
        value = dict(value) if isinstance(value, Mapping) else {"": value}
        if bad := [part for part in value.values() if not math.isfinite(part)]:
            raise ValueError(f"the reward of the answer {text[:80]!r} is {bad[0]}: a reward must be a number")
        parts.append({name: float(part) for name, part in value.items()})
    return parts


def _with_bonus(vlm: VLM, questions, rewards: list[float], reward: Reward, bonus: Bonus, plan: GRPOPlan) -> list[float]:
    """Return the rewards after the bonus of questions with a contrast sample, whose answers are sampled, not learned."""
    places = [n for n, question in enumerate(questions) if len(question) > 2]
    if not places:
        return rewards
    batch = chat.collate_prompts(vlm, [questions[n][2] for n in places])
    answers = rollout(vlm, batch, visual_tokens(vlm, batch), plan, group_size=plan.group_size)
    parts = _reward_parts(answers, [questions[n][1] for n in places], reward, plan.group_size)
    contrast, rewards = [sum(named.values()) for named in parts], list(rewards)
    for number, place in enumerate(places):
        own, other = (slice(n * plan.group_size, (n + 1) * plan.group_size) for n in (place, number))
        rewards[own] = bonus(rewards[own], contrast[other])
    return rewards


def _reward_summary(rewards: Tensor, parts: list[dict[str, float]], answers: Rollout) -> dict[str, float]:
    names = sorted({name for named in parts for name in named} - {""})
    return {
        "reward": float(rewards.mean()),
        "deviation": float(rewards.std(1).mean()),
        "length": float(answers.mask.sum(1).float().mean()),
        "dead": float((rewards.std(1) < 1e-9).float().mean()),
        **{f"reward_{name}": float(np.mean([p[name] for p in parts if name in p])) for name in names},
    }


@contextmanager
def _borrowed(weights: list[Tensor], values: list[Tensor]) -> Iterator[None]:
    """Give the trained weights other values for a while."""
    own = [part.data for part in weights]
    for part, value in zip(weights, values, strict=True):
        part.data = value
    try:
        yield
    finally:
        for part, value in zip(weights, own, strict=True):
            part.data = value


def _save(folder: Path, plan: GRPOPlan, weights: list, start: list, optimiser, rows: list[dict]) -> None:
    state = {
        "plan": asdict(plan),
        "weights": [part.detach().cpu() for part in weights],
        "optimiser": optimiser.state_dict(),
        "start": [part.cpu() for part in start],
        "rows": rows,
        "random": torch.get_rng_state(),
        "random_python": random.getstate(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    with artifacts.replacing(Path(folder) / "policy.pt") as temporary:
        torch.save(state, temporary)


@artifacts.reader()
def _resume(folder: Path | None, plan: GRPOPlan, weights: list, optimiser) -> tuple[list[dict], int, list[Tensor]]:
    """Return a stopped run's rows, the next step, and the weights it started from (kept only where KL needs them)."""
    path = folder and Path(folder) / "policy.pt"
    if not path or not path.is_file():
        return [], 0, [part.detach().clone() for part in weights] if plan.beta else []
    state = formats.read_torch(path)
    if not isinstance(state, dict) or not {"plan", "weights", "optimiser", "start", "rows", "random"} <= state.keys():
        raise artifacts.StoreError(f"{path} cannot be read: it holds something else than a stopped run")
    known = {name: value for name, value in state["plan"].items() if name not in MAY_CHANGE}
    if known != {name: value for name, value in asdict(plan).items() if name not in MAY_CHANGE}:
        raise artifacts.StoreError(f"{path} belongs to another plan: {state['plan']}")
    if [value.shape for value in state["weights"]] != [part.shape for part in weights]:
        raise artifacts.StoreError(f"{path} belongs to another model: its {len(state['weights'])} trained tensors do not fit")
    with torch.no_grad():
        for part, value in zip(weights, state["weights"], strict=True):
            part.copy_(value)
    optimiser.load_state_dict(state["optimiser"])
    torch.set_rng_state(state["random"])
    version, numbers, gauss = state["random_python"]
    random.setstate((version, tuple(numbers), gauss))
    if torch.cuda.is_available() and len(state["random_cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["random_cuda"])
    start = [value.to(part.device) for value, part in zip(state["start"], weights, strict=bool(plan.beta))]
    return state["rows"], state["rows"][-1]["step"] + 1, start
