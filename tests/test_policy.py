"""What is sampled is what is scored: on hostile generation configs, with pictures and video, in micro-batches, update by update."""

from copy import deepcopy
from dataclasses import replace

import pytest
import scored_answers
import torch
from peft import get_peft_model_state_dict
from scored_answers import plain_logprobs, samples_of
from transformers import GenerationConfig

from vau_lib.compression import token_pruning
from vau_lib.toy import tiny_vlm
from vau_lib.vlm import chat, finetuning, grpo, models, policy
from vau_lib.workspace import artifacts

SMALL = tiny_vlm.TinySizes(width=32, vision_width=32, text_layers=1, vision_layers=1)
PLAN = grpo.GRPOPlan(steps=2, questions=2, group_size=3, max_new_tokens=6, learning_rate=1e-2, warmup_steps=1, save_steps=1)


def vlm_of(family):
    toy_vlm = tiny_vlm.tiny(family, sizes=SMALL)
    return toy_vlm.replace(model=finetuning.lora(toy_vlm.model, r=4, alpha=8, seed=0))


@pytest.fixture(params=models.FAMILIES)
def any_vlm(request):
    return vlm_of(request.param)


def test_questions_may_show_unlike_numbers_of_pictures_and_videos(any_vlm):
    samples = samples_of(any_vlm)
    batch = chat.collate_prompts(any_vlm, samples)
    torch.manual_seed(0)
    tokens = policy.visual_tokens(any_vlm, batch)
    answers = policy.sample_answers(any_vlm, batch, tokens, group_size=2, temperature=1.0, max_new_tokens=6)
    found = policy.logprobs(any_vlm, batch, tokens, answers, temperature=1.0)
    for row in range(6):
        count = int(answers.mask[row].sum())
        wanted = plain_logprobs(any_vlm, samples[row // 2], answers.ids[row, :count])
        assert torch.allclose(found[row, :count], wanted, atol=1e-4)
        assert not found[row, count:].any()


HOSTILE = {
    "repetition_penalty": 1.3, "top_k": 5, "top_p": 0.5, "temperature": 0.6, "min_new_tokens": 4, "no_repeat_ngram_size": 2,
    "bad_words_ids": [[70], [71, 72]], "min_p": 0.1, "typical_p": 0.7, "begin_suppress_tokens": [80, 81], "forced_eos_token_id": 2,
    "exponential_decay_length_penalty": (1, 1.5), "suppress_tokens": [90, 91], "sequence_bias": [[[95], 3.0]],
}  # fmt: skip


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_the_probabilities_that_are_drawn_from_are_the_scored_ones(any_vlm, temperature, pruned, monkeypatch):
    """A spy on the draw itself, whatever the generation config asks for; the config is as before afterwards."""
    vlm = any_vlm
    config = GenerationConfig(do_sample=True, eos_token_id=[2, 41, 300], pad_token_id=0, **HOSTILE)
    vlm.model.get_base_model().generation_config = config
    before, drawn, draw = config.to_dict(), [], torch.multinomial

    def spy(probabilities, *args, **kwargs):
        drawn.append(probabilities.clone())
        return draw(probabilities, *args, **kwargs)

    monkeypatch.setattr(torch, "multinomial", spy)
    if pruned:
        vlm = vlm.replace(model=token_pruning.prune_tokens(vlm.model, keep_ratio=0.5))
    batch = chat.collate_prompts(vlm, samples_of(vlm))
    tokens = policy.visual_tokens(vlm, batch)
    torch.manual_seed(0)
    answers = policy.sample_answers(vlm, batch, tokens, group_size=4, temperature=temperature, max_new_tokens=6)
    scored = policy.logprobs(vlm, batch, tokens, answers, temperature=temperature)
    assert len(drawn) == answers.ids.shape[1] > 1
    sampled = torch.stack([p.log().gather(1, answers.ids[:, n, None])[:, 0] for n, p in enumerate(drawn)], 1)
    assert torch.allclose(sampled[answers.mask], scored[answers.mask], atol=1e-4)
    assert vlm.model.generation_config is config and config.to_dict() == before


def test_a_generation_config_of_the_adapters_own_is_heeded_and_given_back(any_vlm, monkeypatch):
    """peft hands its own config down to the model inside: its end tokens count, the rest is off, and both are as before."""
    inside, outside = (
        any_vlm.model.get_base_model().generation_config,
        GenerationConfig(eos_token_id=[2, 41], pad_token_id=0, **HOSTILE),
    )
    any_vlm.model.generation_config = outside
    widths, draw = [], torch.multinomial
    monkeypatch.setattr(torch, "multinomial", lambda p, *a, **o: widths.append((p > 0).sum(-1).min()) or draw(p, *a, **o))
    batch = chat.collate_prompts(any_vlm, samples_of(any_vlm))
    tokens = policy.visual_tokens(any_vlm, batch)
    policy.sample_answers(any_vlm, batch, tokens, group_size=2, temperature=1.0, max_new_tokens=3)
    assert min(widths) == len(any_vlm.tokenizer) - len(any_vlm.visual_token_ids), "top-k is off"
    assert policy.end_tokens(any_vlm) == [2, 41] and any_vlm.model.generation_config is outside
    assert any_vlm.model.get_base_model().generation_config is inside


def test_answers_beyond_the_context_are_refused(any_vlm):
    batch = chat.collate_prompts(any_vlm, samples_of(any_vlm))
    tokens, length = policy.visual_tokens(any_vlm, batch), batch["input_ids"].shape[1]
    with pytest.raises(ValueError, match=f"^{length} tokens and 2048 new ones exceed the 2048 of tiny-"):
        policy.sample_answers(any_vlm, batch, tokens, group_size=1, temperature=1.0, max_new_tokens=2048)


def test_every_end_token_of_the_generation_config_ends_an_answer(any_vlm):
    """Half of all ids end: nearly every answer holds one before the longest length, and a loop over ids knows where."""
    ends = list(range(0, len(any_vlm.tokenizer), 2))
    any_vlm.model.get_base_model().generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=1)
    batch = chat.collate_prompts(any_vlm, samples_of(any_vlm))
    torch.manual_seed(0)
    tokens = policy.visual_tokens(any_vlm, batch)
    answers = policy.sample_answers(any_vlm, batch, tokens, group_size=8, temperature=1.0, max_new_tokens=8)
    short = 0
    for ids, mask in zip(answers.ids.tolist(), answers.mask.tolist(), strict=True):
        stop = next((n + 1 for n, one in enumerate(ids) if one in ends), len(ids))
        assert mask == [n < stop for n in range(len(ids))]
        short += stop < 8
    assert short > 12 and policy.end_tokens(any_vlm) == ends
    any_vlm.model.generation_config.eos_token_id = None
    assert policy.end_tokens(any_vlm) == [any_vlm.tokenizer.eos_token_id]


def test_answers_sampled_in_parts_fit_together(any_vlm):
    batch = chat.collate_prompts(any_vlm, samples_of(any_vlm))
    tokens = policy.visual_tokens(any_vlm, batch)
    torch.manual_seed(0)
    answers = policy.sample_answers(any_vlm, batch, tokens, group_size=3, temperature=1.0, max_new_tokens=5, batch_size=4)
    assert answers.ids.shape[0] == len(answers.texts) == 9 and answers.mask[:, 0].all()


@pytest.mark.parametrize("pruned", [False, True])
def test_a_prompt_is_read_once_for_all_its_answers(any_vlm, pruned, monkeypatch):
    """Tokens that enter the first layer, against a roll-out that reads the prompt of every answer; both draw the same."""
    vlm, read, found, draw = any_vlm, [], [], torch.multinomial
    vlm.model.eval()
    if pruned:
        vlm = vlm.replace(model=token_pruning.prune_tokens(vlm.model, keep_ratio=0.5))
    samples = samples_of(vlm)
    if vlm.family == "qwen2_5_vl":  # longer in time than wide or high, where the class goes on from a cache elsewhere
        times_s = [float(n) for n in range(16)]
        samples.append(chat.encode(vlm, scored_answers.frames_of(16, 4), "What?", times_s=times_s, as_video=True))
    batch = chat.collate_prompts(vlm, samples)
    tokens = policy.visual_tokens(vlm, batch)
    length = (tokens if pruned else batch)["input_ids"].shape[1]
    layer = next(part for name, part in vlm.model.named_modules() if name.endswith("language_model.layers.0"))
    layer.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape[0] * inputs[0].shape[1]))
    monkeypatch.setattr(torch, "multinomial", lambda p, *args, **options: found.append(p.clone()) or draw(p, *args, **options))

    def answers():
        read.clear(), found.clear()
        torch.manual_seed(0)
        made = policy.sample_answers(vlm, batch, tokens, group_size=4, temperature=1.0, max_new_tokens=5)
        return made.ids, sum(read), torch.stack(found)

    ids, once, probabilities = answers()
    monkeypatch.setattr(
        policy, "_prefilled", lambda vlm, _, batch, tokens, questions, __: policy._prompts(vlm, batch, tokens, questions)
    )
    plain_ids, each, plain = answers()
    assert torch.equal(ids, plain_ids) and torch.allclose(probabilities, plain, atol=1e-6)
    assert each - once == len(samples) * (4 * length - (length + 4))


# Updates


def letters(text, _):
    return float(len(text))


def trained(vlm, plan, *, train_vision=False, reward=letters):
    vlm = vlm.replace(model=deepcopy(vlm.model))
    if train_vision:
        for name, part in vlm.model.named_parameters():
            part.requires_grad_(part.requires_grad or "visual" in name or "vision" in name)
    samples = samples_of(vlm)
    curves = grpo.train(vlm, lambda *_: [(one, None) for one in samples], reward, plan=plan, train_vision=train_vision)
    return {name: part.detach() for name, part in vlm.model.named_parameters() if part.requires_grad}, curves


@pytest.mark.parametrize(
    "options", [{}, {"divide_by_std": True}, {"beta": 0.2}, {"beta": 0.2, "divide_by_std": True}, {"train_vision": True}]
)
def test_micro_batches_have_the_gradient_of_one_batch(any_vlm, options):
    """Plain descent would hide nothing: weights after two steps of two updates, in batches of 9, 2 and 1 answers."""
    options = dict(options)
    vision = options.pop("train_vision", False)
    plan = replace(PLAN, learning_rate=1e-3, **options)
    (whole, curve), *others = [trained(any_vlm, replace(plan, micro_batch=n), train_vision=vision) for n in (0, 2, 1)]
    assert (curve["dead"] < 1).all()
    start = dict(any_vlm.model.named_parameters())
    moved = sum(float((part - start[name]).square().sum()) for name, part in whole.items()) ** 0.5
    for weights, other in others:  # Adam turns rounding of a gradient near 0 into a whole step: compared as vectors
        apart = sum(float((weights[name] - part).square().sum()) for name, part in whole.items()) ** 0.5
        assert apart < 0.02 * moved, (apart, moved)
        assert other["loss"].tolist() == pytest.approx(curve["loss"].tolist(), abs=1e-5)
        assert other["kl"].tolist() == pytest.approx(curve["kl"].tolist(), abs=1e-5)
    tower = [name for name in whole if "visual" in name or "vision" in name]
    assert bool(tower) == vision and any(not torch.equal(whole[name], start[name]) for name in whole)


def test_later_updates_are_held_by_the_clip(any_vlm, monkeypatch):
    """Old log-probabilities are of the weights that sampled, in every update; the ratio leaves [.8, 1.2] and is cut."""
    calls, objective = [], grpo.objective

    def spy(logprobs, old, advantage, mask, **options):
        calls.append((logprobs.detach().clone(), old.clone(), mask))
        loss, facts = objective(logprobs, old, advantage, mask, **options)
        ratio = (logprobs - old).exp()[mask]
        assert facts["clipped"] == pytest.approx(float(((ratio < 0.8) | (ratio > 1.2)).float().mean()))
        return loss, facts

    monkeypatch.setattr(grpo, "objective", spy)
    _, curves = trained(any_vlm, replace(PLAN, steps=1, updates=4, learning_rate=3e-2))
    assert len(calls) == 4 and curves["clipped"].iloc[0] > 0
    first = calls[0][0]
    assert all(torch.allclose(old, first, atol=1e-6) for _, old, _ in calls)
    assert not torch.allclose(calls[1][0], first, atol=1e-3)


def test_two_updates_are_two_steps_on_one_surrogate(any_vlm):
    """Against a small loop of the test's own: plain forward of each answer, the clipped ratio by hand, the same optimiser."""
    plan = replace(PLAN, steps=1, learning_rate=1e-2, group_size=2)
    found, _ = trained(any_vlm, plan)
    vlm = any_vlm.replace(model=deepcopy(any_vlm.model).eval())
    samples = samples_of(vlm)
    batch = chat.collate_prompts(vlm, samples)
    torch.manual_seed(plan.seed)
    tokens = policy.visual_tokens(vlm, batch)
    answers = grpo.rollout(vlm, batch, tokens, plan, group_size=2)
    rewards = torch.tensor([letters(text, None) for text in answers.texts]).view(3, 2)
    gain = (rewards - rewards.mean(1, keepdim=True)).flatten()
    weights = [part for part in vlm.model.parameters() if part.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=plan.learning_rate, weight_decay=0.0)
    old = None
    for _ in range(2):
        now = []
        for row in range(6):
            count = int(answers.mask[row].sum())
            text = {**samples[row // 2]}
            text["input_ids"] = torch.cat([text["input_ids"], answers.ids[row : row + 1, :count]], 1)
            text["attention_mask"] = torch.ones_like(text["input_ids"])
            if "mm_token_type_ids" in text:
                zeros = torch.zeros(1, count, dtype=text["mm_token_type_ids"].dtype)
                text["mm_token_type_ids"] = torch.cat([text["mm_token_type_ids"], zeros], 1)
            logits = vlm.model(**text).logits[0, -count - 1 : -1]
            logits[:, vlm.visual_token_ids] = -torch.inf
            now.append(logits.log_softmax(-1).gather(1, answers.ids[row, :count, None])[:, 0])
        old = old or [part.detach() for part in now]
        loss = 0.0
        for row in range(6):
            ratio = (now[row] - old[row]).exp()
            loss = loss - torch.minimum(ratio * gain[row], ratio.clamp(0.8, 1.2) * gain[row]).sum() / (6 * plan.max_new_tokens)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
    mine = {name: part.detach() for name, part in vlm.model.named_parameters() if part.requires_grad}
    assert all(torch.allclose(found[name], mine[name], atol=5e-4) for name in mine)


def test_a_plan_that_cannot_run_is_refused():
    for wrong in ({"updates": 0}, {"group_size": 0}, {"micro_batch": -1}, {"temperature": 0.0}, {"temperature": float("nan")}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong.values()))}"):
            grpo.GRPOPlan(**wrong)


# Checkpoints


def test_a_foreign_or_damaged_checkpoint_is_one_line(tmp_path):
    vlm = vlm_of("internvl")
    samples = samples_of(vlm)
    grpo.train(vlm, lambda *_: [(one, None) for one in samples], letters, plan=PLAN, folder=tmp_path)
    toy_vlm = tiny_vlm.tiny("internvl", sizes=SMALL)
    other = toy_vlm.replace(model=finetuning.lora(toy_vlm.model, r=2, alpha=4))
    with pytest.raises(artifacts.StoreError, match="belongs to another model: its 14 trained tensors do not fit"):
        grpo.train(other, lambda *_: [(one, None) for one in samples], letters, plan=PLAN, folder=tmp_path)
    path = tmp_path / "policy.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(artifacts.StoreError, match="policy.pt cannot be read") as caught:
        grpo.train(vlm, lambda *_: [(one, None) for one in samples], letters, plan=PLAN, folder=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_run_that_draws_in_its_reward_goes_on_as_if_not_stopped(tmp_path):
    import random

    def reward(text, _):
        return float(len(text)) + random.random()

    def run(vlm, steps, folder=None):
        samples = samples_of(vlm)
        return grpo.train(vlm, lambda *_: [(one, None) for one in samples], reward, plan=replace(PLAN, steps=steps), folder=folder)

    straight = run(vlm_of("internvl"), 3)
    run(vlm_of("internvl"), 1, tmp_path)
    random.seed(99)
    assert run(vlm_of("internvl"), 3, tmp_path)["reward"].tolist() == pytest.approx(straight["reward"].tolist())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("family", models.FAMILIES)
def test_a_stopped_run_goes_on_on_a_gpu(family, tmp_path):
    """Sampling draws from the GPU's generator: its state is in the checkpoint."""

    def run(steps, folder=None):
        toy_vlm = tiny_vlm.tiny(family, sizes=SMALL)
        vlm = toy_vlm.replace(model=finetuning.lora(toy_vlm.model, r=4, alpha=8, seed=0).to("cuda"))
        samples = samples_of(vlm)
        curves = grpo.train(
            vlm, lambda *_: [(one, None) for one in samples], letters, plan=replace(PLAN, steps=steps, beta=0.1), folder=folder
        )
        return curves, get_peft_model_state_dict(vlm.model)

    straight, weights = run(4)
    run(2, tmp_path)
    torch.cuda.manual_seed(123)
    resumed, again = run(4, tmp_path)
    assert resumed["reward"].tolist() == pytest.approx(straight["reward"].tolist())
    assert all(torch.allclose(weights[name], part, atol=1e-5) for name, part in again.items())
