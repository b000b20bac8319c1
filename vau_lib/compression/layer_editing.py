"""Measuring and editing layers of a model: input statistics on calibration data, narrower linear layers, replaced modules.

Calibration batches are a Tensor, a tuple of arguments, or a dict of keyword arguments; a model is any `nn.Module`.
Source of the channel score: FLAP (AAAI 2024).
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn


def batches_of(calibration: Iterable | None) -> list:
    """Return the batches as a list; ValueError where there are none."""
    batches = list(calibration) if calibration is not None else []
    if not batches:
        raise ValueError(f"compression needs calibration data, got {'none' if calibration is None else 'no batches'}")
    return batches


def call_model(model: nn.Module, batch: object) -> object:
    """Return the model's output for one batch."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


def run_with_hooks(model: nn.Module, batches: list, hooks: list) -> None:
    """Pass all batches in eval mode without gradients, then remove the hooks."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                call_model(model, batch)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()


def input_moments(model: nn.Module, layers: Mapping[str, nn.Module], batches: list) -> dict:
    """Return {name: (mean (n,), variance (n,))} of each layer's inputs, float64.

    A layer that no batch reaches (a vision tower, on text) is not in the result.
    """
    sums: dict[str, list] = {}

    def measure(name: str) -> Callable:
        def hook(_, inputs):
            x = inputs[0].detach().flatten(0, -2).double()
            new = [len(x), x.sum(0), (x * x).sum(0)]
            old = sums.get(name)
            sums[name] = new if old is None else [a + b for a, b in zip(old, new, strict=True)]

        return hook

    run_with_hooks(model, batches, [layer.register_forward_pre_hook(measure(name)) for name, layer in layers.items()])
    return {name: (s / n, (q / n - (s / n) ** 2).clamp(min=0)) for name, (n, s, q) in sums.items()}


def input_covariances(model: nn.Module, layers: Mapping[str, nn.Linear], batches: list) -> dict[str, Tensor]:
    """Return {name: X^T X (n, n)} of each layer's inputs, float32, on its device; a layer that no batch reaches is left out."""
    sums: dict[str, Tensor] = {}

    def measure(name: str) -> Callable:
        def hook(layer, inputs):
            x = inputs[0].detach().flatten(0, -2).float()
            if name not in sums:
                sums[name] = torch.zeros(x.shape[1], x.shape[1], device=x.device)
            sums[name].addmm_(x.T, x)

        return hook

    run_with_hooks(model, batches, [layer.register_forward_pre_hook(measure(name)) for name, layer in layers.items()])
    return sums


def memory_groups(layers: Mapping[str, nn.Linear], memory_bytes: int) -> list[list[str]]:
    """Return the names in order, in groups whose covariances fit into `memory_bytes` together; a larger one stands alone."""
    groups: list[list[str]] = []
    free = 0
    for name, layer in layers.items():
        needed = 4 * layer.in_features**2  # float32
        if not groups or needed > free:
            groups.append([])
            free = memory_bytes
        groups[-1].append(name)
        free -= needed
    return groups


def flap_scores(layer: nn.Linear, variance: Tensor) -> Tensor:
    """Return |w_:,j|^2 Var[z_j] of every input channel j, (n,): the cost of fixing it at its mean (FLAP, Eq. 5)."""
    return layer.weight.detach().double().pow(2).sum(0) * variance


def keep_highest(scores: Mapping[str, Tensor], prune_ratio: float, *, per_layer: bool) -> dict[str, Tensor]:
    """Return masks of the entries to keep: a fraction `prune_ratio` of all entries, or of each layer's own, is pruned.

    At least one entry of each layer stays.
    """
    if per_layer:
        keep = {name: _ranks(score) >= int(prune_ratio * len(score)) for name, score in scores.items()}
    else:
        ranks = _ranks(torch.cat(list(scores.values())))
        masks = (ranks >= int(prune_ratio * len(ranks))).split([len(score) for score in scores.values()])
        keep = {name: mask.clone() for name, mask in zip(scores, masks, strict=True)}
    for name, mask in keep.items():
        mask[scores[name].argmax()] = True
    return keep


def _ranks(scores: Tensor) -> Tensor:
    return scores.argsort(stable=True).argsort()


def keep_outputs(model: nn.Module, name: str, keep: Tensor) -> None:
    """Keep only these outputs, bool (m,), of a linear layer."""
    layer = model.get_submodule(name)
    bias = None if layer.bias is None else layer.bias.data[keep]
    replace_module(model, name, make_linear(layer.weight.data[keep], bias))


def keep_inputs(model: nn.Module, name: str, keep: Tensor, mean: Tensor, *, bias_repair: bool, new_bias: bool) -> None:
    """Keep only these inputs, bool (n,), of a linear layer; `bias_repair` adds the mean contribution of the others.

    `mean` (n,) is that of the inputs. Without `new_bias` a layer that has no bias is not repaired, because its class would
    not reload with one.
    """
    layer = model.get_submodule(name)
    weight, bias = layer.weight.data, None if layer.bias is None else layer.bias.data
    if bias_repair and not keep.all() and (new_bias or bias is not None):
        contribution = (weight[:, ~keep].double() @ mean[~keep]).to(weight)
        bias = contribution if bias is None else bias + contribution
    replace_module(model, name, make_linear(weight[:, keep], bias))


def make_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a linear layer of these weights (m, n) and bias (m,)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.clone().contiguous())
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone())
    return layer


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Exchange the module of this dotted name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def find_config(model: nn.Module, name: str, *keys: str) -> object | None:
    """Return the innermost config, of the module or of what holds it, that has all `keys`; None where there is none."""
    while True:
        config = getattr(model.get_submodule(name), "config", None)
        if config is not None and all(hasattr(config, key) for key in keys):
            return config
        if not name:
            return None
        name = name.rpartition(".")[0]
