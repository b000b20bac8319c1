"""Most weights of a model answer to nothing its calibration data hold: find those, cut whole structures, keep a checkpoint.

- `prune` drops hidden channels of every MLP by |w|^2 Var[z] over calibration data, and puts what the dropped ones gave on average
  into a bias (FLAP); whole layers, where asked for, by how little they turn their input
- `factorise` replaces a weight by two thin ones, by an SVD that is exact about the data it was shown (SVD-LLM), the ranks shared
  out so that each parameter saves most error
- nothing is changed in place; the changed shapes are written beside the weights and rebuilt before loading (`save`, `load`)
Source: FLAP (AAAI 2024), SVD-LLM (ICLR 2025); formulae as in their papers, code ours.
"""

import copy
import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from vau_lib import store

DAMPING = 1e-6  # share of the mean diagonal added to a covariance, so that rare directions can be inverted
PAIRS = (("gate_proj", "up_proj", "down_proj"), ("fc1", "fc2"), ("linear1", "linear2"), ("up_proj", "down_proj"))
ELEMENTWISE = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Dropout, nn.LeakyReLU, nn.ELU, nn.Identity)


class LowRank(nn.Module):
    """A linear layer in two thin parts: x (..., n) -> down (..., k) -> up (..., m)."""

    def __init__(self, inputs: int, rank: int, outputs: int, bias: bool):
        super().__init__()
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


def prune(
    model: nn.Module, ratio: float, calibration: Iterable, *, layers: int = 0, bias_repair: bool = True
) -> nn.Module:
    """Return a copy without a share `ratio` of all MLP hidden channels and without the `layers` least useful layers.

    One threshold over the whole model: scores are standardised per MLP, each keeps at least one channel. `calibration` yields
    batches (a Tensor, a tuple, or a dict of keyword arguments). ValueError for a ratio outside [0, 1), no calibration data, or
    a model without an MLP that is recognised (gate/up/down_proj, fc1/fc2, linear1/linear2, Linear-activation-Linear).
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio must lie in [0, 1), got {ratio}")
    batches, model = _batches(calibration), copy.deepcopy(model)
    if layers:
        drop_layers(model, layers, batches)
    blocks = list(hidden_layers(model))
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no MLP whose hidden channels can be pruned")
    if ratio == 0:
        return model
    seen = moments(model, {consumer: model.get_submodule(consumer) for _, consumer in blocks}, batches)
    blocks = [
        block for block in blocks if block[1] in seen
    ]  # what no batch reached (a vision tower, on text) stays whole
    if not blocks:
        raise ValueError(f"the calibration data reach no MLP of {type(model).__name__}")
    scores = {consumer: _flap(model.get_submodule(consumer), *seen[consumer][:2]) for _, consumer in blocks}
    order = torch.cat(list(scores.values())).argsort(stable=True)
    lost = torch.zeros(len(order), dtype=torch.bool)
    lost[order[: int(ratio * len(order))]] = True
    parts = lost.split([len(score) for score in scores.values()])
    for (producers, consumer), dropped in zip(blocks, parts, strict=True):
        if dropped.all():
            dropped[scores[consumer].argmax()] = False
        _cut(model, producers, consumer, ~dropped, seen[consumer][0] if bias_repair else None)
    return model


def factorise(model: nn.Module, share: float, calibration: Iterable) -> nn.Module:
    """Return a copy whose linear layers hold at most a share of their parameters, rank by rank where it saves most error.

    A layer whose rank would not make it smaller stays whole; share 1 keeps every layer at full rank and is exact to rounding.
    Loss of a rank: sum of the squared whitened singular values beyond it = |X (W - W_k)^T|^2. ValueError for a share outside
    (0, 1], or no calibration data.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share}")
    batches, model = _batches(calibration), copy.deepcopy(model)
    tied = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    linears = {n: p for n, p in model.named_modules() if type(p) is nn.Linear and id(p.weight) not in tied}
    seen = moments(model, linears, batches, covariance=True)
    parts = {name: _whitened(linears[name].weight, seen[name][2]) for name in linears if name in seen}
    budget = share * sum(linears[name].weight.numel() for name in parts)
    ranks = {name: len(part[1]) for name, part in parts.items()} if share == 1 else shared_ranks(parts, budget)
    for name, rank in ranks.items():
        weight = linears[name].weight
        if share == 1 or rank * sum(weight.shape) < weight.numel():
            _set(model, name, _thin(linears[name], *parts[name], rank))
    return model


def shared_ranks(parts: Mapping[str, tuple[Tensor, Tensor, Tensor]], budget: float) -> dict[str, int]:
    """Return a rank per weight, at least 1, spending `budget` parameters one rank at a time where squared error falls most."""
    cost = {name: u.shape[0] + v.shape[1] for name, (u, _, v) in parts.items()}
    ranks, left = dict.fromkeys(parts, 1), budget - sum(cost.values())
    gain = [(-float(s[1] ** 2) / cost[name], name) for name, (_, s, _) in parts.items() if len(s) > 1]
    heapq.heapify(gain)
    while gain:
        _, name = heapq.heappop(gain)
        if cost[name] > left:
            continue
        left, ranks[name] = left - cost[name], ranks[name] + 1
        if ranks[name] < len(spectrum := parts[name][1]):
            heapq.heappush(gain, (-float(spectrum[ranks[name]] ** 2) / cost[name], name))
    return ranks


def drop_layers(model: nn.Module, count: int, batches: list) -> list[int]:
    """Remove, in place, the `count` layers of the longest ModuleList that turn their input least; return their places."""
    lists = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.ModuleList)]
    name, stack = max(lists, key=lambda pair: len(pair[1]), default=("", ()))
    if not 0 < count < len(stack):
        raise ValueError(f"can drop 1 to {max(0, len(stack) - 1)} layers, asked for {count}")
    turned = torch.zeros(len(stack))

    def measure(place: int) -> Callable:
        def hook(_, inputs, keywords, output):
            before = inputs[0] if inputs else keywords["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            turned[place] += 1 - F.cosine_similarity(before.float(), after.float(), dim=-1).mean().item()

        return hook

    hooks = [layer.register_forward_hook(measure(n), with_kwargs=True) for n, layer in enumerate(stack)]
    _run(model, batches, hooks)
    gone = sorted(turned.argsort()[:count].tolist())
    _keep_layers(model, name, [n for n in range(len(stack)) if n not in gone])
    return gone


def heal(
    student: nn.Module, teacher: nn.Module, batches: Iterable, *, epochs: int = 1, learning_rate: float = 1e-3
) -> float:
    """Train `student` in place on the teacher's outputs (KL over the last axis); return the last epoch's mean loss.

    The plain pass for small models; for large ones hand `distillation_loss` to `transformers.Trainer`.
    """
    batches = _batches(batches)
    optimiser = torch.optim.AdamW(student.parameters(), lr=learning_rate)
    student.train()
    for _ in range(epochs):
        losses = []
        for batch in batches:
            loss = distillation_loss(student, teacher, batch)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    student.eval()
    return sum(losses) / len(losses)


def distillation_loss(student: nn.Module, teacher: nn.Module, batch: object) -> Tensor:
    """Return KL(teacher || student), a scalar, of the logits both give to one batch."""
    with torch.no_grad():
        wanted = _logits(_call(teacher.eval(), batch))
    said = _logits(_call(student, batch))
    flat = [values.flatten(0, -2).log_softmax(-1) for values in (said, wanted)]
    return F.kl_div(*flat, log_target=True, reduction="batchmean")


def report(before: nn.Module, after: nn.Module) -> dict[str, float]:
    """Return parameters and bytes in memory of both, and their ratios (after over before)."""
    found = {}
    for side, model in (("before", before), ("after", after)):
        parts = list(model.parameters())
        found[f"parameters_{side}"] = sum(part.numel() for part in parts)
        found[f"bytes_{side}"] = sum(part.numel() * part.element_size() for part in parts)
    return found | {name: found[f"{name}_after"] / found[f"{name}_before"] for name in ("parameters", "bytes")}


def save(model: nn.Module, folder: str | Path, original: nn.Module) -> None:
    """Write model.safetensors and compression.json, which says how `model` differs in shape from `original`."""
    folder = Path(folder)
    kept, linear = {}, {}
    inner = {id(half) for part in model.modules() if isinstance(part, LowRank) for half in part.children()}
    lists = {name: len(part) for name, part in original.named_modules() if isinstance(part, nn.ModuleList)}
    for name, part in model.named_modules():
        if isinstance(part, nn.ModuleList) and len(part) != lists[name]:
            kept[name] = len(part)
        if isinstance(part, LowRank):
            linear[name] = [
                part.down.in_features,
                part.up.out_features,
                part.up.bias is not None,
                part.down.out_features,
            ]
        elif type(part) is nn.Linear and id(part) not in inner:
            linear[name] = [part.in_features, part.out_features, part.bias is not None, 0]
    with store.replacing(folder / "model.safetensors") as temporary:
        save_model(model, str(temporary))
    if hasattr(model, "config") and hasattr(model.config, "to_dict"):
        store.write_json(folder / "config.json", model.config.to_dict())
    store.write_json(folder / "compression.json", {"layers": kept, "linear": linear})


def load(folder: str | Path, original: nn.Module) -> nn.Module:
    """Return `original` (fresh, full size) brought to the saved shapes and weights; StoreError where they do not fit."""
    folder, model = Path(folder), copy.deepcopy(original)
    shapes = store.read_json(folder / "compression.json")
    for name, count in shapes["layers"].items():
        _keep_layers(model, name, list(range(count)))
    for name, (inputs, outputs, bias, rank) in shapes["linear"].items():
        part = LowRank(inputs, rank, outputs, bias) if rank else nn.Linear(inputs, outputs, bias=bias)
        old = model.get_submodule(name)
        same = not rank and (old.in_features, old.out_features, old.bias is not None) == (inputs, outputs, bias)
        if not same:  # a part that kept its shape may be tied to another
            _set(model, name, part.to(old.weight))
    try:
        load_model(model, str(folder / "model.safetensors"), strict=True)
    except (OSError, RuntimeError) as error:
        raise store.StoreError(f"{folder} does not fit this model: {str(error).splitlines()[0]}") from error
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


def moments(model: nn.Module, parts: Mapping[str, nn.Module], batches: list, *, covariance: bool = False) -> dict:
    """Return {name: (mean (n,), variance (n,), X^T X (n, n) or None)} of what each part is fed, float64."""
    sums: dict[str, list] = {}

    def measure(name: str) -> Callable:
        def hook(_, inputs):
            x = inputs[0].detach().flatten(0, -2).double()
            new = [len(x), x.sum(0), (x * x).sum(0), x.T @ x if covariance else None]
            old = sums.get(name)
            sums[name] = new if old is None else [a if a is None else a + b for a, b in zip(old, new, strict=True)]

        return hook

    _run(model, batches, [part.register_forward_pre_hook(measure(name)) for name, part in parts.items()])
    return {name: (s / n, (q / n - (s / n) ** 2).clamp(min=0), c) for name, (n, s, q, c) in sums.items()}


def _batches(calibration: Iterable) -> list:
    batches = list(calibration) if calibration is not None else []
    if not batches:
        raise ValueError(f"compression needs calibration data, got {'none' if calibration is None else 'no batches'}")
    return batches


def _call(model: nn.Module, batch: object) -> object:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


def _logits(output: object) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits


def _run(model: nn.Module, batches: list, hooks: list) -> None:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                _call(model, batch)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()


def _flap(consumer: nn.Linear, mean: Tensor, variance: Tensor) -> Tensor:
    score = consumer.weight.double().pow(2).sum(0).detach() * variance
    return (score - score.mean()) / score.std(correction=0).clamp(min=1e-30)


def _cut(model: nn.Module, producers: list[str], consumer: str, kept: Tensor, mean: Tensor | None) -> None:
    reads = model.get_submodule(consumer)
    weight, bias = reads.weight.data, None if reads.bias is None else reads.bias.data
    if mean is not None and not kept.all():
        given = (weight[:, ~kept].double() @ mean[~kept]).to(weight)  # what the dropped channels gave on average
        bias = given if bias is None else bias + given
    _set(model, consumer, _linear(weight[:, kept], bias))
    for name in producers:
        makes = model.get_submodule(name)
        _set(model, name, _linear(makes.weight.data[kept], None if makes.bias is None else makes.bias.data[kept]))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    part = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None).to(weight)
    part.weight = nn.Parameter(weight.clone())
    if bias is not None:
        part.bias = nn.Parameter(bias.clone())
    return part


def _whitened(weight: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return u (m, r), s (r,), v (r, n) with weight = u diag(s) v, where s are the singular values on the data."""
    damped = covariance + torch.eye(len(covariance)).to(covariance) * (DAMPING * covariance.diagonal().mean() + 1e-12)
    root = torch.linalg.cholesky(damped)
    u, s, v = torch.linalg.svd(weight.detach().double() @ root, full_matrices=False)
    return u, s, torch.linalg.solve_triangular(root, v, upper=False, left=False)


def _thin(whole: nn.Linear, u: Tensor, s: Tensor, v: Tensor, rank: int) -> LowRank:
    part = LowRank(whole.in_features, rank, whole.out_features, whole.bias is not None).to(whole.weight)
    half = s[:rank].sqrt()
    part.up.weight.data = (u[:, :rank] * half).to(whole.weight).contiguous()
    part.down.weight.data = (half[:, None] * v[:rank]).to(whole.weight).contiguous()
    if whole.bias is not None:
        part.up.bias.data = whole.bias.data.clone()
    return part


def _keep_layers(model: nn.Module, name: str, places: list[int]) -> None:
    stack = model.get_submodule(name)
    layers = nn.ModuleList(stack[n] for n in places)
    for place, layer in enumerate(layers):
        for part in layer.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = place  # the cache of keys and values counts layers
    _set(model, name, layers)
    config = getattr(model.get_submodule(name.rpartition(".")[0]), "config", None)
    if getattr(config, "num_hidden_layers", None) == len(stack):
        config.num_hidden_layers = len(places)
        if getattr(config, "layer_types", None):
            config.layer_types = [config.layer_types[n] for n in places]


def _set(model: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, part)
