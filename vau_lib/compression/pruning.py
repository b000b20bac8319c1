"""Most weights of a model answer to nothing its calibration data hold: find those, cut whole structures, keep a checkpoint.

- `prune` drops hidden channels of every MLP by |w|^2 Var[z] over calibration data, and puts what the dropped ones gave on average
  into a bias (FLAP); groups of attention heads by the same; whole layers by how little they turn their input (ShortGPT)
- `factorise` replaces a weight by two thin ones, by an SVD that is exact about the data it was shown (SVD-LLM)
- nothing is changed in place; with `uniform=True` the smaller shapes stand in the model's own config and `from_pretrained` loads
  it, else they stand beside the weights and `load` rebuilds them, without ever holding the original
Source: FLAP (AAAI 2024), SVD-LLM (ICLR 2025), ShortGPT (2024); formulae as in their papers, code ours.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_model
from torch import Tensor, nn

from vau_lib.compression import layer_editing, low_rank
from vau_lib.compression.low_rank import LowRank
from vau_lib.workspace import artifacts

# MERGE-DOC from heads:
# """Attention heads fall in groups: a key/value head goes with all the query heads that read it, or stays with them.
#
# Recognised: q/k/v_proj with o_proj or out_proj (grouped queries or not), and a fused qkv with proj (vision towers). Width
# of a head # is never touched, since rotary sections must add up to it.
# """


@dataclass(frozen=True)
class AttentionHeads:
    """Where one attention's heads are; `groups` key/value heads, each with `queries` query heads of `width` channels."""

    name: str
    output: str  # dotted name of the layer that reads the heads
    groups: int
    queries: int
    width: int
    fused: bool


def attentions(model: nn.Module) -> Iterator[AttentionHeads]:
    """Yield every attention that is recognised."""
    for name, part in model.named_modules():
        linears = {child: one for child, one in part.named_children() if type(one) is nn.Linear}
        prefix = f"{name}." if name else ""
        last = next((one for one in ("o_proj", "out_proj") if one in linears), None)
        if last and {"q_proj", "k_proj", "v_proj"} <= set(linears) and hasattr(part, "head_dim"):
            groups = linears["k_proj"].out_features // part.head_dim
            queries = linears["q_proj"].out_features // part.head_dim // groups
            yield AttentionHeads(name, prefix + last, groups, queries, part.head_dim, False)
        elif {"qkv", "proj"} <= set(linears) and hasattr(part, "num_heads"):
            width = linears["proj"].in_features // part.num_heads
            yield AttentionHeads(name, prefix + "proj", part.num_heads, 1, width, True)


def prune_heads(model: nn.Module, ratio: float, batches: list, *, uniform: bool, bias_repair: bool) -> None:
    """Remove, in place, a share of all groups of heads: those whose channels cost least at their mean (FLAP), relative to
    their attention's average. `uniform` takes the same number from each attention and writes it into its config; ValueError
    where that config cannot say it, and where calibration data reach no attention.
    """
    found = {one.output: one for one in attentions(model)}
    seen = layer_editing.moments(model, {name: model.get_submodule(name) for name in found}, batches)
    if not seen:
        raise ValueError(f"the calibration data reach no attention of {type(model).__name__} whose heads can be pruned")
    if uniform:
        for name in seen:
            _check_config(model, found[name])
    scores = {}
    for name, (_, variance, _) in seen.items():
        score = layer_editing.channel_scores(model.get_submodule(name), variance).reshape(found[name].groups, -1).sum(1)
        scores[name] = score / score.mean().clamp(min=1e-30)
    for name, kept in layer_editing.keep_highest(scores, ratio, each=uniform).items():
        repair = {"repair": bias_repair, "new_bias": not uniform}
        _cut(model, found[name], kept, seen[name][0], **repair)
        if uniform:
            _tell_config(model, found[name], int(kept.sum()))


def set_heads(part: nn.Module, groups: int, queries: int) -> None:
    """Tell an attention how many heads it has now."""
    for key, value in (("num_heads", groups * queries), ("num_key_value_heads", groups)):
        if hasattr(part, key):
            setattr(part, key, value)


def _cut(model: nn.Module, one: AttentionHeads, kept: Tensor, mean: Tensor, *, repair: bool, new_bias: bool) -> None:
    prefix = f"{one.name}." if one.name else ""
    keys = kept.repeat_interleave(one.width)
    asked = kept.repeat_interleave(one.queries * one.width)  # query heads of a group stand side by side
    if one.fused:
        layer_editing.narrow_rows(model, prefix + "qkv", keys.repeat(3))
    else:
        for child, rows in (("q_proj", asked), ("k_proj", keys), ("v_proj", keys)):
            layer_editing.narrow_rows(model, prefix + child, rows)
    layer_editing.narrow_columns(model, one.output, asked, mean, repair=repair, new_bias=new_bias)
    set_heads(model.get_submodule(one.name), int(kept.sum()), one.queries)


def _check_config(model: nn.Module, one: AttentionHeads) -> None:
    if one.fused or layer_editing.config_over(model, one.name, "head_dim", "num_key_value_heads") is None:
        config = layer_editing.config_over(model, one.name)
        raise ValueError(
            f"{type(config).__name__} cannot express fewer heads in {one.name!r} (a head is hidden_size / heads wide there): "
            "prune heads without uniform=True"
        )


def _tell_config(model: nn.Module, one: AttentionHeads, groups: int) -> None:
    config = layer_editing.config_over(model, one.name, "head_dim", "num_key_value_heads")
    config.head_dim, config.num_key_value_heads = one.width, groups
    config.num_attention_heads = groups * one.queries


PAIRS = (("gate_proj", "up_proj", "down_proj"), ("fc1", "fc2"), ("linear1", "linear2"), ("up_proj", "down_proj"))

ELEMENTWISE = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Dropout, nn.LeakyReLU, nn.ELU, nn.Identity)


def prune(
    model: nn.Module, ratio: float, calibration: Iterable, *, heads: float = 0.0, layers: int = 0, stack: str | None = None,
    uniform: bool = False, bias_repair: bool = True,
) -> nn.Module:  # fmt: skip
    """Return a copy without a share `ratio` of all MLP hidden channels, a share `heads` of all groups of attention heads, and
    the `layers` least useful layers of `stack` (dotted name of the list; the largest where None).

    One threshold over the whole model, each part keeps at least one channel or group. `uniform` takes the same share of every
    part, adds no bias, leaves out MLPs whose width no config states, and writes widths and heads into the config, so that plain
    `from_pretrained` loads what `save` wrote. `calibration` yields batches (a Tensor, a tuple, or a dict of keyword arguments);
    what no batch reaches stays whole. ValueError for a share outside [0, 1), no calibration data, or nothing to prune.
    """
    for name, value in (("ratio", ratio), ("heads", heads)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} must lie in [0, 1), got {value}")
    batches, model = layer_editing.batches_of(calibration), copy.deepcopy(model)
    if layers:
        drop_layers(model, layers, batches, stack=stack)
    if heads:
        prune_heads(model, heads, batches, uniform=uniform, bias_repair=bias_repair)
    if ratio:
        _prune_channels(model, ratio, batches, uniform=uniform, bias_repair=bias_repair)
    return model


def factorise(model: nn.Module, keep_ratio: float, calibration: Iterable) -> nn.Module:
    """Return a copy whose linear layers hold at most a share of their weights, rank by rank where it saves most error.

    A layer whose rank would not make it smaller stays whole, at its own cost; share 1 keeps every layer at full rank, is exact to
    rounding, and saves nothing. Tied layers and layers that no batch reaches stay whole and are not counted. Loss of a rank: sum of
    the squared whitened singular values beyond it = |X (W - W_k)^T|^2. ValueError for a share outside (0, 1] or one that rank 1
    everywhere exceeds, and for no calibration data.
    """
    if not 0 < keep_ratio <= 1:
        raise ValueError(f"keep_ratio must lie in (0, 1], got {keep_ratio}")
    batches, model = layer_editing.batches_of(calibration), copy.deepcopy(model)
    tied = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    linears = {n: p for n, p in model.named_modules() if type(p) is nn.Linear and id(p.weight) not in tied}
    seen = layer_editing.moments(model, linears, batches, covariance=True)
    parts = {name: low_rank.whitened(linears[name].weight, seen[name][2]) for name in linears if name in seen}
    if keep_ratio == 1:
        ranks = {name: len(part[1]) for name, part in parts.items()}
    else:
        ranks = low_rank.shared_ranks(parts, keep_ratio * sum(linears[name].weight.numel() for name in parts))
    for name, rank in ranks.items():
        if rank is not None:
            layer_editing.set_part(model, name, low_rank.thin(linears[name], *parts[name], rank))
    return model


def drop_layers(model: nn.Module, count: int, batches: list, *, stack: str | None = None) -> list[int]:
    """Remove, in place, the `count` layers that turn their input least; return their places.

    Block influence of a layer: 1 - mean cosine of what goes in and what comes out, over calibration data. The list is `stack`, or
    of all lists whose layers each pass on what they get in the same shape the one with most parameters. ValueError where there is
    none, or `count` is not below its length.
    """
    influence = block_influence(model, batches)
    if stack is not None and stack not in influence:
        raise ValueError(f"no list of layers {stack!r} that the calibration data reach, there are {sorted(influence)}")

    def size(name: str) -> int:
        return sum(part.numel() for part in model.get_submodule(name).parameters())

    name = stack if stack is not None else max(influence, key=size, default=None)
    turned = influence.get(name, torch.zeros(0))
    if not 0 < count < len(turned):
        raise ValueError(f"can drop 1 to {max(0, len(turned) - 1)} layers, asked for {count}")
    gone = sorted(turned.argsort(stable=True)[:count].tolist())
    _keep_layers(model, name, [n for n in range(len(turned)) if n not in gone])
    return gone


def block_influence(model: nn.Module, batches: list) -> dict[str, Tensor]:
    """Return {name of a list of layers: how much each turns its input, (L,) in [0, 2]} (ShortGPT, Eq. 1)."""
    stacks = {name: part for name, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part)}
    turned: dict[str, dict[int, list]] = {name: {} for name in stacks}

    def measure(name: str, place: int) -> Callable:
        def hook(_, inputs, keywords, output):
            before = inputs[0] if inputs else keywords.get("hidden_states")
            after = output[0] if isinstance(output, tuple) else output
            if isinstance(before, Tensor) and isinstance(after, Tensor) and before.shape == after.shape:
                alike = F.cosine_similarity(before.float(), after.float(), dim=-1)
                turned[name].setdefault(place, []).append(1 - alike.mean().item())

        return hook

    hooks = [
        layer.register_forward_hook(measure(name, place), with_kwargs=True)
        for name, part in stacks.items()
        for place, layer in enumerate(part)
    ]
    layer_editing.run_with_hooks(model, batches, hooks)
    whole = {name: found for name, found in turned.items() if len(found) == len(stacks[name])}
    return {
        name: torch.tensor([sum(found[n]) / len(found[n]) for n in range(len(found))]) for name, found in whole.items()
    }


def to_8bit(model: nn.Module) -> nn.Module:
    """Return a copy whose linear layers hold their weights in 8 bits, one scale per output, by torchao.

    Factors stay factors. ImportError, in one line, where torchao is not installed.
    """
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise ImportError(f"8-bit weights need the package torchao: pip install torchao ({error})") from error
    model = copy.deepcopy(model)
    tied = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    quantize_(model, Int8WeightOnlyConfig(), lambda part, _: type(part) is nn.Linear and id(part.weight) not in tied)
    return model


def report(before: nn.Module, after: nn.Module) -> dict[str, float]:
    """Return parameters and bytes in memory of both, and their ratios (after over before)."""
    found = {}
    for side, model in (("before", before), ("after", after)):
        parts = list(model.parameters())
        found[f"parameters_{side}"] = sum(part.numel() for part in parts)
        found[f"bytes_{side}"] = sum(_bytes(part) for part in parts)
    return found | {name: found[f"{name}_after"] / found[f"{name}_before"] for name in ("parameters", "bytes")}


def save(model: nn.Module, folder: str | Path) -> bool:
    """Write model.safetensors, the config where there is one, and compression.json with the shapes.

    Return whether plain `from_pretrained` loads the folder: the config alone builds every shape (`uniform=True`, no factors).
    """
    folder = Path(folder)
    shapes: dict = {"plain": _config_builds(model), "layers": {}, "heads": {}, "linear": {}}
    inner = {id(half) for part in model.modules() if isinstance(part, LowRank) for half in part.children()}
    for name, part in model.named_modules():
        if isinstance(part, nn.ModuleList) and hasattr(part, "kept"):
            shapes["layers"][name] = part.kept
        if isinstance(part, LowRank):
            sizes = [part.down.in_features, part.up.out_features, part.up.bias is not None, part.down.out_features]
            shapes["linear"][name] = sizes
        elif type(part) is nn.Linear and id(part) not in inner:
            shapes["linear"][name] = [part.in_features, part.out_features, part.bias is not None, 0]
    shapes["heads"] = {one.name: [one.groups, one.queries] for one in attentions(model)}
    with artifacts.replacing(folder / "model.safetensors") as temporary:
        save_model(model, str(temporary), metadata={"format": "pt"})
    if isinstance(model, transformers.PreTrainedModel):
        model.config.architectures, model.config.dtype = [type(model).__name__], model.dtype
        artifacts.write_json(folder / "config.json", model.config.to_dict())
    artifacts.write_json(folder / "compression.json", shapes)
    return shapes["plain"]


def load(folder: str | Path, original: nn.Module | None = None) -> nn.Module:
    """Return the saved model in eval mode; its full size is never in memory.

    Without `original` the class is the one config.json names, of transformers; any other model is handed over fresh, at its
    full shape, best built under `torch.device("meta")`. StoreError where shapes, weights and model do not fit.
    """
    folder = Path(folder)
    shapes = artifacts.read_json(folder / "compression.json")
    model = _from_config(folder) if original is None else copy.deepcopy(original)
    try:
        _reshape(model, shapes)
        state = _weights(folder / "model.safetensors")
        where = {name: part.device for name, part in model.state_dict().items() if part.device.type != "meta"}
        state = {name: part.to(where.get(name, part.device)) for name, part in state.items()}
        model.load_state_dict(state, strict=True, assign=True)
    except (OSError, RuntimeError, AttributeError, SafetensorError) as error:
        raise artifacts.StoreError(f"{folder} does not fit this model: {str(error).splitlines()[0]}") from error
    if isinstance(model, transformers.PreTrainedModel):
        model.tie_weights()
    return model.eval()


# Inside


def hidden_layers(model: nn.Module) -> Iterator[tuple[list[str], str]]:
    """Yield (names that make the hidden channels, name that reads them) of every MLP that is recognised."""
    for name, part in model.named_modules():
        children = dict(part.named_children())
        prefix = f"{name}." if name else ""
        for names in PAIRS:
            if all(type(children.get(one)) is nn.Linear for one in names):
                yield [prefix + one for one in names[:-1]], prefix + names[-1]
                break
        if isinstance(part, nn.Sequential):
            last = None
            for one, child in children.items():
                if type(child) is nn.Linear:
                    if last is not None:
                        yield [prefix + last], prefix + one
                    last = one
                elif not isinstance(child, ELEMENTWISE):
                    last = None


def _prune_channels(model: nn.Module, ratio: float, batches: list, *, uniform: bool, bias_repair: bool) -> None:
    blocks = {consumer: producers for producers, consumer in hidden_layers(model)}
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no MLP whose hidden channels can be pruned")
    if uniform:
        blocks = {name: producers for name, producers in blocks.items() if _width_config(model, name) is not None}
    seen = layer_editing.moments(model, {name: model.get_submodule(name) for name in blocks}, batches)
    if not seen:
        stated = " whose width a config states" if uniform else ""
        raise ValueError(f"the calibration data reach no MLP of {type(model).__name__}{stated}")
    scores = {
        name: layer_editing.channel_scores(model.get_submodule(name), variance)
        for name, (_, variance, _) in seen.items()
    }
    standard = {name: (s - s.mean()) / s.std(correction=0).clamp(min=1e-30) for name, s in scores.items()}
    configs = {name: _width_config(model, name) for name in seen} if uniform else {}
    for name, kept in layer_editing.keep_highest(standard, ratio, each=uniform).items():
        layer_editing.narrow_columns(model, name, kept, seen[name][0], repair=bias_repair, new_bias=not uniform)
        for producer in blocks[name]:
            layer_editing.narrow_rows(model, producer, kept)
        if uniform:
            configs[name].intermediate_size = int(kept.sum())
            model.get_submodule(name.rpartition(".")[0]).intermediate_size = int(kept.sum())


def _width_config(model: nn.Module, consumer: str) -> object | None:
    config = layer_editing.config_over(model, consumer.rpartition(".")[0], "intermediate_size")
    fits = config is not None and config.intermediate_size == model.get_submodule(consumer).in_features
    return config if fits else None


def _keep_layers(model: nn.Module, name: str, places: list[int]) -> None:
    stack = model.get_submodule(name)
    layers = nn.ModuleList(stack[n] for n in places)
    before = getattr(stack, "kept", list(range(len(stack))))
    layers.kept = [before[n] for n in places]  # counted in the original, for `save`
    for place, layer in enumerate(layers):
        for part in layer.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = place  # the cache of keys and values counts layers
    layer_editing.set_part(model, name, layers)
    holder = model.get_submodule(name.rpartition(".")[0])
    config = getattr(holder, "config", None)
    if getattr(config, "num_hidden_layers", None) == len(stack):
        config.num_hidden_layers = len(places)
        if getattr(config, "layer_types", None):
            config.layer_types = [config.layer_types[n] for n in places]
    for one in (holder, config):  # Qwen's vision tower: which of its layers see the whole image
        if hasattr(one, "fullatt_block_indexes"):
            one.fullatt_block_indexes = [n for n, old in enumerate(places) if old in one.fullatt_block_indexes]


def _reshape(model: nn.Module, shapes: dict) -> None:
    for name, places in shapes["layers"].items():
        if len(model.get_submodule(name)) != len(places):  # a config that states the number has built it
            _keep_layers(model, name, places)
    for name, (inputs, outputs, bias, rank) in shapes["linear"].items():
        old = model.get_submodule(name)
        if rank or (old.in_features, old.out_features, old.bias is not None) != (inputs, outputs, bias):
            with torch.device("meta"):
                part = LowRank(inputs, rank, outputs, bias) if rank else nn.Linear(inputs, outputs, bias=bias)
            layer_editing.set_part(model, name, part)  # a part that kept its shape may be tied to another, and stays
    for name, (groups, queries) in shapes["heads"].items():
        set_heads(model.get_submodule(name), groups, queries)


def _weights(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}
        tied = file.metadata() or {}
    return state | {name: state[kept] for name, kept in tied.items() if kept in state}


def _from_config(folder: Path) -> nn.Module:
    names = artifacts.read_json(folder / "config.json").get("architectures") or [None]
    built = getattr(transformers, str(names[0]), None)
    if not (isinstance(built, type) and issubclass(built, transformers.PreTrainedModel)):
        raise artifacts.StoreError(
            f"{folder / 'config.json'} names no class of transformers: {names[0]!r}; hand over the model"
        )
    return _empty(built, built.config_class.from_pretrained(folder, local_files_only=True))


def _empty(built: type, config: object) -> nn.Module:
    with init_empty_weights(include_buffers=False):  # tables of frequencies are real, weights take no memory
        return built(config)


def _config_builds(model: nn.Module) -> bool:
    if not isinstance(model, transformers.PreTrainedModel):
        return False
    try:
        built = _empty(type(model), copy.deepcopy(model.config)).state_dict()
    except ValueError:  # a config that contradicts itself builds nothing
        return False
    return {n: p.shape for n, p in built.items()} == {n: p.shape for n, p in model.state_dict().items()}


def _bytes(part: Tensor) -> int:
    if hasattr(part, "__tensor_flatten__"):  # torchao: the integers and their scales
        return sum(_bytes(getattr(part, name)) for name in part.__tensor_flatten__()[0])
    return part.numel() * part.element_size()
