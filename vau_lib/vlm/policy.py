"""A vision-language model as a policy: sample answers to questions about pictures and video, and score them.

- scored is exactly what was sampled: the softmax of the logits at the temperature, without the tokens that stand for images and
  videos; what else a generation config asks for (top-k, top-p, repetition penalty, forced or banned tokens, a shortest length) is
  off while answers are sampled
- every end token of the generation config ends an answer, the tokenizer's where the config has none
- images and videos go through the vision tower once per question, and so does its prompt when answers are sampled; the same visual
  tokens serve all its answers and their scores
- questions of a batch may hold different numbers of images, or videos, or both; all work happens on the model's device
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from vau_lib.compression import token_pruning
from vau_lib.vlm import chat
from vau_lib.vlm.models import VLM

# visual tokens per image, then per video; or the inputs of a pruned prompt, whose embeddings hold the tokens that are left
VisualTokens = tuple[Tensor, ...] | dict[str, Tensor]


@dataclass(frozen=True)
class Rollout:
    """Sampled answers to one step's questions: token ids (B * G, N), their mask, bool, and texts."""

    ids: Tensor
    mask: Tensor
    texts: list[str]


def visual_tokens(vlm: VLM, batch: Mapping[str, Tensor], *, train_vision: bool = False) -> VisualTokens:
    """Return the visual tokens of a batch, one entry per image, then one per video.

    With `train_vision` gradients reach the vision tower. Of a model with token pruning: the shortened prompts, embedded and with
    their positions.
    """
    with torch.set_grad_enabled(train_vision):
        if isinstance(vlm.model, token_pruning.TokenPrunedModel):
            if token_pruning.deepstack_layers(vlm.model):
                raise ValueError(f"{vlm.name} is not reinforced with pruned tokens: its tower feeds several layers (deepstack)")
            return vlm.model.prune(**chat.to_model(vlm, batch))[0]
        return chat.visual_tokens(vlm, batch)


def end_tokens(vlm: VLM) -> list[int]:
    """Return the ids that end an answer: those of the generation config, else the tokenizer's; ValueError where there is none."""
    ids = getattr(vlm.model.generation_config, "eos_token_id", None)
    ids = vlm.tokenizer.eos_token_id if ids is None else ids
    found = [int(one) for one in (ids if isinstance(ids, list | tuple) else [ids]) if one is not None]
    if not found:
        raise ValueError(f"{vlm.name} has no end token: neither its generation config nor its tokenizer names one")
    return found


def sample_answers(
    vlm: VLM,
    batch: Mapping[str, Tensor],
    tokens: VisualTokens,
    *,
    group_size: int,
    temperature: float,
    max_new_tokens: int,
    batch_size: int = 0,
) -> Rollout:
    """Sample `group_size` answers to each question of a left-padded batch from the distribution that `logprobs` scores.

    Args:
        vlm: the model.
        batch: of `chat.collate_prompts`.
        tokens: of `visual_tokens` for this batch.
        group_size: answers per question.
        temperature: the logits are divided by it.
        max_new_tokens: longest answer.
        batch_size: answers that are sampled at once, 0 for all.

    ValueError where prompts and answers do not fit the context.
    """
    questions = [n for n in range(len(batch["input_ids"])) for _ in range(group_size)]
    ends, pad = end_tokens(vlm), vlm.tokenizer.pad_token_id
    settings = GenerationConfig(
        do_sample=True, temperature=temperature, top_k=0, top_p=1.0, max_new_tokens=max_new_tokens, eos_token_id=ends,
        pad_token_id=ends[0] if pad is None else pad, suppress_tokens=vlm.visual_token_ids or None,
    )  # fmt: skip
    shortened, size = isinstance(tokens, dict), batch_size or len(questions)
    model = vlm.model.model if shortened else vlm.model  # a shortened prompt goes to the model itself
    length = (tokens if shortened else batch)["input_ids"].shape[1]
    if length + max_new_tokens > vlm.context_length:
        raise ValueError(f"{length} tokens and {max_new_tokens} new ones exceed the {vlm.context_length} of {vlm.name}")
    parts = []
    with torch.no_grad(), _only(model, settings):
        for start in range(0, len(questions), size):
            inputs = _prefilled(vlm, model, batch, tokens, questions[start : start + size], settings)
            ids = model.generate(**inputs, generation_config=settings)
            parts.append(ids[:, inputs["input_ids"].shape[1] :])
    longest = max(part.shape[1] for part in parts)
    ids = torch.cat([nn.functional.pad(part, (0, longest - part.shape[1]), value=settings.pad_token_id) for part in parts])
    ended = torch.isin(ids, torch.tensor(ends, device=ids.device)).int()
    mask = (ended.cumsum(1) - ended) == 0  # up to the end token, and it too
    return Rollout(ids, mask, chat.decode(vlm, torch.where(mask, ids, settings.pad_token_id)))


@contextmanager
def _only(model: nn.Module, settings: GenerationConfig) -> Iterator[None]:
    """Give the model no other generation config for a while: transformers fills what is None from the model's own."""
    owners = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]  # peft hands its own down
    own = [vars(owner).get("generation_config") for owner in owners]
    for owner in owners:
        owner.generation_config = settings
    try:
        yield
    finally:
        for owner, config in zip(owners, own, strict=True):
            if config is None:  # an adapter's model shows that of the model inside
                del owner.generation_config
            else:
                owner.generation_config = config


def _prefilled(vlm: VLM, model: nn.Module, batch, tokens, questions: Sequence[int], settings: GenerationConfig) -> dict:
    """Return the model's inputs for these questions of a batch; a repeated question is read once, and its cache repeated."""
    asked = list(dict.fromkeys(questions))
    inputs = _prompts(vlm, batch, tokens, questions)
    if len(asked) == len(questions):
        return inputs
    greedy = dict(do_sample=False, temperature=1.0, top_k=50, top_p=1.0)  # the library's defaults, or it warns
    once = GenerationConfig(**{**settings.to_dict(), **greedy, "max_new_tokens": 1, "return_dict_in_generate": True})
    cache = model.generate(**_prompts(vlm, batch, tokens, asked), generation_config=once).past_key_values
    cache.crop(-1)  # generate reads the prompt's last token again, for the distribution of the first answer token
    place = torch.tensor([asked.index(question) for question in questions], device=inputs["input_ids"].device)
    cache.batch_select_indices(place)
    # said, because Qwen's class goes on from a cache at other positions than from a prompt
    positions = token_pruning.prompt_positions(model, inputs["input_ids"], inputs["attention_mask"], inputs)
    inputs.pop("mm_encoder_outputs", None)
    return inputs | {"past_key_values": cache, "position_ids": positions}


def logprobs(
    vlm: VLM,
    batch: Mapping[str, Tensor],
    tokens: VisualTokens,
    answers: Rollout,
    *,
    temperature: float,
    rows: Sequence[int] | None = None,
) -> Tensor:
    """Return the log-probability of every token of the answers, (B * G, N), given the questions and what they show.

    Args:
        vlm: the model.
        batch: of `chat.collate_prompts`.
        tokens: of `visual_tokens` for this batch.
        answers: of `sample_answers` for this batch.
        temperature: that of the sampling.
        rows: which answers, all where None.
    """
    rows, group_size = range(len(answers.ids)) if rows is None else rows, len(answers.ids) // len(batch["input_ids"])
    inputs = _prompts(vlm, batch, tokens, [row // group_size for row in rows])
    place = torch.tensor(list(rows), device=answers.ids.device)
    ids, mask = answers.ids[place], answers.mask[place].long()
    last = ids.shape[1] + 1
    if isinstance(tokens, dict):
        model, inputs = vlm.model.model, _append_embedded(vlm, inputs, ids)
    else:
        model, inputs["input_ids"] = vlm.model, torch.cat([inputs["input_ids"], ids], 1)
        if "mm_token_type_ids" in inputs:
            inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(ids)], 1)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], mask], 1)
    logits = model(**inputs, logits_to_keep=last).logits[:, -last:-1].float()
    if vlm.visual_token_ids:
        logits = logits.index_fill(-1, torch.tensor(vlm.visual_token_ids, device=logits.device), -torch.inf)
    scores = (logits / temperature).log_softmax(-1).gather(2, ids[..., None])[..., 0]
    return scores.masked_fill(~mask.bool(), 0.0)  # padding may be a token that cannot be sampled


def _append_embedded(vlm: VLM, prompts: dict[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
    """Return shortened prompts with their answers embedded; positions go on by one."""
    embeds, positions = prompts["inputs_embeds"], prompts["position_ids"]
    after = positions[..., -1:] + torch.arange(1, ids.shape[1] + 1, device=positions.device)
    return {
        "inputs_embeds": torch.cat([embeds, vlm.model.get_input_embeddings()(ids).to(embeds.dtype)], 1),
        "attention_mask": prompts["attention_mask"],
        "position_ids": torch.cat([positions, after], -1),
    }


def _prompts(vlm: VLM, batch: Mapping[str, Tensor], tokens: VisualTokens, questions: Sequence[int]) -> dict:
    """Return the model's inputs for these questions of a batch, with repeats, on its device; fresh for every call of generate."""
    place = torch.tensor(list(questions))
    if isinstance(tokens, dict):
        place = place.to(tokens["input_ids"].device)
        return {name: value.index_select(-2 if name == "position_ids" else 0, place) for name, value in tokens.items()}
    inputs = {name: batch[name][place] for name in ("input_ids", "attention_mask", "mm_token_type_ids") if name in batch}
    images, videos = visual_places(vlm, batch, len(tokens))
    shown = {"image": [n for question in questions for n in images[question]]}
    shown["video"] = [n for question in questions for n in videos[question]]
    first_video = len(tokens) - sum(map(len, videos))
    for kind, names in {"image": ("image_grid_thw",), "video": ("video_grid_thw", "second_per_grid_ts")}.items():
        for name in names:
            if name in batch and shown[kind]:
                inputs[name] = batch[name][torch.tensor(shown[kind]) - (first_video if kind == "video" else 0)]
    outputs = chat.encoder_outputs(vlm, [tokens[n] for kind in shown for n in shown[kind]], videos=len(shown["video"]))
    return {**chat.to_model(vlm, inputs), "mm_encoder_outputs": outputs}


def visual_places(vlm: VLM, batch: Mapping[str, Tensor], count: int) -> tuple[list[list[int]], list[list[int]]]:
    """Return which of a batch's `count` visual inputs, images first, are each question's images and which its videos.

    Placeholder tokens are counted; where runs of them end says nothing, for two images may touch. ValueError where they do not fit.
    """
    videos = len(batch["video_grid_thw"]) if "video_grid_thw" in batch else 0
    found, first = [], 0
    for kind, number in (("image", count - videos), ("video", videos)):
        holders = (batch["input_ids"] == getattr(vlm.processor, f"{kind}_token_id", -1)).sum(1).tolist()
        sizes, places = _sizes(vlm, batch, kind, number, sum(holders)), []
        for question, held in enumerate(holders):
            mine = []
            while held > 0 and sizes:
                held -= sizes.pop(0)
                mine.append(first)
                first += 1
            if held:
                raise ValueError(f"question {question} holds {kind} tokens that are no whole {kind}s")
            places.append(mine)
        found.append(places)
    return found[0], found[1]


def _sizes(vlm: VLM, batch: Mapping[str, Tensor], kind: str, number: int, placeholders: int) -> list[int]:
    """Return how many tokens each image or video has in the prompts."""
    grid = batch.get(f"{kind}_grid_thw")
    if grid is None:  # InternVL: all images have as many
        return [placeholders // number] * number if number else []
    return (grid.prod(-1) // vlm.model.config.vision_config.spatial_merge_size**2).tolist()
