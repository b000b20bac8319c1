"""Group-relative policy optimisation (GRPO) of a vision-language model with rewards from functions.

Why not TRL's GRPOTrainer: version 1.16 generates with the images, but its log-probability pass has no video argument, so
loss and KL are of raw placeholder embeddings, without any error (seen on transformers 5.23). Here images go through the
vision tower once per question, and the same visual tokens serve generation and log-probabilities. On text the losses
equal TRL's (a test).
- groups whose rewards are all equal teach nothing and are left out; a reward that is not finite stops training
- a reward may come in named parts, which are logged, because the right form is learned before the right answer
- a question may come with a contrast prompt, the same video spoilt: a bonus compares the answers to both (T-GRPO's idea)
- KL is against the weights the run started from; one inner step, so old log-probabilities are the current ones
- checkpoints hold weights, optimiser, step and random state: a stopped run goes on as if it had not stopped
Sources: DeepSeekMath (GRPO), arXiv 2402.03300, Eq. 3 and 4; Dr. GRPO, arXiv 2503.20783, section 3.2.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from vau_lib.compression import token_pruning
from vau_lib.vlm import chat
from vau_lib.vlm.models import VLM
from vau_lib.workspace import artifacts


@dataclass(frozen=True)
class GRPOPlan:
    """How to optimise.

    `divide_by_std` divides advantages by their group's standard deviation and weighs every answer alike (GRPO); without
    it (Dr. GRPO) sums over tokens are divided by a constant, so that length is not rewarded.
    """

    steps: int = 150
    questions: int = 8  # per step
    group_size: int = 8  # answers per question
    learning_rate: float = 1e-3
    temperature: float = 1.0
    max_new_tokens: int = 16
    clip: float = 0.2  # of the ratio to the sampling policy, on either side
    beta: float = 0.0  # weight of the KL to the reference
    divide_by_std: bool = False
    max_grad_norm: float = 1.0
    warmup_steps: int = 10
    save_steps: int = 50
    seed: int = 0


@dataclass(frozen=True)
class Rollout:
    """Sampled answers to one step's questions: token ids (B * G, N), their mask, bool, and texts."""

    ids: Tensor
    mask: Tensor
    texts: list[str]


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


# visual tokens per image, or the inputs of a pruned prompt, whose embeddings hold the tokens that are left
VisualTokens = tuple[Tensor, ...] | dict[str, Tensor]


def visual_tokens(vlm: VLM, batch: dict[str, Tensor], *, train_vision: bool = False) -> VisualTokens:
    """Return the visual tokens of a batch, one entry per image; with `train_vision` gradients reach the vision tower.

    Of a model with token pruning: the shortened prompts, embedded and with their positions.
    """
    with torch.set_grad_enabled(train_vision):
        if isinstance(vlm.model, token_pruning.TokenPrunedModel):
            return vlm.model.prune(**chat.to_model(vlm, batch))[0]
        return chat.visual_tokens(vlm, batch)


def rollout(vlm: VLM, batch: dict[str, Tensor], tokens: VisualTokens, plan: GRPOPlan, *, group_size: int) -> Rollout:
    """Sample `group_size` answers to each question of a left-padded batch at the plan's temperature."""
    model, inputs = vlm.model, tokens
    if isinstance(tokens, dict):
        model = vlm.model.model  # a shortened prompt goes to the model itself
    else:
        inputs = {k: v for k, v in chat.to_model(vlm, batch).items() if k != "pixel_values"}
        inputs["mm_encoder_outputs"] = chat.encoder_outputs(vlm, tokens)
    with torch.no_grad():
        ids = model.generate(
            **inputs,
            do_sample=True,
            temperature=plan.temperature,
            top_k=0,
            top_p=1.0,
            num_return_sequences=group_size,
            max_new_tokens=plan.max_new_tokens,
            suppress_tokens=vlm.visual_token_ids,
        )
    ids = ids[:, inputs["input_ids"].shape[1] :]
    ended = (ids == vlm.tokenizer.eos_token_id).int()
    mask = (ended.cumsum(1) - ended) == 0  # up to the end token, and it too
    return Rollout(ids, mask, chat.decode(vlm, torch.where(mask, ids, vlm.tokenizer.pad_token_id)))


def logprobs(vlm: VLM, batch: dict[str, Tensor], tokens: VisualTokens, answers: Rollout, *, temperature: float) -> Tensor:
    """Return the log-probability of every token of the answers, (B * G, N), given the questions and their images."""
    last, group_size = answers.ids.shape[1] + 1, len(answers.ids) // len(batch["input_ids"])
    if isinstance(tokens, dict):
        logits = vlm.model.model(**_pruned_inputs(vlm, tokens, answers, group_size), logits_to_keep=last).logits
    else:
        logits = vlm.model(**_full_inputs(vlm, batch, tokens, answers, group_size), logits_to_keep=last).logits
    scores = (logits[:, -last:-1].float() / temperature).log_softmax(-1)
    return scores.gather(2, answers.ids[..., None])[..., 0]


def _pruned_inputs(vlm: VLM, prompts: dict[str, Tensor], answers: Rollout, group_size: int) -> dict[str, Tensor]:
    """Return shortened prompts, each `group_size` times, with their answers; positions go on by one."""
    embeds = prompts["inputs_embeds"].repeat_interleave(group_size, 0)
    answer_embeds = vlm.model.get_input_embeddings()(answers.ids).to(embeds.dtype)
    mask = prompts["attention_mask"].repeat_interleave(group_size, 0)
    positions = prompts["position_ids"].repeat_interleave(group_size, -2)
    after = positions[..., -1:] + torch.arange(1, answers.ids.shape[1] + 1, device=positions.device)
    return {
        "inputs_embeds": torch.cat([embeds, answer_embeds], 1),
        "attention_mask": torch.cat([mask, answers.mask.long()], 1),
        "position_ids": torch.cat([positions, after], -1),
    }


def _full_inputs(vlm: VLM, batch: dict[str, Tensor], tokens: tuple[Tensor, ...], answers: Rollout, group_size: int) -> dict:
    """Return whole prompts, each `group_size` times, with their answers and visual tokens."""

    def repeated(values: Tensor | Sequence) -> list:
        """Repeat each question's part of what the batch holds image by image."""
        per = len(values) // len(batch["input_ids"])
        starts = range(0, len(values), per)
        return [value for start in starts for _ in range(group_size) for value in values[start : start + per]]

    ids, mask = (batch[name].repeat_interleave(group_size, 0) for name in ("input_ids", "attention_mask"))
    inputs = {"input_ids": torch.cat([ids, answers.ids], 1), "attention_mask": torch.cat([mask, answers.mask.long()], 1)}
    if "mm_token_type_ids" in batch:
        types = batch["mm_token_type_ids"].repeat_interleave(group_size, 0)
        inputs["mm_token_type_ids"] = torch.cat([types, torch.zeros_like(answers.ids)], 1)
    if "image_grid_thw" in batch:
        inputs["image_grid_thw"] = torch.stack(repeated(batch["image_grid_thw"]))
    return {**chat.to_model(vlm, inputs), "mm_encoder_outputs": chat.encoder_outputs(vlm, repeated(tokens))}


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
    optimiser = torch.optim.AdamW(weights, lr=plan.learning_rate, weight_decay=0.0)
    rows, first, start = _resume(folder, plan, weights, optimiser)
    if not rows:
        torch.manual_seed(plan.seed)
        random.seed(plan.seed)
    vlm.model.eval()  # no dropout: the policy that is scored is the one that was sampled
    for step in tqdm(range(first, plan.steps), desc="grpo", disable=not progress, initial=first, total=plan.steps):
        for group in optimiser.param_groups:
            group["lr"] = plan.learning_rate * min(1.0, (step + 1) / max(1, plan.warmup_steps))
        questions = prompts(step, np.random.default_rng([plan.seed, step]))
        batch = chat.collate_prompts(vlm, [sample for sample, *_ in questions])
        tokens = visual_tokens(vlm, batch, train_vision=train_vision)
        fixed = _detached(tokens)
        answers = rollout(vlm, batch, fixed, plan, group_size=plan.group_size)
        parts = _reward_parts(answers, [target for _, target, *_ in questions], reward, plan.group_size)
        rewards = [sum(named.values()) for named in parts]
        if bonus is not None:
            rewards = _with_bonus(vlm, questions, rewards, reward, bonus, plan)
        rewards = torch.tensor(rewards, dtype=torch.float64).view(-1, plan.group_size)  # equal stays equal: no rounding
        row = {"step": step} | _reward_summary(rewards, parts, answers)
        advantage = advantages(rewards, divide_by_std=plan.divide_by_std).flatten()
        if (advantage.abs() > 1e-9).any():
            current = logprobs(vlm, batch, tokens, answers, temperature=plan.temperature)
            reference = None
            if plan.beta:
                with torch.no_grad(), _borrowed(weights, start):
                    reference = logprobs(vlm, batch, fixed, answers, temperature=plan.temperature)
            loss, measured = objective(
                current,
                current.detach(),
                advantage.float().to(answers.ids.device),
                answers.mask,
                plan=plan,
                reference_logprobs=reference,
            )
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, plan.max_grad_norm)
            optimiser.step()
            # of sampled tokens: an estimate of the entropy
            entropy = float(-(current.detach() * answers.mask).sum() / answers.mask.sum())
            row |= {"loss": float(loss.detach()), "entropy": entropy} | measured
        else:
            row |= {"loss": 0.0, "kl": 0.0, "clipped": 0.0, "entropy": math.nan}
        rows.append(row)
        if folder and ((step + 1) % plan.save_steps == 0 or step + 1 == plan.steps):
            _save(folder, plan, weights, start, optimiser, rows)
    return pd.DataFrame(rows)


def _detached(tokens: VisualTokens) -> VisualTokens:
    if isinstance(tokens, dict):
        return {name: value.detach() for name, value in tokens.items()}
    return tuple(value.detach() for value in tokens)


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
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    with artifacts.replacing(Path(folder) / "policy.pt") as temporary:
        torch.save(state, temporary)


def _resume(folder: Path | None, plan: GRPOPlan, weights: list, optimiser) -> tuple[list[dict], int, list[Tensor]]:
    """Return a stopped run's rows, the next step, and the weights it started from (kept only where KL needs them)."""
    path = folder and Path(folder) / "policy.pt"
    if not path or not path.is_file():
        return [], 0, [part.detach().clone() for part in weights] if plan.beta else []
    state = torch.load(path, map_location="cpu", weights_only=True)
    known = {name: value for name, value in state["plan"].items() if name not in ("steps", "save_steps")}
    if known != {name: value for name, value in asdict(plan).items() if name in known}:
        raise artifacts.StoreError(f"{path} belongs to another plan: {state['plan']}")
    with torch.no_grad():
        for part, value in zip(weights, state["weights"], strict=True):
            part.copy_(value)
    optimiser.load_state_dict(state["optimiser"])
    torch.set_rng_state(state["random"])
    if len(state.get("random_cuda", ())) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state.get("random_cuda", ()))
    start = [value.to(part.device) for value, part in zip(state["start"], weights, strict=bool(plan.beta))]
    return state["rows"], state["rows"][-1]["step"] + 1, start
