"""Reward what was said: sample a group of answers per question, push up those that beat their group's mean (GRPO).

Why a loop of our own: TRL 1.16's GRPO trainer trains blind on video. It generates with the pictures, but its log-probability
pass has no video argument, so loss and KL are of raw placeholder embeddings, without any error (seen on transformers 5.23). Here
pictures go through the tower once per question, and the same features serve both; losses equal TRL's on text (a test).
- groups whose rewards are all alike teach nothing and are left out; a reward that is no number stops training and is named
- a reward may come in named parts: form is learned before sense, and one sum would take the first for the second
- a question may come with a rival, the same film spoilt: answers to both are compared before anything is paid (T-GRPO's idea)
- KL is against the weights it started from, a tuned adapter among them; one inner step, so old log-probabilities are the
  sampled ones
- checkpoints hold adapter, optimiser, step and random states: a stopped run goes on as if it had not stopped
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
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vau_lib.vlm import chat
from vau_lib.vlm.models import VLM
from vau_lib.workspace import artifacts


@dataclass(frozen=True)
class GRPOPlan:
    """How to optimise. `by_deviation` divides advantages by their group's deviation and lets every answer weigh alike (GRPO);
    without, neither (Dr. GRPO): sums over tokens are divided by a constant, so that length is not rewarded.
    """

    steps: int = 150
    questions: int = 8  # per step
    group: int = 8  # answers per question
    learning_rate: float = 1e-3
    temperature: float = 1.0
    max_new_tokens: int = 16
    clip: float = 0.2  # of the ratio to the sampling policy, on either side
    beta: float = 0.0  # weight of the KL to the reference
    by_deviation: bool = False
    max_norm: float = 1.0
    warmup: int = 10  # steps
    save_every: int = 50
    seed: int = 0


@dataclass(frozen=True)
class Rollout:
    """Answers to one step's questions: token ids (B * G, N), which of them count, bool, texts, and their log-probabilities."""

    ids: Tensor
    counts: Tensor
    texts: list[str]


def advantages(rewards: Tensor, *, by_deviation: bool) -> Tensor:
    """Return how much better each answer is than its group, (B, G) of rewards (B, G); 0 in a group that is all alike."""
    apart = rewards - rewards.mean(1, keepdim=True)
    if by_deviation:
        apart = apart / (rewards.std(1, keepdim=True) + 1e-4)
    return apart


def objective(
    said: Tensor, old: Tensor, advantage: Tensor, counts: Tensor, *, plan: GRPOPlan, reference: Tensor | None = None
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss and what to log, of log-probabilities (M, N) now and when sampled, advantages (M,), counts (M, N).

    min(r A, clip(r) A) per token with r = exp(said - old), minus beta KL, KL = r (exp(d) - d - 1), d = reference - said.
    """
    ratio, weight = (said - old).exp(), counts.to(said.dtype)
    clipped = ratio.clamp(1 - plan.clip, 1 + plan.clip)
    loss = -torch.minimum(ratio * advantage[:, None], clipped * advantage[:, None])
    kl = said.new_zeros(())
    if plan.beta and reference is not None:
        gap = reference - said
        per_token = ratio * (gap.exp() - gap - 1)  # weighed by the ratio, as the tokens were drawn from the old policy
        loss = loss + plan.beta * per_token
        kl = (per_token * weight).sum() / weight.sum()
    if plan.by_deviation:
        total = ((loss * weight).sum(1) / weight.sum(1).clamp_min(1)).mean()
    else:
        total = (loss * weight).sum() / (len(said) * plan.max_new_tokens)
    return total, {
        "kl": float(kl.detach()),
        "clipped": float(((ratio != clipped) * weight).sum() / weight.sum().clamp_min(1)),
    }


VisualTokens = (
    tuple[Tensor, ...] | dict[str, Tensor]
)  # picture tokens, or prompts with the kept ones in them (token_pruning.compressed)


def visual_tokens(vlm: VLM, batch: dict[str, Tensor], *, learn: bool = False) -> VisualTokens:
    """Return the picture tokens of a batch, one entry per picture; with `learn` gradients reach the tower.

    Of a model that reads a share of them (`token_pruning.compressed`): the shortened prompts, embedded and with their positions.
    """
    with torch.set_grad_enabled(learn):
        inputs, core = chat.to_model(vlm, batch), vlm.model
        if hasattr(core, "prune"):  # a `token_pruning.Compressed`, of a layer above this one
            return core.prune(**{name: value for name, value in inputs.items() if name != "labels"})[0]
        if vlm.family == "internvl":
            return tuple(core.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output)
        return tuple(core.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output)


def rollout(vlm: VLM, batch: dict[str, Tensor], seen: VisualTokens, plan: GRPOPlan, *, group: int) -> Rollout:
    """Return `group` answers to each question of a left-padded batch, drawn at the plan's temperature."""
    marks = {getattr(vlm.processor, name, None) for name in ("image_token_id", "video_token_id")} - {None}
    model, inputs = vlm.model, seen
    if isinstance(seen, dict):
        model = vlm.model.model  # what is shortened already goes to the model itself
    else:
        inputs = {k: v for k, v in chat.to_model(vlm, batch).items() if k not in ("pixel_values", "labels")}
        inputs["mm_encoder_outputs"] = _outputs(vlm, seen)
    with torch.no_grad():
        out = model.generate(
            **inputs, do_sample=True, temperature=plan.temperature, top_k=0, top_p=1.0,
            num_return_sequences=group, max_new_tokens=plan.max_new_tokens, suppress_tokens=sorted(marks),
        )  # fmt: skip
    ids = out[:, inputs["input_ids"].shape[1] :]
    ended = (ids == vlm.tokenizer.eos_token_id).int()
    counts = (ended.cumsum(1) - ended) == 0  # up to the end mark, and it too
    return Rollout(ids, counts, chat.decode(vlm, torch.where(counts, ids, vlm.tokenizer.pad_token_id)))


def logprobs(vlm: VLM, batch: dict[str, Tensor], seen: VisualTokens, said: Rollout, *, temperature: float) -> Tensor:
    """Return the log-probability of every token of the answers, (B * G, N), given the questions and their pictures."""
    keep, group = said.ids.shape[1] + 1, len(said.ids) // len(batch["input_ids"])
    if isinstance(seen, dict):
        logits = vlm.model.model(**_longer(vlm, seen, said, group), logits_to_keep=keep).logits
    else:
        logits = vlm.model(**_whole(vlm, batch, seen, said, group), logits_to_keep=keep).logits
    scores = (logits[:, -keep:-1].float() / temperature).log_softmax(-1)
    return scores.gather(2, said.ids[..., None])[..., 0]


def _longer(vlm: VLM, short: dict[str, Tensor], said: Rollout, group: int) -> dict[str, Tensor]:
    """Return shortened prompts, each `group` times, with their answers: embeddings, mask and positions that go on by one."""
    many = short["inputs_embeds"].repeat_interleave(group, 0)
    answers = vlm.model.get_input_embeddings()(said.ids)
    mask = torch.cat([short["attention_mask"].repeat_interleave(group, 0), said.counts.long()], 1)
    places = short["position_ids"].repeat_interleave(group, -2)
    after = places[..., -1:] + torch.arange(1, said.ids.shape[1] + 1, device=places.device)
    return {
        "inputs_embeds": torch.cat([many, answers.to(many.dtype)], 1), "attention_mask": mask,
        "position_ids": torch.cat([places, after], -1),
    }  # fmt: skip


def _whole(vlm: VLM, batch: dict[str, Tensor], seen: tuple[Tensor, ...], said: Rollout, group: int) -> dict:
    """Return whole prompts, each `group` times, with their answers and what was seen."""
    prompt = {
        name: value.repeat_interleave(group, 0)
        for name, value in batch.items()
        if name in ("input_ids", "attention_mask")
    }
    inputs = {
        "input_ids": torch.cat([prompt["input_ids"], said.ids], 1),
        "attention_mask": torch.cat([prompt["attention_mask"], said.counts.long()], 1),
    }
    if "mm_token_type_ids" in batch:
        kinds = batch["mm_token_type_ids"].repeat_interleave(group, 0)
        inputs["mm_token_type_ids"] = torch.cat([kinds, torch.zeros_like(said.ids)], 1)
    if "image_grid_thw" in batch:
        per = len(batch["image_grid_thw"]) // len(batch["input_ids"])
        grid = batch["image_grid_thw"].unflatten(0, (-1, per)).repeat_interleave(group, 0).flatten(0, 1)
        inputs["image_grid_thw"] = grid
    per = len(seen) // len(batch["input_ids"])
    many = [
        one for row in range(len(batch["input_ids"])) for _ in range(group) for one in seen[row * per : (row + 1) * per]
    ]
    return {**chat.to_model(vlm, inputs), "mm_encoder_outputs": _outputs(vlm, many)}


def _outputs(vlm: VLM, seen: Sequence[Tensor]) -> dict:
    """Return picture tokens as the family's forward takes them; a fresh object per call, for generate changes it."""
    tokens = torch.stack(tuple(seen)) if vlm.family == "internvl" else tuple(seen)
    return {"image": BaseModelOutputWithPooling(pooler_output=tokens)}


Prompts = Callable[[int, np.random.Generator], list[tuple]]  # step -> [(turn, what its reward needs[, a rival turn])]

Reward = Callable[[str, object], float | Mapping[str, float]]

Bonus = Callable[[list[float], list[float]], list[float]]  # (group's rewards, rival's) -> the group's


def train(
    vlm: VLM, turns: Prompts, reward: Reward, *, plan: GRPOPlan, bonus: Bonus | None = None, folder: Path | None = None,
    learn_tower: bool = False, progress: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """Train the weights that are not frozen, in place; return a row per step: reward, length, entropy, kl, dead, loss.

    `turns(step, rng)` gives a step's questions, each with what `reward(text, needs)` must know; named parts of a reward are
    logged as reward_NAME. A question with a rival has its group's rewards passed through `bonus(rewards, rival's rewards)`.
    With `folder` a stopped run goes on.
    ValueError when a reward is no number (it is named), or nothing can be trained.
    """
    trained = [part for part in vlm.model.parameters() if part.requires_grad]
    if not trained:
        raise ValueError(f"nothing to train: every weight of {vlm.name} is frozen")
    optimiser = torch.optim.AdamW(trained, lr=plan.learning_rate, weight_decay=0.0)
    rows, first, started = _resumed(folder, plan, trained, optimiser)
    if not rows:
        torch.manual_seed(plan.seed)
        random.seed(plan.seed)
    vlm.model.eval()  # no dropout: what is sampled is what is scored
    for step in tqdm(range(first, plan.steps), desc="policy", disable=not progress, initial=first, total=plan.steps):
        for part in optimiser.param_groups:
            part["lr"] = plan.learning_rate * min(1.0, (step + 1) / max(1, plan.warmup))
        given = turns(step, np.random.default_rng([plan.seed, step]))
        rows.append(
            {"step": step}
            | _one_step(vlm, given, reward, bonus, plan, optimiser, trained, started, learn_tower=learn_tower)
        )
        if folder and ((step + 1) % plan.save_every == 0 or step + 1 == plan.steps):
            _save(folder, plan, trained, started, optimiser, rows)
    return pd.DataFrame(rows)


def _asked(vlm: VLM, turns: Sequence[dict]) -> dict[str, Tensor]:
    return chat.collate(vlm, [{k: v for k, v in turn.items() if k != "labels"} for turn in turns], side="left")


def _worth(vlm: VLM, said: Rollout, needs: Sequence, reward: Reward, group: int) -> list[dict[str, float]]:
    """Return the named parts of every answer's reward."""
    paid = [reward(text, needs[n // group]) for n, text in enumerate(said.texts)]
    paid = [dict(value) if isinstance(value, Mapping) else {"": value} for value in paid]
    return [{k: _number(v, text) for k, v in value.items()} for value, text in zip(paid, said.texts, strict=True)]


def _compared(vlm, given, values: list[float], reward: Reward, bonus: Bonus, plan: GRPOPlan) -> list[float]:
    """Return rewards after the bonus, where a question has a rival; what is said to rivals teaches nothing by itself."""
    places = [n for n, item in enumerate(given) if len(item) > 2]
    if not places:
        return values
    batch = _asked(vlm, [given[n][2] for n in places])
    said = rollout(vlm, batch, visual_tokens(vlm, batch), plan, group=plan.group)
    rival = [sum(parts.values()) for parts in _worth(vlm, said, [given[n][1] for n in places], reward, plan.group)]
    values = list(values)
    for number, place in enumerate(places):
        own, other = (slice(n * plan.group, (n + 1) * plan.group) for n in (place, number))
        values[own] = bonus(values[own], rival[other])
    return values


def _one_step(
    vlm, given, reward: Reward, bonus, plan: GRPOPlan, optimiser, trained, started, *, learn_tower: bool
) -> dict:
    batch = _asked(vlm, [item[0] for item in given])
    seen = visual_tokens(vlm, batch, learn=learn_tower)
    still = {k: v.detach() for k, v in seen.items()} if isinstance(seen, dict) else tuple(one.detach() for one in seen)
    said = rollout(vlm, batch, still, plan, group=plan.group)
    parts = _worth(vlm, said, [item[1] for item in given], reward, plan.group)
    values = [sum(one.values()) for one in parts]
    if bonus is not None:
        values = _compared(vlm, given, values, reward, bonus, plan)
    rewards = torch.tensor(values, dtype=torch.float64).view(-1, plan.group)  # alike is alike: no rounding
    better = advantages(rewards, by_deviation=plan.by_deviation).flatten()
    alive, better = better.abs() > 1e-9, better.float().to(said.ids.device)
    facts = {"reward": float(rewards.mean()), "deviation": float(rewards.std(1).mean()),
             "length": float(said.counts.sum(1).float().mean()),
             "dead": float((rewards.std(1) < 1e-9).float().mean())}  # fmt: skip
    facts |= {f"reward_{name}": float(np.mean([one[name] for one in parts if name in one]))
              for name in sorted({name for one in parts for name in one} - {""})}  # fmt: skip
    if not alive.any():
        return facts | {"loss": 0.0, "kl": 0.0, "clipped": 0.0, "entropy": math.nan}
    now = logprobs(vlm, batch, seen, said, temperature=plan.temperature)
    reference = None
    if plan.beta:
        with torch.no_grad(), _as(trained, started):
            reference = logprobs(vlm, batch, still, said, temperature=plan.temperature)
    loss, more = objective(now, now.detach(), better, said.counts, plan=plan, reference=reference)
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, plan.max_norm)
    optimiser.step()
    surprise = float(
        -(now.detach() * said.counts).sum() / said.counts.sum()
    )  # of sampled tokens: an estimate of the entropy
    return facts | {"loss": float(loss.detach()), "entropy": surprise} | more


@contextmanager
def _as(trained: list[Tensor], started: list[Tensor]) -> Iterator[None]:
    """Lend the trained weights other values."""
    own = [part.data for part in trained]
    for part, value in zip(trained, started, strict=True):
        part.data = value
    try:
        yield
    finally:
        for part, value in zip(trained, own, strict=True):
            part.data = value


def _number(value: float, text: str) -> float:
    if not math.isfinite(value):
        raise ValueError(f"the reward of the answer {text[:80]!r} is {value}: a reward must be a number")
    return float(value)


def _save(folder: Path, plan: GRPOPlan, trained: list, started: list, optimiser, rows: list[dict]) -> None:
    state = {"plan": asdict(plan), "weights": [part.detach().cpu() for part in trained], "optimiser": optimiser.state_dict(),
             "started": [part.cpu() for part in started], "rows": rows, "random": torch.get_rng_state()}  # fmt: skip
    with artifacts.replacing(Path(folder) / "policy.pt") as temporary:
        torch.save(state, temporary)


def _resumed(folder: Path | None, plan: GRPOPlan, trained: list, optimiser) -> tuple[list[dict], int, list[Tensor]]:
    """Return what a stopped run left: its rows, the next step, the weights it started from (kept only where KL needs them)."""
    path = folder and Path(folder) / "policy.pt"
    if not path or not path.is_file():
        return [], 0, [part.detach().clone() for part in trained] if plan.beta else []
    state = torch.load(path, weights_only=True)
    known = {name: value for name, value in state["plan"].items() if name not in ("steps", "save_every")}
    if known != {name: value for name, value in asdict(plan).items() if name in known}:
        raise artifacts.StoreError(f"{path} belongs to another plan: {state['plan']}")
    with torch.no_grad():
        for part, kept in zip(trained, state["weights"], strict=True):
            part.copy_(kept)
    optimiser.load_state_dict(state["optimiser"])
    torch.set_rng_state(state["random"])
    started = [kept.to(part.device) for kept, part in zip(state["started"], trained, strict=bool(plan.beta))]
    return state["rows"], state["rows"][-1]["step"] + 1, started
