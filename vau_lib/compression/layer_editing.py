"""Before a structure is cut, look at what passes through it; after, the model must be whole again.

Calibration batches are a Tensor, a tuple of arguments, or a dict of keyword arguments; a model is any `nn.Module`.
- `moments` measures what parts are fed, `run` passes batches with hooks on and takes them off whatever happens
- `put` exchanges a part by its dotted name, `narrow_rows` and `narrow_columns` make a linear layer thinner
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
    """Return what the model says to one batch."""
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


def moments(model: nn.Module, parts: Mapping[str, nn.Module], batches: list, *, covariance: bool = False) -> dict:
    """Return {name: (mean (n,), variance (n,), X^T X (n, n) or None)} of what each part is fed, float64.

    A part that no batch reaches (a vision tower, on text) is not in the result.
    """
    sums: dict[str, list] = {}

    def measure(name: str) -> Callable:
        def hook(_, inputs):
            x = inputs[0].detach().flatten(0, -2).double()
            new = [len(x), x.sum(0), (x * x).sum(0), x.T @ x if covariance else None]
            old = sums.get(name)
            sums[name] = new if old is None else [a if a is None else a + b for a, b in zip(old, new, strict=True)]

        return hook

    run_with_hooks(model, batches, [part.register_forward_pre_hook(measure(name)) for name, part in parts.items()])
    return {name: (s / n, (q / n - (s / n) ** 2).clamp(min=0), c) for name, (n, s, q, c) in sums.items()}


def channel_scores(consumer: nn.Linear, variance: Tensor) -> Tensor:
    """Return |w_:,j|^2 Var[z_j] of every input channel j, (n,): what leaving it at its mean costs (FLAP, Eq. 5)."""
    return consumer.weight.detach().double().pow(2).sum(0) * variance


def keep_highest(scores: Mapping[str, Tensor], share: float, *, each: bool) -> dict[str, Tensor]:
    """Return per name which entries to keep, bool: a share falls, the lowest over all names, or of `each` alone.

    At least one entry of each stays.
    """
    if each:
        kept = {name: score.argsort(stable=True).argsort() >= int(share * len(score)) for name, score in scores.items()}
    else:
        rank = torch.cat(list(scores.values())).argsort(stable=True).argsort()
        parts = (rank >= int(share * len(rank))).split([len(score) for score in scores.values()])
        kept = {name: part.clone() for name, part in zip(scores, parts, strict=True)}
    for name, part in kept.items():
        part[scores[name].argmax()] = True
    return kept


def narrow_rows(model: nn.Module, name: str, kept: Tensor) -> None:
    """Keep only these outputs, bool (m,), of a linear layer."""
    part = model.get_submodule(name)
    set_part(model, name, linear(part.weight.data[kept], None if part.bias is None else part.bias.data[kept]))


def narrow_columns(model: nn.Module, name: str, kept: Tensor, mean: Tensor, *, repair: bool, new_bias: bool) -> None:
    """Keep only these inputs, bool (n,), of a linear layer; `repair` adds what the others gave on average, mean (n,).

    Without `new_bias` a layer that has no bias is not repaired, since its class would not reload with one.
    """
    part = model.get_submodule(name)
    weight, bias = part.weight.data, None if part.bias is None else part.bias.data
    if repair and not kept.all() and (new_bias or bias is not None):
        given = (weight[:, ~kept].double() @ mean[~kept]).to(weight)
        bias = given if bias is None else bias + given
    set_part(model, name, linear(weight[:, kept], bias))


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a linear layer of these weights (m, n) and bias (m,)."""
    part = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    part.weight = nn.Parameter(weight.clone().contiguous())
    if bias is not None:
        part.bias = nn.Parameter(bias.clone())
    return part


def set_part(model: nn.Module, name: str, part: nn.Module) -> None:
    """Exchange the part of this dotted name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, part)


def config_over(model: nn.Module, name: str, *keys: str) -> object | None:
    """Return the innermost config, of the part or of what holds it, that has all `keys`; None where there is none."""
    while True:
        config = getattr(model.get_submodule(name), "config", None)
        if config is not None and all(hasattr(config, key) for key in keys):
            return config
        if not name:
            return None
        name = name.rpartition(".")[0]
