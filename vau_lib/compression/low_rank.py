"""Low-rank factorisation of linear layers on calibration data, and the allocation of ranks (SVD-LLM, ICLR 2025).

- The SVD is of W L with L L^T = X^T X, so that the squared error on the data is the sum of the squared singular values left out.
- One rank costs m + n parameters. A layer whose factors would hold as much as its weight stays whole and costs m n.
The allocation of ranks to layers is ours.
"""

import heapq
from collections.abc import Mapping

import torch
from torch import Tensor, nn

DAMPING = 1e-6  # times the mean diagonal, added to a covariance so that rare directions can be inverted


class LowRank(nn.Module):
    """A linear layer of two factors: x (..., n) -> down (..., k) -> up (..., m)."""

    def __init__(self, inputs: int, rank: int, outputs: int, bias: bool):
        super().__init__()
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


def whitened_svd(weight: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return u (m, r), s (r,), v (r, n) with weight = u diag(s) v, where s are the singular values on the data.

    In the covariance's number format. Data of fewer directions than inputs are damped more, until the factor exists; ValueError
    where the covariance is not finite.
    """
    if not torch.isfinite(covariance).all():
        raise ValueError("the inputs of a layer are not finite on the calibration data")
    damping, size, failed = DAMPING, covariance.diagonal().mean(), True
    while failed:
        damped = covariance.clone()  # a covariance of a wide layer is half a gigabyte: no identity beside it
        damped.diagonal().add_(damping * size + 1e-12)
        root, failed = torch.linalg.cholesky_ex(damped)
        damping *= 10
    del damped
    u, s, v = torch.linalg.svd(weight.detach().to(covariance) @ root, full_matrices=False)
    return u, s, torch.linalg.solve_triangular(root, v, upper=False, left=False)


def useful_rank(layer: nn.Linear) -> int:
    """Return the largest rank whose factors hold fewer weights than the layer; 0 where none do."""
    m, n = layer.weight.shape
    return (m * n - 1) // (m + n)


def low_rank_layer(layer: nn.Linear, u: Tensor, s: Tensor, v: Tensor, rank: int) -> LowRank:
    """Return the layer at this rank, the singular values split evenly over both factors."""
    result = LowRank(layer.in_features, rank, layer.out_features, layer.bias is not None).to(layer.weight)
    half = s[:rank].sqrt()
    result.up.weight.data = (u[:, :rank] * half).to(layer.weight).contiguous()
    result.down.weight.data = (half[:, None] * v[:rank]).to(layer.weight).contiguous()
    if layer.bias is not None:
        result.up.bias.data = layer.bias.data.clone()
    return result


def allocate_ranks(parts: Mapping[str, tuple[Tensor, Tensor, Tensor]], budget: float) -> dict[str, int | None]:
    """Return a rank per layer, None where it stays whole, that together hold at most `budget` parameters.

    `parts` are those of `whitened_svd`; of u and v only the shapes are read.
    Greedy: the next rank, or the jump to the whole weight, that saves most error per parameter. Errors are relative to the
    layer's squared output; otherwise layers of small numbers would get nothing. What is left over pays for no further rank of
    any layer. ValueError where rank 1 everywhere exceeds the budget.
    """
    sizes = {name: (u.shape[0] + v.shape[1], u.shape[0] * v.shape[1]) for name, (u, _, v) in parts.items()}
    ranks: dict[str, int | None] = {name: 1 if cost < whole else None for name, (cost, whole) in sizes.items()}
    left = budget - sum(min(size) for size in sizes.values())
    if left < 0:
        raise ValueError(f"rank 1 everywhere takes {budget - left:.0f} parameters, the budget is {budget:.0f}")
    errors = {name: _relative_errors(s) for name, (_, s, _) in parts.items()}

    def steps(name: str) -> list[tuple[float, str, int, int, int | None]]:
        """Return (minus the gain per parameter, name, price, rank now, rank then) of both ways on."""
        rank, (cost, whole), error = ranks[name], sizes[name], errors[name]
        price = whole - rank * cost
        result = [(-error[rank] / price, name, price, rank, None)]
        if (rank + 1) * cost < whole:
            result.append(((error[rank + 1] - error[rank]) / cost, name, cost, rank, rank + 1))
        return result

    heap = [step for name, rank in ranks.items() if rank for step in steps(name)]
    heapq.heapify(heap)
    while heap:
        _, name, price, before, after = heapq.heappop(heap)
        if ranks[name] != before or price > left:
            continue
        left, ranks[name] = left - price, after
        if after is not None:
            for step in steps(name):
                heapq.heappush(heap, step)
    return ranks


def _relative_errors(s: Tensor) -> list[float]:
    """Return the squared error of rank k = 0 to r, relative to that of rank 0."""
    tail = (s**2).flip(0).cumsum(0).flip(0)
    return (tail / tail[0].clamp(min=1e-300)).tolist() + [0.0]
