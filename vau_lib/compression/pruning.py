"""Structured pruning on calibration data (FLAP, ShortGPT), low-rank factorisation (SVD-LLM), and checkpoints of the result.

- `prune` removes MLP channels with the lowest |w|^2 Var[z] and moves their mean contribution into a bias (FLAP), groups of
  attention heads by the same score, and whole layers that change their input least (ShortGPT).
- `factorise` replaces a weight by two factors, from an SVD weighted by the calibration data (SVD-LLM).
- A key/value head is pruned together with all query heads that read it. Recognised are q/k/v_proj with o_proj or out_proj, and a
  fused qkv with proj (vision towers). The width of a head never changes, because rotary sections must add up to it.
- No model is changed in place by these two. With `uniform=True` the smaller shapes are in the model's own config, and
  `from_pretrained` loads the checkpoint. Otherwise they are beside the weights, and `load` rebuilds the model without ever
  holding the original.
Sources: FLAP (AAAI 2024), SVD-LLM (ICLR 2025), ShortGPT (2024). Formulae as in the papers, code ours.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
import transformers
from accelerate import init_empty_weights
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from vau_lib.compression import layer_editing, low_rank
from vau_lib.compression.low_rank import LowRank
from vau_lib.workspace import artifacts, formats

# names of the linear layers of an MLP: those that produce the hidden channels, then the one that reads them
MLP_NAMES = (
    ("gate_proj", "up_proj", "down_proj"),
    ("fc1", "fc2"),
    ("linear1", "linear2"),
    ("linear_fc1", "linear_fc2"),
    ("up_proj", "down_proj"),
)
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
KEPT_FACTS = ("name", "family", "question")  # of what made the model that was compressed
ELEMENTWISE = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Dropout, nn.LeakyReLU, nn.ELU, nn.Identity)


@dataclass(frozen=True)
class AttentionHeads:
    """The heads of one attention: `groups` key/value heads, each with `queries` query heads of `width` channels."""

    name: str
    output: str  # dotted name of the layer that reads the heads
    groups: int
    queries: int
    width: int
    fused: bool


def prune(
    model: nn.Module,
    channel_ratio: float,
    calibration: Iterable,
    *,
    head_ratio: float = 0.0,
    num_layers: int = 0,
    layer_list: str | None = None,
    uniform: bool = False,
    bias_repair: bool = True,
) -> nn.Module:
    """Return a copy without a fraction of its MLP channels and attention heads, and without its least useful layers.

    One threshold holds over the whole model; each part keeps at least one channel or group. What no batch reaches stays whole.
    ValueError for a ratio outside [0, 1), no calibration data, or nothing to prune.

    Args:
        model: any module; it is not changed.
        channel_ratio: fraction of all MLP hidden channels to remove, in [0, 1).
        calibration: batches, each a Tensor, a tuple, or a dict of keyword arguments.
        head_ratio: fraction of all groups of attention heads to remove, in [0, 1).
        num_layers: how many layers to remove.
        layer_list: dotted name of the list they are removed from; the largest where None.
        uniform: remove the same fraction of every part, add no bias, leave out MLPs whose width no config states, and write
            widths and heads into the config, so that plain `from_pretrained` loads what `save` wrote.
        bias_repair: move the mean contribution of what is removed into a bias.
    """
    for name, value in (("channel_ratio", channel_ratio), ("head_ratio", head_ratio)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} must lie in [0, 1), got {value}")
    batches, model = layer_editing.batches_of(calibration), copy.deepcopy(model)
    if num_layers:
        drop_layers(model, num_layers, batches, layer_list=layer_list)
    if head_ratio:
        _prune_heads(model, head_ratio, batches, uniform=uniform, bias_repair=bias_repair)
    if channel_ratio:
        _prune_channels(model, channel_ratio, batches, uniform=uniform, bias_repair=bias_repair)
    model.compressed = True
    return model


def factorise(
    model: nn.Module, keep_ratio: float, calibration: Iterable, *, memory_bytes: int = 2**31, scratch: str | Path | None = None
) -> nn.Module:
    """Return a copy whose linear layers hold at most `keep_ratio` of their weights, rank by rank where it saves most error.

    A layer whose rank would not make it smaller stays whole, at its own cost. A ratio of 1 keeps every layer at full rank: it
    is exact to rounding and saves nothing. Tied layers and layers that no batch reaches stay whole and are not counted. The
    error of a rank is the sum of the squared whitened singular values beyond it, |X (W - W_k)^T|^2. ValueError for a ratio
    outside (0, 1], for one that rank 1 everywhere exceeds, and for no calibration data.

    Layer by layer in float32: in memory are the model, its copy, the covariances of a few layers and one decomposition. The factors
    of all layers wait on disk, at most the model in float32, until the ranks are known.

    Args:
        model: any module; it is not changed.
        keep_ratio: of the weights, in (0, 1].
        calibration: batches, each a Tensor, a tuple, or a dict of keyword arguments.
        memory_bytes: covariances that are measured at once; every group costs one pass over the data.
        scratch: folder for a temporary one with the factors; the system's where None.
    """
    if not 0 < keep_ratio <= 1:
        raise ValueError(f"keep_ratio must lie in (0, 1], got {keep_ratio}")
    batches, model = layer_editing.batches_of(calibration), copy.deepcopy(model)
    tied = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    linears = {n: p for n, p in model.named_modules() if type(p) is nn.Linear and id(p.weight) not in tied}
    spectra: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    with TemporaryDirectory(dir=scratch, prefix="factors-") as folder:
        files = {name: Path(folder) / f"{number}.safetensors" for number, name in enumerate(linears)}
        for group in layer_editing.memory_groups(linears, memory_bytes):
            covariances = layer_editing.input_covariances(model, {name: linears[name] for name in group}, batches)
            for name in [name for name in group if name in covariances]:
                u, s, v = low_rank.whitened_svd(linears[name].weight, covariances.pop(name))
                most = len(s) if keep_ratio == 1 else low_rank.useful_rank(linears[name])
                save_file({"u": u[:, :most].contiguous(), "s": s[:most], "v": v[:most].contiguous()}, files[name])
                spectra[name] = (torch.empty(u.shape, device="meta"), s.double().cpu(), torch.empty(v.shape, device="meta"))
        if keep_ratio == 1:
            ranks = {name: len(part[1]) for name, part in spectra.items()}
        else:
            ranks = low_rank.allocate_ranks(spectra, keep_ratio * sum(linears[name].weight.numel() for name in spectra))
        for name, rank in ranks.items():
            if rank is not None:
                parts = formats.read_safetensors(files[name], str(linears[name].weight.device))
                layer = low_rank.low_rank_layer(linears[name], parts["u"], parts["s"], parts["v"], rank)
                layer_editing.replace_module(model, name, layer)
    model.compressed = True
    return model


def is_compressed(model: nn.Module) -> bool:
    """Return whether a model came out of `prune`, `factorise` or `load`."""
    return getattr(model, "compressed", False) or any(isinstance(part, LowRank) for part in model.modules())


def report(before: nn.Module, after: nn.Module) -> dict[str, float]:
    """Return parameters and bytes in memory of both models, and their ratios (after over before)."""
    counts = {}
    for side, model in (("before", before), ("after", after)):
        parameters = list(model.parameters())
        counts[f"parameters_{side}"] = sum(parameter.numel() for parameter in parameters)
        counts[f"bytes_{side}"] = sum(parameter.nbytes for parameter in parameters)
    return counts | {name: counts[f"{name}_after"] / counts[f"{name}_before"] for name in ("parameters", "bytes")}


# Layers


def drop_layers(model: nn.Module, count: int, batches: list, *, layer_list: str | None = None) -> list[int]:
    """Remove, in place, the `count` layers that change their input least; return their indices.

    The list is `layer_list`, or the one with most parameters among those whose layers keep the shape of their input.
    ValueError where there is none, or `count` is not below its length.
    """
    influence = block_influence(model, batches)
    if layer_list is not None and layer_list not in influence:
        raise ValueError(f"no list of layers {layer_list!r} that the calibration data reach, there are {sorted(influence)}")

    def size(name: str) -> int:
        return sum(parameter.numel() for parameter in model.get_submodule(name).parameters())

    name = layer_list if layer_list is not None else max(influence, key=size, default=None)
    scores = influence.get(name, torch.zeros(0)).clone()
    fixed = _fixed_layers(model, name)
    if not 0 < count <= len(scores) - max(1, len(fixed)):
        raise ValueError(f"can drop 1 to {max(0, len(scores) - max(1, len(fixed)))} layers, asked for {count}")
    scores[fixed] = torch.inf
    dropped = sorted(scores.argsort(stable=True)[:count].tolist())
    _keep_layers(model, name, [n for n in range(len(scores)) if n not in dropped])
    return dropped


def block_influence(model: nn.Module, batches: list) -> dict[str, Tensor]:
    """Return {name of a list of layers: 1 - mean cosine of each layer's input and output, (L,) in [0, 2]} (ShortGPT, Eq. 1)."""
    lists = {name: part for name, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part)}
    influence: dict[str, dict[int, list]] = {name: {} for name in lists}

    def measure(name: str, index: int) -> Callable:
        def hook(_, inputs, keywords, output):
            before = inputs[0] if inputs else keywords.get("hidden_states")
            after = output[0] if isinstance(output, tuple) else output
            if isinstance(before, Tensor) and isinstance(after, Tensor) and before.shape == after.shape:
                cosine = F.cosine_similarity(before.float(), after.float(), dim=-1)
                influence[name].setdefault(index, []).append(1 - cosine.mean().item())

        return hook

    hooks = [
        layer.register_forward_hook(measure(name, index), with_kwargs=True)
        for name, layers in lists.items()
        for index, layer in enumerate(layers)
    ]
    layer_editing.run_with_hooks(model, batches, hooks)
    complete = {name: values for name, values in influence.items() if len(values) == len(lists[name])}
    return {name: torch.tensor([sum(values[n]) / len(values[n]) for n in range(len(values))]) for name, values in complete.items()}


def _fixed_layers(model: nn.Module, name: str) -> list[int]:
    """Return layers whose place another part counts on: of a tower those that feed a language model (deepstack), and the fed."""
    holder = model.get_submodule(name.rpartition(".")[0])
    feeding = getattr(getattr(getattr(model, "config", None), "vision_config", None), "deepstack_visual_indexes", None) or ()
    if hasattr(holder, "deepstack_visual_indexes"):
        return list(holder.deepstack_visual_indexes)
    return list(range(len(feeding))) if getattr(holder, "config", None) is getattr(model.config, "text_config", ()) else []


def _keep_layers(model: nn.Module, name: str, indices: list[int]) -> None:
    before = model.get_submodule(name)
    layers = nn.ModuleList(before[n] for n in indices)
    original = getattr(before, "original_indices", list(range(len(before))))
    layers.original_indices = [original[n] for n in indices]  # for `save`
    for index, layer in enumerate(layers):
        for part in layer.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = index  # the cache of keys and values counts layers
    layer_editing.replace_module(model, name, layers)
    holder = model.get_submodule(name.rpartition(".")[0])
    config = getattr(holder, "config", None)
    if getattr(config, "num_hidden_layers", None) == len(before):
        config.num_hidden_layers = len(indices)
        if getattr(config, "layer_types", None):
            config.layer_types = [config.layer_types[n] for n in indices]
    elif getattr(config, "depth", None) == len(before):  # of Qwen's vision tower
        config.depth = len(indices)
    for owner in (holder, config):  # its layers that attend to the whole image, and those that feed the language model
        for places in ("fullatt_block_indexes", "deepstack_visual_indexes"):
            if hasattr(owner, places):
                setattr(owner, places, [n for n, old in enumerate(indices) if old in getattr(owner, places)])


# Heads


def find_attentions(model: nn.Module) -> Iterator[AttentionHeads]:
    """Yield every attention that is recognised."""
    for name, part in model.named_modules():
        linears = {child: layer for child, layer in part.named_children() if type(layer) is nn.Linear}
        prefix = f"{name}." if name else ""
        output = next((child for child in ("o_proj", "out_proj") if child in linears), None)
        if output and {"q_proj", "k_proj", "v_proj"} <= set(linears) and hasattr(part, "head_dim"):
            groups = linears["k_proj"].out_features // part.head_dim
            queries = linears["q_proj"].out_features // part.head_dim // groups
            yield AttentionHeads(name, prefix + output, groups, queries, part.head_dim, False)
        elif {"qkv", "proj"} <= set(linears) and hasattr(part, "num_heads"):
            width = linears["proj"].in_features // part.num_heads
            yield AttentionHeads(name, prefix + "proj", part.num_heads, 1, width, True)


def _prune_heads(model: nn.Module, head_ratio: float, batches: list, *, uniform: bool, bias_repair: bool) -> None:
    """Remove the groups of heads with the lowest FLAP score relative to their attention's average, in place.

    `uniform` takes the same number from each attention and writes it into its config. ValueError where that config cannot
    express it, and where calibration data reach no attention.
    """
    attentions = {heads.output: heads for heads in find_attentions(model)}
    moments = layer_editing.input_moments(model, {name: model.get_submodule(name) for name in attentions}, batches)
    if not moments:
        raise ValueError(f"the calibration data reach no attention of {type(model).__name__} whose heads can be pruned")
    if uniform:
        for name in moments:
            _check_config(model, attentions[name])
    scores = {}
    for name, (_, variance) in moments.items():
        score = layer_editing.flap_scores(model.get_submodule(name), variance)
        score = score.reshape(attentions[name].groups, -1).sum(1)
        scores[name] = score / score.mean().clamp(min=1e-30)
    for name, keep in layer_editing.keep_highest(scores, head_ratio, per_layer=uniform).items():
        heads = attentions[name]
        _keep_heads(model, heads, keep, moments[name][0], bias_repair=bias_repair, new_bias=not uniform)
        if uniform:
            config = layer_editing.find_config(model, heads.name, "head_dim", "num_key_value_heads")
            config.head_dim, config.num_key_value_heads = heads.width, int(keep.sum())
            config.num_attention_heads = int(keep.sum()) * heads.queries


def _keep_heads(model: nn.Module, heads: AttentionHeads, keep: Tensor, mean: Tensor, *, bias_repair: bool, new_bias: bool) -> None:
    prefix = f"{heads.name}." if heads.name else ""
    keep_keys = keep.repeat_interleave(heads.width)
    keep_queries = keep.repeat_interleave(heads.queries * heads.width)  # query heads of a group stand side by side
    if heads.fused:
        layer_editing.keep_outputs(model, prefix + "qkv", keep_keys.repeat(3))
    else:
        for child, mask in (("q_proj", keep_queries), ("k_proj", keep_keys), ("v_proj", keep_keys)):
            layer_editing.keep_outputs(model, prefix + child, mask)
    layer_editing.keep_inputs(model, heads.output, keep_queries, mean, bias_repair=bias_repair, new_bias=new_bias)
    _set_heads(model.get_submodule(heads.name), int(keep.sum()), heads.queries)


def _set_heads(attention: nn.Module, groups: int, queries: int) -> None:
    for key, value in (("num_heads", groups * queries), ("num_key_value_heads", groups)):
        if hasattr(attention, key):
            setattr(attention, key, value)


def _check_config(model: nn.Module, heads: AttentionHeads) -> None:
    if heads.fused or layer_editing.find_config(model, heads.name, "head_dim", "num_key_value_heads") is None:
        config = layer_editing.find_config(model, heads.name)
        raise ValueError(
            f"{type(config).__name__} cannot express fewer heads in {heads.name!r} (a head is hidden_size / heads wide "
            "there): prune heads without uniform=True"
        )


# Channels


def find_mlps(model: nn.Module) -> Iterator[tuple[list[str], str]]:
    """Yield (names of the layers that produce the hidden channels, name of the one that reads them) of every MLP recognised."""
    for name, part in model.named_modules():
        children = dict(part.named_children())
        prefix = f"{name}." if name else ""
        for names in MLP_NAMES:
            if all(type(children.get(child)) is nn.Linear for child in names):
                yield [prefix + child for child in names[:-1]], prefix + names[-1]
                break
        if isinstance(part, nn.Sequential):
            last = None
            for child, layer in children.items():
                if type(layer) is nn.Linear:
                    if last is not None:
                        yield [prefix + last], prefix + child
                    last = child
                elif not isinstance(layer, ELEMENTWISE):
                    last = None


def _prune_channels(model: nn.Module, channel_ratio: float, batches: list, *, uniform: bool, bias_repair: bool) -> None:
    mlps = {consumer: producers for producers, consumer in find_mlps(model)}
    if not mlps:
        raise ValueError(f"{type(model).__name__} has no MLP whose hidden channels can be pruned")
    if uniform:
        following = _follow_config(model, mlps)
        mlps = {name: producers for name, producers in mlps.items() if name in following}
    moments = layer_editing.input_moments(model, {name: model.get_submodule(name) for name in mlps}, batches)
    if not moments:
        stated = " whose width a config states" if uniform else ""
        raise ValueError(f"the calibration data reach no MLP of {type(model).__name__}{stated}")
    scores = {name: layer_editing.flap_scores(model.get_submodule(name), variance) for name, (_, variance) in moments.items()}
    standardised = {name: (s - s.mean()) / s.std(correction=0).clamp(min=1e-30) for name, s in scores.items()}
    configs = {name: _width_config(model, name) for name in moments} if uniform else {}
    for name, keep in layer_editing.keep_highest(standardised, channel_ratio, per_layer=uniform).items():
        layer_editing.keep_inputs(model, name, keep, moments[name][0], bias_repair=bias_repair, new_bias=not uniform)
        for producer in mlps[name]:
            layer_editing.keep_outputs(model, producer, keep)
        if uniform:
            configs[name].intermediate_size = int(keep.sum())
            model.get_submodule(name.rpartition(".")[0]).intermediate_size = int(keep.sum())


def _width_config(model: nn.Module, consumer: str) -> object | None:
    config = layer_editing.find_config(model, consumer.rpartition(".")[0], "intermediate_size")
    fits = config is not None and config.intermediate_size == model.get_submodule(consumer).in_features
    return config if fits else None


def _follow_config(model: nn.Module, consumers: Iterable[str]) -> set[str]:
    """Return the MLPs that a config with another width would build otherwise; one may have that width by chance (a merger)."""
    by_config: dict[int, list[str]] = {}
    configs = {name: config for name in consumers if (config := _width_config(model, name)) is not None}
    for name, config in configs.items():
        by_config.setdefault(id(config), []).append(name)
    following = set()
    for names in by_config.values():
        config = configs[names[0]]
        if not isinstance(model, transformers.PreTrainedModel):
            following |= set(names)
            continue
        try:
            config.intermediate_size += 1
            wider = _empty(type(model), copy.deepcopy(model.config))
        finally:
            config.intermediate_size -= 1
        following |= {name for name in names if wider.get_submodule(name).in_features == config.intermediate_size + 1}
    return following


# Checkpoints


def save(model: nn.Module, folder: str | Path, *, processor: object | None = None) -> bool:
    """Write model.safetensors, compression.json with the shapes, and where there are any config, generation config, processor.

    Without `processor` that of the folder the model was loaded from is written, with what made it (name, kind, question).
    Return whether plain `from_pretrained` loads the folder: the config alone builds every shape (`uniform=True`, no factors).
    """
    folder = Path(folder)
    shapes: dict = {"plain": _config_builds(model), "layers": {}, "heads": {}, "linear": {}}
    inner = {id(half) for part in model.modules() if isinstance(part, LowRank) for half in part.children()}
    for name, part in model.named_modules():
        if isinstance(part, nn.ModuleList) and hasattr(part, "original_indices"):
            shapes["layers"][name] = part.original_indices
        if isinstance(part, LowRank):
            sizes = [part.down.in_features, part.up.out_features, part.up.bias is not None, part.down.out_features]
            shapes["linear"][name] = sizes
        elif type(part) is nn.Linear and id(part) not in inner:
            shapes["linear"][name] = [part.in_features, part.out_features, part.bias is not None, 0]
    shapes["heads"] = {heads.name: [heads.groups, heads.queries] for heads in find_attentions(model)}
    with artifacts.replacing(folder / "model.safetensors") as temporary:
        save_model(model, str(temporary), metadata={"format": "pt"})
    if isinstance(model, transformers.PreTrainedModel):
        model.config.architectures, model.config.dtype = [type(model).__name__], model.dtype
        artifacts.write_json(folder / "config.json", model.config.to_dict())
        _save_company(model, folder, processor)
    artifacts.write_json(folder / "compression.json", shapes)
    return shapes["plain"]


def _save_company(model: transformers.PreTrainedModel, folder: Path, processor: object | None) -> None:
    """Write what a model needs besides its weights, from the model and from the folder it was loaded from."""
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)
    origin = Path(model.name_or_path) if model.name_or_path else None
    if processor is None and origin and any((origin / name).is_file() for name in PROCESSOR_FILES):
        processor = transformers.AutoProcessor.from_pretrained(origin, local_files_only=True, trust_remote_code=False)
    if processor is not None:
        processor.save_pretrained(folder)
    if origin and (origin / "made_by.json").is_file() and origin.resolve() != folder.resolve():
        facts = artifacts.read_json(origin / "made_by.json")
        kind = ", ".join(part for part in (facts.get("kind", ""), "compressed") if part)
        artifacts.write_made_by(folder, **{key: facts[key] for key in KEPT_FACTS if key in facts} | {"kind": kind})


@artifacts.reader()
def load(folder: str | Path, original: nn.Module | None = None) -> nn.Module:
    """Return the saved model in eval mode; its full size is never in memory.

    Without `original` the class is the one of transformers that config.json names. Any other model is passed fresh, at its
    full shape, best built under `torch.device("meta")`. StoreError where shapes, weights and model do not fit.
    """
    folder = Path(folder)
    shapes = artifacts.read_json(folder / "compression.json", dict)
    with formats.building(folder, empty=True):
        model = _from_config(folder) if original is None else copy.deepcopy(original)
    try:
        _reshape(model, shapes)
        state = _weights(folder / "model.safetensors")
        devices = {name: part.device for name, part in model.state_dict().items() if part.device.type != "meta"}
        state = {name: part.to(devices.get(name, part.device)) for name, part in state.items()}
        model.load_state_dict(state, strict=True, assign=True)
    except (OSError, RuntimeError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise artifacts.StoreError(f"{folder} does not fit this model: {artifacts.one_line(error)}") from error
    if isinstance(model, transformers.PreTrainedModel):
        model.tie_weights()
        model.name_or_path = str(folder)
        if (folder / "generation_config.json").is_file():
            model.generation_config = _generation_config(folder)
    model.compressed = True
    return model.eval()


def _generation_config(folder: Path) -> transformers.GenerationConfig:
    try:
        return transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise artifacts.StoreError(f"{folder / 'generation_config.json'} cannot be read: {artifacts.one_line(error)}") from error


def _reshape(model: nn.Module, shapes: dict) -> None:
    for name, indices in shapes["layers"].items():
        if len(model.get_submodule(name)) != len(indices):  # else a config that states the number has built it
            _keep_layers(model, name, indices)
    for name, (inputs, outputs, bias, rank) in shapes["linear"].items():
        old = model.get_submodule(name)
        if rank or (old.in_features, old.out_features, old.bias is not None) != (inputs, outputs, bias):
            with torch.device("meta"):
                layer = LowRank(inputs, rank, outputs, bias) if rank else nn.Linear(inputs, outputs, bias=bias)
            layer_editing.replace_module(model, name, layer)  # a layer of unchanged shape may be tied, and stays
    for name, (groups, queries) in shapes["heads"].items():
        _set_heads(model.get_submodule(name), groups, queries)


def _weights(path: Path) -> dict[str, Tensor]:
    with formats.safetensors_file(path) as file:
        state = {name: file.get_tensor(name) for name in file.keys()}
        tied = file.metadata() or {}
    return state | {name: state[source] for name, source in tied.items() if source in state}


def _from_config(folder: Path) -> nn.Module:
    config = artifacts.read_json(folder / "config.json")
    names = (config.get("architectures") if isinstance(config, dict) else None) or [None]
    model_class = getattr(transformers, str(names[0]), None)
    if not (isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)):
        raise artifacts.StoreError(f"{folder / 'config.json'} names no class of transformers: {names[0]!r}; pass the model itself")
    return _empty(model_class, model_class.config_class.from_pretrained(folder, local_files_only=True))


def _empty(model_class: type, config: object) -> nn.Module:
    with init_empty_weights(include_buffers=False):  # tables of frequencies are real, weights take no memory
        return model_class(config)


def _config_builds(model: nn.Module) -> bool:
    if not isinstance(model, transformers.PreTrainedModel):
        return False
    try:
        state = _empty(type(model), copy.deepcopy(model.config)).state_dict()
    except ValueError:  # a config that contradicts itself builds nothing
        return False
    return {n: p.shape for n, p in state.items()} == {n: p.shape for n, p in model.state_dict().items()}
