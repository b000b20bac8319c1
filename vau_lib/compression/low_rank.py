"""A weight need only be right about what it is fed: factorise it on its data, and spend ranks where they save most.

- the SVD is of W L, L L^T = X^T X, so that the squared error on the data is the sum of the squared singular values left out
- a rank costs m + n parameters; from break-even on a layer stays whole and costs m n, never more
Source: SVD-LLM (ICLR 2025); the sharing of ranks is ours.
"""

import heapq
from collections.abc import Mapping

import torch
from torch import Tensor, nn

DAMPING = 1e-6  # share of the mean diagonal added to a covariance, so that rare directions can be inverted


class LowRank(nn.Module):
    """A linear layer in two thin parts: x (..., n) -> down (..., k) -> up (..., m)."""

    def __init__(self, inputs: int, rank: int, outputs: int, bias: bool):
        super().__init__()
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


def whitened(weight: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return u (m, r), s (r,), v (r, n) with weight = u diag(s) v, where s are the singular values on the data."""
    damped = covariance + torch.eye(len(covariance)).to(covariance) * (DAMPING * covariance.diagonal().mean() + 1e-12)
    root = torch.linalg.cholesky(damped)
    u, s, v = torch.linalg.svd(weight.detach().double() @ root, full_matrices=False)
    return u, s, torch.linalg.solve_triangular(root, v, upper=False, left=False)


def thin(whole: nn.Linear, u: Tensor, s: Tensor, v: Tensor, rank: int) -> LowRank:
    """Return the layer at this rank, the singular values split evenly over both parts."""
    part = LowRank(whole.in_features, rank, whole.out_features, whole.bias is not None).to(whole.weight)
    half = s[:rank].sqrt()
    part.up.weight.data = (u[:, :rank] * half).to(whole.weight).contiguous()
    part.down.weight.data = (half[:, None] * v[:rank]).to(whole.weight).contiguous()
    if whole.bias is not None:
        part.up.bias.data = whole.bias.data.clone()
    return part


def shared_ranks(parts: Mapping[str, tuple[Tensor, Tensor, Tensor]], budget: float) -> dict[str, int | None]:
    """Return a rank per weight, None where it stays whole, that together hold at most `budget` parameters.

    Greedy: the next rank, or the jump to whole, that saves most per parameter of a layer's squared error, as a share of what the
    layer says in all: else layers of small numbers starve. What is left in the end does not pay one more rank of any
    layer. ValueError where rank 1 everywhere is over the budget.
    """
    sizes = {name: (u.shape[0] + v.shape[1], u.shape[0] * v.shape[1]) for name, (u, _, v) in parts.items()}
    ranks: dict[str, int | None] = {name: 1 if cost < whole else None for name, (cost, whole) in sizes.items()}
    left = budget - sum(min(pair) for pair in sizes.values())
    if left < 0:
        raise ValueError(f"rank 1 everywhere takes {budget - left:.0f} parameters, the share allows {budget:.0f}")
    tails = {name: _errors(s) for name, (_, s, _) in parts.items()}

    def steps(name: str) -> list[tuple[float, str, int, int | None]]:
        rank, (cost, whole) = ranks[name], sizes[name]
        jump = whole - rank * cost
        found = [(-tails[name][rank] / jump, name, jump, None)]
        if (rank + 1) * cost < whole:
            found.append(((tails[name][rank + 1] - tails[name][rank]) / cost, name, cost, rank + 1))
        return found

    heap = [step for name, rank in ranks.items() if rank for step in steps(name)]
    heapq.heapify(heap)
    while heap:
        _, name, price, rank = heapq.heappop(heap)
        now = ranks[name]
        stale = (
            now is None or (rank is not None and rank != now + 1) or (rank is None and price != _jump(sizes[name], now))
        )
        if stale or price > left:
            continue
        left, ranks[name] = left - price, rank
        if rank is not None:
            for step in steps(name):
                heapq.heappush(heap, step)
    return ranks


def _jump(size: tuple[int, int], rank: int) -> int:
    return size[1] - rank * size[0]


def _errors(s: Tensor) -> list[float]:
    """Return the squared error of rank k = 0 to r, as a share of rank 0's."""
    tail = (s**2).flip(0).cumsum(0).flip(0)
    return (tail / tail[0].clamp(min=1e-300)).tolist() + [0.0]
