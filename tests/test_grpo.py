"""Losses are TRL's on text, gradients reach the tower, dead groups teach nothing, a stopped run goes on, a bad reward is named."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import get_peft_model_state_dict
from transformers import Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from vau_lib.compression import token_pruning
from vau_lib.toy import tiny_vlm
from vau_lib.vlm import chat, finetuning, grpo, models
from vau_lib.vlm.grpo import GRPOPlan

SMALL = tiny_vlm.TinySizes(width=32, vision_width=32, text_layers=1, vision_layers=1)
PLAN = GRPOPlan(steps=3, questions=2, group_size=4, max_new_tokens=5, learning_rate=1e-2, warmup_steps=1, save_steps=1)


def vlm_of(family):
    toy_vlm = tiny_vlm.tiny(family, sizes=SMALL)
    return toy_vlm.replace(model=finetuning.lora(toy_vlm.model, r=4, alpha=8, seed=0))


@pytest.fixture(scope="module", params=models.FAMILIES)
def any_vlm(request):
    return vlm_of(request.param)


def prompts_of(vlm):
    rng = np.random.default_rng(0)
    videos = rng.integers(0, 255, (4, 3, 56, 56, 3), dtype=np.uint8)
    asked = [chat.encode(vlm, frames, f"What is it, {n}?") for n, frames in enumerate(videos)]
    return lambda step, draw: [(asked[int(n)], int(n)) for n in draw.integers(4, size=PLAN.questions)]


def without_placeholders(vlm, logits):
    """Log-probabilities (N, V) of logits, where the tokens of images and videos are never sampled."""
    odds = logits.double().exp()
    odds[:, vlm.visual_token_ids] = 0
    return (odds / odds.sum(-1, keepdim=True)).log().float()


def length_reward(text, _):
    return float(len(text))


# The objective


@pytest.mark.parametrize("divide_by_std", [True, False])
@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_the_loss_is_trl_s_on_text(divide_by_std, beta, tmp_path, vlm_tokenizer):
    """The same ids, advantages and log-probabilities through GRPOTrainer's own loss: grpo and dr_grpo."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(vlm_tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=vlm_tokenizer.pad_token_id,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).eval()
    settings = GRPOConfig(
        output_dir=str(tmp_path), loss_type="grpo" if divide_by_std else "dr_grpo", epsilon=0.2, max_completion_length=6,
        per_device_train_batch_size=4, num_generations=4, use_cpu=True, report_to="none", temperature=1.0, bf16=False,
    )  # fmt: skip
    engine = GRPOTrainer(
        model=model, args=settings, reward_funcs=lambda **_: [0.0], processing_class=vlm_tokenizer,
        train_dataset=Dataset.from_dict({"prompt": ["a"] * 4}),
    )  # fmt: skip
    engine.current_gradient_accumulation_steps, engine.beta = (1, beta)  # set late: its reference would be loaded from a hub
    rng = torch.Generator().manual_seed(1)
    prompt, answers = (torch.randint(5, len(vlm_tokenizer), (4, n), generator=rng) for n in (7, 6))
    counts = torch.arange(6)[None] < torch.tensor([6, 3, 5, 1])[:, None]
    advantage = torch.tensor([0.7, -0.2, -0.9, 0.4])
    with torch.no_grad():
        whole = torch.cat([prompt, answers], 1)
        mask = torch.cat([torch.ones_like(prompt), counts.long()], 1)
        scores = model(whole, attention_mask=mask).logits[:, 6:-1].log_softmax(-1)
        now = scores.gather(2, answers[..., None])[..., 0]
    old, reference = (now + torch.randn(now.shape, generator=rng) * s for s in (0.3, 0.2))
    given = {
        "prompt_ids": prompt, "prompt_mask": torch.ones_like(prompt), "completion_ids": answers, "completion_mask": counts.long(),
        "advantages": advantage, "old_per_token_logps": old, "ref_per_token_logps": reference, "num_items_in_batch": counts.sum(),
    }  # fmt: skip
    theirs = engine._compute_loss(model, given)
    plan = GRPOPlan(divide_by_std=divide_by_std, beta=beta, max_new_tokens=6, clip=0.2)
    ours, _ = grpo.objective(now, old, advantage, counts, plan=plan, reference_logprobs=reference)
    assert float(ours) == pytest.approx(float(theirs.detach()), abs=1e-6)


@pytest.fixture(scope="module")
def vlm_tokenizer():
    return tiny_vlm.tiny("qwen2_5_vl", sizes=SMALL).tokenizer


def test_advantages_are_trl_s():
    rewards = torch.tensor([[1.0, 0.0, 0.5, 0.5], [2.0, 2.0, 2.0, 2.0]])
    mean = grpo.advantages(rewards, divide_by_std=False)
    assert mean.tolist() == [[0.5, -0.5, 0.0, 0.0], [0.0] * 4]
    scaled = grpo.advantages(rewards, divide_by_std=True)
    assert torch.allclose(scaled[0], mean[0] / (rewards[0].std() + 1e-4)) and not scaled[1].any()


def test_log_probabilities_are_those_of_a_plain_forward(any_vlm):
    """With pictures given as pixels and the whole text at once, one question at a time."""
    vlm = any_vlm
    given = prompts_of(vlm)(0, np.random.default_rng(3))
    batch = chat.collate_prompts(vlm, [sample for sample, _ in given])
    torch.manual_seed(0)
    tokens = grpo.visual_tokens(vlm, batch)
    answers = grpo.rollout(vlm, batch, tokens, PLAN, group_size=2)
    found = grpo.logprobs(vlm, batch, tokens, answers, temperature=1.0)
    for row in range(len(answers.ids)):
        sample, count = given[row // 2][0], int(answers.mask[row].sum())
        whole = {**sample, "input_ids": torch.cat([sample["input_ids"], answers.ids[row : row + 1, :count]], 1)}
        whole["attention_mask"] = torch.ones_like(whole["input_ids"])
        if "mm_token_type_ids" in whole:
            extra = torch.zeros(1, count, dtype=whole["mm_token_type_ids"].dtype)
            whole["mm_token_type_ids"] = torch.cat([sample["mm_token_type_ids"], extra], 1)
        with torch.no_grad():
            scores = without_placeholders(vlm, vlm.model(**whole).logits[0, -count - 1 : -1])
        wanted = scores.gather(1, answers.ids[row, :count, None])[:, 0]
        assert torch.allclose(found[row, :count], wanted, atol=1e-4)


@pytest.mark.parametrize("keep_ratio", [1.0, 0.4])
def test_a_part_of_the_tokens_is_enough_for_a_reward(any_vlm, keep_ratio):
    """Log-probabilities are those of the compressed model's own forward; with every token, those of the whole model."""
    whole = any_vlm
    small = whole.replace(model=token_pruning.prune_tokens(whole.model, keep_ratio=keep_ratio))
    given = prompts_of(whole)(0, np.random.default_rng(3))
    batch = chat.collate_prompts(small, [sample for sample, _ in given])
    torch.manual_seed(0)
    tokens = grpo.visual_tokens(small, batch)
    answers = grpo.rollout(small, batch, tokens, PLAN, group_size=2)
    found = grpo.logprobs(small, batch, tokens, answers, temperature=1.0)
    if keep_ratio == 1:
        same = grpo.logprobs(whole, batch, grpo.visual_tokens(whole, batch), answers, temperature=1.0)
        assert ((found - same) * answers.mask).abs().max() < 1e-4
    for row in range(len(answers.ids)):
        sample, count = given[row // 2][0], int(answers.mask[row].sum())
        text = {**sample, "input_ids": torch.cat([sample["input_ids"], answers.ids[row : row + 1, :count]], 1)}
        text["attention_mask"] = torch.ones_like(text["input_ids"])
        if "mm_token_type_ids" in text:
            extra = torch.zeros(1, count, dtype=text["mm_token_type_ids"].dtype)
            text["mm_token_type_ids"] = torch.cat([sample["mm_token_type_ids"], extra], 1)
        with torch.no_grad():
            scores = without_placeholders(whole, small.model(**text).logits[0, -count - 1 : -1])
        wanted = scores.gather(1, answers.ids[row, :count, None])[:, 0]
        assert torch.allclose(found[row, :count], wanted, atol=1e-4)
    curves = grpo.train(small, prompts_of(small), length_reward, plan=GRPOPlan(**{**vars(PLAN), "beta": 0.1}))
    assert len(curves) == PLAN.steps and np.isfinite(curves["reward"]).all()


# Learning


def test_gradients_reach_the_vision_tower(any_vlm):
    vlm = any_vlm
    given = prompts_of(vlm)(0, np.random.default_rng(0))
    batch = chat.collate_prompts(vlm, [sample for sample, _ in given])
    tower = [part for name, part in vlm.model.named_parameters() if "vision" in name or "visual" in name]
    for part in tower:
        part.requires_grad_(True)
    tokens = grpo.visual_tokens(vlm, batch, train_vision=True)
    answers = grpo.rollout(vlm, batch, [one.detach() for one in tokens], PLAN, group_size=2)
    grpo.logprobs(vlm, batch, tokens, answers, temperature=1.0).sum().backward()
    assert sum(float(part.grad.abs().sum()) for part in tower if part.grad is not None) > 0
    for part in vlm.model.parameters():
        part.grad = None
    for part in tower:
        part.requires_grad_(False)


def test_a_group_that_is_all_alike_changes_nothing():
    vlm = vlm_of("internvl")
    before = {n: p.clone() for n, p in get_peft_model_state_dict(vlm.model).items()}
    curves = grpo.train(vlm, prompts_of(vlm), lambda *_: 1.0, plan=PLAN)
    assert (curves["dead"] == 1).all() and (curves["loss"] == 0).all()
    assert all(torch.equal(before[n], p) for n, p in get_peft_model_state_dict(vlm.model).items())


def test_one_step_makes_the_better_answers_likelier():
    """A bandit of one question: the same draw, scored before and after one step; what beat its group gains on what did not."""
    vlm = vlm_of("internvl")
    asked = prompts_of(vlm)(0, np.random.default_rng(0))[:1]
    plan = GRPOPlan(steps=1, questions=1, group_size=16, max_new_tokens=3, learning_rate=1e-3, warmup_steps=1)
    vlm.model.eval()  # dropout would draw otherwise than the training does
    batch = chat.collate_prompts(vlm, [asked[0][0]])
    tokens = grpo.visual_tokens(vlm, batch)
    torch.manual_seed(plan.seed)
    answers = grpo.rollout(vlm, batch, tokens, plan, group_size=plan.group_size)
    rewards = torch.tensor([[float(len(text) % 3) for text in answers.texts]])
    better = grpo.advantages(rewards, divide_by_std=False)[0]
    assert better.abs().max() > 0

    def gained():
        with torch.no_grad():
            scores = grpo.logprobs(vlm, batch, tokens, answers, temperature=1.0)
        return float(((scores * answers.mask).sum(1) * better).sum())

    before = gained()
    grpo.train(vlm, lambda *_: asked, lambda text, _: float(len(text) % 3), plan=plan)
    assert gained() > before


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path, beta):
    plan = GRPOPlan(**{**vars(PLAN), "beta": beta})
    whole, parts = vlm_of("qwen2_5_vl"), vlm_of("qwen2_5_vl")
    straight = grpo.train(whole, prompts_of(whole), length_reward, plan=plan)
    short = GRPOPlan(**{**vars(plan), "steps": 2})
    grpo.train(parts, prompts_of(parts), length_reward, plan=short, folder=tmp_path)
    again = parts if beta else vlm_of("qwen2_5_vl")  # the start is in the checkpoint, whatever is passed in
    resumed = grpo.train(again, prompts_of(again), length_reward, plan=plan, folder=tmp_path)
    assert resumed["reward"].tolist() == pytest.approx(straight["reward"].tolist())
    ours, theirs = (get_peft_model_state_dict(s.model) for s in (again, whole))
    assert all(torch.allclose(ours[n], theirs[n], atol=1e-6) for n in ours)


def test_parts_of_a_reward_are_logged_by_name():
    vlm = vlm_of("internvl")
    parts = grpo.train(vlm, prompts_of(vlm), lambda text, n: {"a": 1.0, **({"b": 2.0} if n else {})}, plan=PLAN)
    assert (parts["reward_a"] == 1).all() and (parts["reward_b"].dropna() == 2).all() and parts["reward_b"].notna().any()


@pytest.mark.parametrize("worth", [0.1, 0.4, 1.3])
def test_groups_alike_are_dead_whatever_they_are_paid(worth):
    vlm = vlm_of("internvl")
    before = [part.detach().clone() for part in vlm.model.parameters()]
    curves = grpo.train(vlm, prompts_of(vlm), lambda *_: worth, plan=GRPOPlan(**{**vars(PLAN), "group_size": 8}))
    assert (curves["dead"] == 1).all() and (curves["loss"] == 0).all()
    assert all(torch.equal(a, b) for a, b in zip(before, vlm.model.parameters(), strict=True))


def test_a_rival_is_heard_before_anything_is_paid():
    """Two of the three questions have one; the bonus decides, and what it says is what is learned from."""
    vlm, calls = vlm_of("internvl"), []

    def prompts(step, rng):
        asked = prompts_of(vlm)(step, rng)
        return [(*asked[0], asked[1][0]), asked[1], (*asked[0], asked[0][0])]

    def bonus(own, rival):
        calls.append((len(own), len(rival)))
        return [9.0] * len(own)

    curves = grpo.train(vlm, prompts, lambda *_: 0.0, plan=PLAN, bonus=bonus)
    assert calls == [(PLAN.group_size, PLAN.group_size)] * 2 * PLAN.steps
    assert curves["reward"].tolist() == pytest.approx([6.0] * PLAN.steps)


def test_another_plan_s_checkpoint_is_refused(tmp_path):
    vlm = vlm_of("internvl")
    grpo.train(vlm, prompts_of(vlm), length_reward, plan=PLAN, folder=tmp_path)
    with pytest.raises(ValueError, match="belongs to another plan"):
        grpo.train(vlm, prompts_of(vlm), length_reward, plan=GRPOPlan(**{**vars(PLAN), "group_size": 2}), folder=tmp_path)


def test_the_reference_is_what_it_started_from():
    vlm = vlm_of("internvl")
    tuned = GRPOPlan(**{**vars(PLAN), "steps": 4})
    grpo.train(vlm, prompts_of(vlm), length_reward, plan=tuned)  # an adapter that changes something already
    plan = GRPOPlan(**{**vars(PLAN), "beta": 0.5, "steps": 6})
    curves = grpo.train(vlm, prompts_of(vlm), length_reward, plan=plan)
    assert curves["kl"].iloc[0] == pytest.approx(0, abs=1e-6) and curves["kl"].iloc[-1] > 0


def test_bad_input_is_one_clear_line():
    vlm = vlm_of("internvl")
    with pytest.raises(ValueError, match=r"^the reward of the answer '.*' is nan: a reward must be a number$"):
        grpo.train(vlm, prompts_of(vlm), lambda *_: float("nan"), plan=PLAN)
    frozen = tiny_vlm.tiny("internvl", sizes=SMALL)
    for part in frozen.model.parameters():
        part.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train: every weight of tiny-internvl is frozen"):
        grpo.train(frozen, prompts_of(frozen), length_reward, plan=PLAN)
