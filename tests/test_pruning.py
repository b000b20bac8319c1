"""Compression changes nothing at ratio 0 and full rank, loses what theory says below, and reloads with its smaller shapes."""

import copy
import itertools
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from vau_lib.compression import distillation, low_rank, pruning
from vau_lib.workspace import artifacts


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 24), nn.GELU(), nn.Linear(24, 5)).eval()


@pytest.fixture
def data():
    return list(torch.randn(4, 64, 8, generator=torch.Generator().manual_seed(1)))


def test_pruning_nothing_is_exact(data):
    model = mlp()
    assert torch.equal(pruning.prune(model, 0, data)(data[0]), model(data[0]))


def test_full_rank_is_exact(data):
    model = mlp()
    assert (pruning.factorise(model, 1, data)(data[0]) - model(data[0])).abs().max() <= 1e-4


def test_the_loss_of_a_rank_is_the_sum_of_the_singular_values_beyond_it(data):
    model, x = nn.Sequential(nn.Linear(8, 6, bias=False)).double(), torch.cat(data).double()
    parts = low_rank.whitened_svd(model[0].weight, x.T @ x)
    thin = low_rank.low_rank_layer(model[0], *parts, 3)
    assert (model(x) - thin(x)).pow(2).sum().item() == pytest.approx(parts[1][3:].pow(2).sum().item(), rel=1e-4)


def test_a_constant_channel_is_dropped_for_free(data):
    model = mlp()
    model[0].weight.data[:4] = 0  # four channels that only ever give their bias
    model[0].bias.data[:4] = 1
    small = pruning.prune(model, 4 / 56, data)
    assert small[0].out_features == 28 and (small(data[0]) - model(data[0])).abs().max() < 1e-5


def weights(model):
    return sum(part.numel() for name, part in model.named_parameters() if "weight" in name)


@pytest.mark.parametrize("keep_ratio", [0.3, 0.5, 0.8, 0.95])
def test_the_budget_is_spent_to_within_one_rank(data, keep_ratio):
    model = mlp()
    left = keep_ratio * weights(model) - weights(pruning.factorise(model, keep_ratio, data))
    assert 0 <= left < 24 + 32  # one rank of the largest layer


def test_a_layer_past_break_even_stays_whole_at_its_own_cost():
    flat, steep = torch.ones(6, dtype=torch.double), torch.tensor([9, 1e-6, 0, 0, 0, 0]).double()
    parts = {name: (torch.zeros(6, 6), s, torch.zeros(6, 6)) for name, s in (("flat", flat), ("steep", steep))}
    assert low_rank.allocate_ranks(parts, 36 + 12) == {"flat": None, "steep": 1}  # 36 weights whole, 12 of rank 1
    assert low_rank.allocate_ranks(parts, 36 + 11) == {"flat": 2, "steep": 1}
    with pytest.raises(ValueError, match="rank 1 everywhere takes 24 parameters, the budget is 20"):
        low_rank.allocate_ranks(parts, 20)


@pytest.mark.parametrize("compress", [lambda m, d: pruning.prune(m, 0.5, d), lambda m, d: pruning.factorise(m, 0.5, d)])
def test_a_compressed_model_reloads_into_its_smaller_shapes(tmp_path, data, compress):
    model = mlp()
    small = compress(model, data)
    pruning.save(small, tmp_path)
    again = pruning.load(tmp_path, mlp(seed=9))
    assert torch.equal(again(data[0]), small(data[0]))
    assert pruning.report(model, again)["parameters"] < 0.7


@pytest.mark.parametrize("ratio", [-0.1, 1, 2])
def test_a_ratio_out_of_range_is_refused(data, ratio):
    with pytest.raises(ValueError, match=f"got {ratio}"):
        pruning.prune(mlp(), ratio, data)


@pytest.mark.parametrize("keep_ratio", [0, 1.5])
def test_a_keep_ratio_out_of_range_is_refused(data, keep_ratio):
    with pytest.raises(ValueError, match=f"got {keep_ratio}"):
        pruning.factorise(mlp(), keep_ratio, data)


@pytest.mark.parametrize("nothing", [None, []])
def test_missing_calibration_data_is_refused(nothing):
    for call in (pruning.prune, pruning.factorise):
        with pytest.raises(ValueError, match="needs calibration data"):
            call(mlp(), 0.5, nothing)


def test_a_model_without_an_mlp_is_refused(data):
    with pytest.raises(ValueError, match="no MLP"):
        pruning.prune(nn.Linear(8, 2), 0.5, data)


@pytest.fixture(scope="module")
def digits():
    """A small classifier really trained on scikit-learn's 1,797 real digits: (model, training batches, accuracy of a model).

    Accuracy is that on the last 500, never trained on.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[:1297]), y[:1297]).backward()
        optimiser.step()

    def accuracy(one):
        return (one(x[1297:]).argmax(1) == y[1297:]).float().mean().item()

    return model.eval(), list(x[:1297].split(64)), accuracy


@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.parametrize("way", ["prune", "factorise"])
def test_half_the_parameters_keep_nine_tenths_of_the_accuracy_after_distillation(digits, way, lora_rank):
    model, batches, accuracy = digits
    ratio = {"prune": 0.4, "factorise": 0.49}[way]  # channels at both ends; biases are not factorised
    small = getattr(pruning, way)(model, ratio, batches)
    shapes = {name: part.shape for name, part in small.state_dict().items()}
    losses = distillation.distil(small, model, batches, epochs=5, lora_rank=lora_rank)
    assert 0.45 < pruning.report(model, small)["parameters"] <= 0.5
    assert accuracy(small) >= 0.9 * accuracy(model) > 0.8
    assert len(losses) == 5 and losses[-1] < losses[0]
    assert {name: part.shape for name, part in small.state_dict().items()} == shapes  # an adapter leaves no trace
    assert all(part.requires_grad and part.grad is None for part in small.parameters())


def test_distillation_learns_nothing_from_an_equal_teacher(data):
    assert max(distillation.distil(mlp(), mlp(), data, learning_rate=0)) < 1e-6


def test_distillation_refuses_bad_input(data):
    with pytest.raises(ValueError, match="lora_rank must be 0 or more, got -1"):
        distillation.distil(mlp(), mlp(), data, lora_rank=-1)
    with pytest.raises(ValueError, match="needs calibration data, got no batches"):
        distillation.distil(mlp(), mlp(), [])


def test_healing_learns_the_answers_positions_only(monkeypatch):
    """Against the definition over whole logits, and the logits made are those of the answers alone."""
    teacher, student = tiny_qwen(), tiny_qwen(layers=2)
    ids = torch.randint(5, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    labels = torch.full_like(ids, -100)
    labels[0, 6:9], labels[1, 5:7] = ids[0, 6:9], ids[1, 5:7]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    with torch.no_grad():
        whole = [model(input_ids=ids).logits.float().log_softmax(-1) for model in (teacher, student)]
    pairs = [(0, 5), (0, 6), (0, 7), (1, 4), (1, 5)]  # the positions before each label
    wanted = sum((whole[0][pair].exp() * (whole[0][pair] - whole[1][pair])).sum() for pair in pairs) / len(pairs)
    made, head = [], student.lm_head.forward
    monkeypatch.setattr(student.lm_head, "forward", lambda x: made.append(x.shape[1]) or head(x))
    found = distillation.distillation_loss(student, teacher, batch)
    assert float(found.detach()) == pytest.approx(float(wanted), rel=1e-4) and made == [4]
    losses = distillation.distil(student, teacher, [batch], epochs=4, learning_rate=3e-3, lora_rank=2)
    assert losses[-1] < losses[0]
    with pytest.raises(ValueError, match="no position of the batch has a label"):
        distillation.distillation_loss(student, teacher, {**batch, "labels": torch.full_like(ids, -100)})


def test_a_teacher_is_asked_once_for_a_batch_while_its_answers_may_be_kept(monkeypatch, data):
    said, losses = [], []
    for kept in (2**28, 0):
        monkeypatch.setattr(distillation, "KEPT", kept)
        teacher, student = mlp(), mlp(seed=1)
        teacher.register_forward_hook(lambda *_, kept=kept: said.append(kept))
        losses.append(distillation.distil(student, teacher, data, epochs=3))
    assert losses[0] == losses[1] and losses[0][-1] < losses[0][0]
    assert said.count(0) == 3 * said.count(2**28) == 3 * len(data)


def test_covariances_are_measured_within_the_memory_given(data, monkeypatch):
    """The same factors whatever the memory; never more covariances at once than fit, but for one that is larger itself."""
    from vau_lib.compression import layer_editing

    model, held, measure = mlp(), [], layer_editing.input_covariances

    def spy(*arguments):
        found = measure(*arguments)
        held.append({name: part.nbytes for name, part in found.items()})
        return found

    monkeypatch.setattr(layer_editing, "input_covariances", spy)
    at_once = pruning.factorise(model, 0.5, data)
    assert [set(group) for group in held] == [{"0", "2", "4"}]
    held.clear()
    apart = pruning.factorise(model, 0.5, data, memory_bytes=4 * (32**2 + 8**2))
    assert [set(group) for group in held] == [{"0", "2"}, {"4"}]
    assert all(sum(group.values()) <= 4 * (32**2 + 8**2) for group in held)
    assert all(torch.allclose(a, b) for a, b in zip(at_once.parameters(), apart.parameters(), strict=True))
    held.clear()
    pruning.factorise(model, 0.5, data, memory_bytes=1)
    assert [list(group) for group in held] == [["0"], ["2"], ["4"]]


def test_few_calibration_rows_are_damped_not_refused():
    """Three rows say nothing about most of 64 inputs: what they do say is kept to rounding."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 48)).eval(), torch.randn(3, 64)
    small = pruning.factorise(model, 0.4, [x])
    assert (small(x) - model(x)).abs().max() < 1e-2 * model(x).abs().max()
    with pytest.raises(ValueError, match="not finite on the calibration data"):
        pruning.factorise(model, 0.4, [x * torch.inf])


def tiny_qwen(layers=3, **more):
    """The real class at toy width, random weights."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "rope_parameters": rope, "tie_word_embeddings": True} | more
    vision = {"depth": 3, "hidden_size": 32, "num_heads": 4, "out_hidden_size": 32, "intermediate_size": 32}
    vision |= {"fullatt_block_indexes": [2]}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, image_token_id=60, tie_word_embeddings=True)
    model = Qwen2_5_VLForConditionalGeneration(config)
    for part in model.parameters():  # at the default std of .02 every layer does next to nothing
        if part.ndim == 2:
            part.data *= 8
    return model.eval()


@pytest.fixture(scope="module")
def batch():
    """An image of 4 x 4 patches of noise, four tokens, and five of text."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.cat([torch.full((1, 4), 60), torch.randint(0, 59, (1, 5), generator=generator)], dim=1)
    pixels = torch.randn(16, 3 * 2 * 14 * 14, generator=generator)
    return {
        "input_ids": ids,
        "pixel_values": pixels,
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
        "mm_token_type_ids": (ids == 60).long(),
    }


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def test_compressing_nothing_changes_no_logit_of_a_real_class(batch):
    model = tiny_qwen()
    assert torch.equal(logits(pruning.prune(model, 0, [batch]), batch), logits(model, batch))
    assert (logits(pruning.factorise(model, 1, [batch]), batch) - logits(model, batch)).abs().max() <= 1e-4


def test_heads_fall_by_groups_and_the_rest_is_as_if_they_were_silent(batch):
    model = tiny_qwen()
    small = pruning.prune(model, 0, [batch], head_ratio=0.4, bias_repair=False)
    text, tower = small.model.language_model.layers, small.model.visual.blocks
    groups = [layer.self_attn.num_key_value_heads for layer in text]
    assert all(layer.self_attn.num_heads == 2 * count for layer, count in zip(text, groups, strict=True))
    assert sum(groups) + sum(block.attn.num_heads for block in tower) == 18 - int(0.4 * 18)
    silent = copy.deepcopy(model)  # nothing cut: what falls is only not read
    for name, whole in silent.named_modules():
        for last in ("o_proj", "proj"):
            if name.endswith(("attn." + last,)):
                kept = small.get_submodule(name).weight
                dropped = [n for n in range(32) if not (whole.weight.T[n] == kept.T).all(1).any()]
                whole.weight.data[:, dropped] = 0
    assert (logits(small, batch) - logits(silent, batch)).abs().max() < 1e-4
    assert (logits(small, batch) - logits(model, batch)).abs().max() > 1e-3
    assert small.generate(**batch, max_new_tokens=2, do_sample=False).shape[1] == 11


def test_the_group_that_says_nothing_falls_first(batch):
    model = tiny_qwen(layers=1)
    attention = model.model.language_model.layers[0].self_attn
    attention.v_proj.weight.data[:8] = 0  # the first key/value head; its values are its bias, 0
    small = pruning.prune(model.model.language_model, 0, [{"input_ids": batch["input_ids"]}], head_ratio=0.5, bias_repair=False)
    assert torch.equal(small.layers[0].self_attn.o_proj.weight, attention.o_proj.weight[:, 16:])


def test_uniform_heads_stand_in_a_config_that_can_say_so(tmp_path, batch):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).eval()
    batch = {"input_ids": batch["input_ids"]}
    small = pruning.prune(model, 0.25, [batch], head_ratio=0.5, uniform=True)
    config = small.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 8)
    assert config.intermediate_size == 36 and pruning.save(small, tmp_path)
    assert torch.equal(logits(LlamaForCausalLM.from_pretrained(tmp_path), batch), logits(small, batch))
    with pytest.raises(ValueError, match="Qwen2_5_VLTextConfig cannot express fewer heads"):
        pruning.prune(tiny_qwen(), 0, [batch], head_ratio=0.5, uniform=True)


@pytest.mark.parametrize("least", [0, 1, 2])
def test_the_layer_that_turns_its_input_least_is_dropped(batch, least):
    kinds = [["full_attention", "sliding_attention"][n == least] for n in range(3)]
    model = tiny_qwen(layer_types=kinds, use_sliding_window=True, sliding_window=4)
    layer = model.model.language_model.layers[least]
    for part in (layer.self_attn.o_proj, layer.mlp.down_proj):
        part.weight.data *= 0.01
    assert pruning.drop_layers(model, 1, [batch], layer_list="model.language_model.layers") == [least]
    assert model.config.text_config.layer_types == ["full_attention"] * 2
    assert model.config.text_config.num_hidden_layers == 2
    assert [one.self_attn.layer_idx for one in model.model.language_model.layers] == [0, 1]


def test_dropping_layers_finds_the_stack(batch):
    model = tiny_qwen()
    influence = pruning.block_influence(model, [batch])
    assert set(influence) == {"model.language_model.layers", "model.visual.blocks"}
    assert set(pruning.block_influence(model, [{"input_ids": batch["input_ids"]}])) == {"model.language_model.layers"}
    pruning.drop_layers(model, 1, [batch])
    assert len(model.model.language_model.layers) == 2 and len(model.model.visual.blocks) == 3
    dropped = pruning.drop_layers(model, 1, [batch], layer_list="model.visual.blocks")
    full = [] if dropped == [2] else [1]  # the last of three attended to the whole image
    assert model.model.visual.config.fullatt_block_indexes == model.model.visual.fullatt_block_indexes == full
    assert model.config.vision_config.depth == 2
    with pytest.raises(ValueError, match="no list of layers 'x'"):
        pruning.drop_layers(model, 1, [batch], layer_list="x")
    with pytest.raises(ValueError, match="can drop 1 to 1 layers, asked for 2"):
        pruning.drop_layers(model, 2, [batch])


def test_a_model_is_rebuilt_without_its_original(tmp_path, batch):
    model = tiny_qwen()
    small = pruning.factorise(pruning.prune(model, 0.3, [batch], num_layers=1, head_ratio=0.3), 0.7, [batch])
    assert not pruning.save(small, tmp_path)  # widths differ from layer to layer: no config says that
    assert all(part.is_meta for part in pruning._from_config(tmp_path).parameters())  # full shapes, no memory
    for again in (pruning.load(tmp_path), pruning.load(tmp_path, model)):
        assert torch.equal(logits(again, batch), logits(small, batch))
    again = pruning.load(tmp_path)
    assert again.lm_head.weight is again.model.language_model.embed_tokens.weight
    assert again.generate(**batch, max_new_tokens=2, do_sample=False).shape[1] == 11


def test_half_precision_stays_half_precision(tmp_path, batch):
    small = pruning.prune(tiny_qwen().to(torch.bfloat16), 0.5, [{"input_ids": batch["input_ids"]}], uniform=True)
    pruning.save(small, tmp_path)
    ours, theirs = pruning.load(tmp_path), type(small).from_pretrained(tmp_path)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    # both keep their tables of frequencies in float32, which `.to` above halved
    batch = {"input_ids": batch["input_ids"]}
    assert torch.equal(logits(ours, batch), logits(theirs, batch))


def test_a_uniform_model_is_an_ordinary_checkpoint_in_a_fresh_process(tmp_path, batch):
    small = pruning.prune(tiny_qwen(), 0.5, [batch], num_layers=1, uniform=True)
    assert small.config.text_config.intermediate_size == 32 and small.config.vision_config.intermediate_size == 16
    assert pruning.save(small, tmp_path)
    torch.save(batch, tmp_path / "batch.pt")
    code = (
        "import sys, torch; from transformers import AutoModelForImageTextToText; from vau_lib.compression import pruning\n"
        "batch = torch.load(sys.argv[1] + '/batch.pt', weights_only=True)\n"
        "models = AutoModelForImageTextToText.from_pretrained(sys.argv[1]), pruning.load(sys.argv[1])\n"
        "torch.save([model(**batch).logits.detach() for model in models], sys.argv[1] + '/logits.pt')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    for expected in torch.load(tmp_path / "logits.pt", weights_only=True):
        assert torch.allclose(expected, logits(small, batch), atol=1e-5)


def test_a_generic_model_is_rebuilt_from_an_empty_one(tmp_path, data):
    small = pruning.factorise(pruning.prune(mlp(), 0.5, data), 0.9, data)
    pruning.save(small, tmp_path)
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 24), nn.GELU(), nn.Linear(24, 5))
    assert torch.equal(pruning.load(tmp_path, empty)(data[0]), small(data[0]))


def test_a_checkpoint_of_another_model_is_refused(tmp_path, data):
    pruning.save(pruning.prune(mlp(), 0.5, data), tmp_path)
    with pytest.raises(artifacts.StoreError, match="does not fit this model"):
        pruning.load(tmp_path, nn.Sequential(nn.Linear(8, 32)))
    artifacts.write_json(tmp_path / "config.json", {"architectures": ["os"]})
    with pytest.raises(artifacts.StoreError, match="names no class of transformers: 'os'"):
        pruning.load(tmp_path)


def test_a_compressed_model_with_other_tensors_or_half_a_file_is_one_line(tmp_path, batch):
    def refused() -> str:
        with pytest.raises(artifacts.StoreError) as caught:
            pruning.load(tmp_path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    pruning.save(pruning.prune(tiny_qwen(), 0.5, [batch]), tmp_path)
    files = {name: (tmp_path / name).read_bytes() for name in ("model.safetensors", "config.json", "compression.json")}
    for name, raw in files.items():
        for kept in (len(raw) // 2, 0):
            (tmp_path / name).write_bytes(raw[:kept])
            refused()
        (tmp_path / name).write_bytes(raw)
    for name, content in itertools.product(("config.json", "compression.json"), ("[]", "{}")):
        (tmp_path / name).write_text(content)
        refused()
        (tmp_path / name).write_bytes(files[name])
    weights = load_file(tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        tied = file.metadata()
    (name,) = [name for name in weights if name.endswith("language_model.layers.0.mlp.up_proj.weight")]
    lacking = {key: value for key, value in weights.items() if key != name}
    wrong = [lacking, weights | {"adapter.weight": torch.zeros(2)}, weights | {name: weights[name][:-1].clone()}]
    for said, state in zip((name, "adapter.weight", f"size mismatch for {name}"), wrong, strict=True):
        save_file(state, tmp_path / "model.safetensors", metadata=tied)
        assert said in refused()


def test_a_frozen_model_is_distilled_whole_and_frozen_again():
    """What a merged adapter leaves is frozen everywhere: distillation trains all of it and then restores what was frozen."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 3)).requires_grad_(False).eval()
    data = list(torch.randn(4, 16, 6))
    student = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 3)).requires_grad_(False)
    before = [part.clone() for part in student.parameters()]
    losses = distillation.distil(student, teacher, data, epochs=3)
    assert losses[-1] < losses[0]
    assert all(not torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))
    assert not any(part.requires_grad for part in student.parameters())
