"""The relaxed mask γ(S), its derivative, and its rounding (Panigrahi et al., ICML 2023, arXiv 2302.06600).

Symbols, each a flat (n,) vector over the n graftable parameters unless a number:

    θ_pre, θ_ft  the pre-trained and the fine-tuned parameters
    Δ            θ_ft − θ_pre, the movement of fine-tuning (the task vector)
    γ            the region, a mask with γ = 1 where a parameter takes its fine-tuned value
    γ_base       the initial region, of the largest |Δ|
    S            the scores, real numbers that are trained by SGD
    c            the sigmoid bias, a number: the parameter's bit of γ_base is flipped where S > c

The task loss L is minimized over S at the relaxed graft θ(S) = θ_pre + γ(S) ⊙ Δ. The paper's formula
has no c; the authors' code subtracts c = 10, so that training starts at γ(S) ≈ γ_base.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def as_mask(inside: Tensor, total: int) -> Tensor:
    """Return γ_base in the form that `relax` reads fastest: its indices on a CPU, a bool mask on a GPU.

    On a GPU, deterministic writes at indices need a sort; a (total,) bool mask does not.
    """
    if inside.device.type == "cpu":
        return inside
    return inside.new_zeros(total, dtype=torch.bool).index_fill_(0, inside, True)


def change_at(values: Tensor, base: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `change` to values, (n,), in place where γ_base is 1, and return the values."""
    if base.dtype == torch.bool:
        return torch.where(base, change(values), values, out=values)
    # γ_base is sparse: the work is that of its k indices, not of n
    values[base] = change(values[base])
    return values


def relax(scores: Tensor, base: Tensor, bias: float, out: Tensor | None = None) -> Tensor:
    """Return γ(S) = γ_base ⊙ (1 − σ(S − c)) + (1 − γ_base) ⊙ σ(S − c), (n,).

    `scores` is S, (n,), and `bias` is c. `base` is γ_base as a bool mask, (n,), or as the indices where
    γ_base is 1, (k,). The result is written to `out` where `out` is given.
    """
    share = torch.sub(scores, bias, out=out).sigmoid_()
    return change_at(share, base, lambda values: 1 - values)


def relax_grad(scores: Tensor, base: Tensor, bias: float, out: Tensor | None = None) -> Tensor:
    """Return dγ/dS = (1 − 2γ_base) ⊙ σ'(S − c), (n,); the arguments are those of `relax`."""
    flip = torch.sub(scores, bias, out=out).sigmoid_()
    # σ' = (1 − σ) σ in one pass and in place: torch has no public function that writes to a given tensor
    torch.ops.aten.sigmoid_backward.grad_input(flip.new_ones(()), flip, grad_input=flip)
    return change_at(flip, base, torch.neg)


def round_mask(scores: Tensor, base: Tensor, bias: float) -> Tensor:
    """Return the rounded mask round(γ(S)) as bool, (n,): γ_base XOR (S > c), and False at S = c exactly.

    At S = c both halves of γ(S) are 0.5, which torch.round, and so the authors' code, rounds to 0.
    """
    chosen = scores > bias
    return change_at(chosen, base, torch.logical_not).logical_and_(scores != bias)
