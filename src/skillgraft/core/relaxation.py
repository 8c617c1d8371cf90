"""The relaxed mask γ(S), its slope and its rounding (section 3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def as_mask(inside: Tensor, total: int) -> Tensor:
    """Return γ_base of `total` entries as `relax` takes it: the indices given, or on a GPU bool.

    To write values at indices wants a sort there, where kernels are to be deterministic.
    """
    if inside.device.type == "cpu":
        return inside
    return inside.new_zeros(total, dtype=torch.bool).index_fill_(0, inside, True)


def change_at(values: Tensor, base: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Change values in place where γ_base is 1, and return them."""
    if base.dtype == torch.bool:
        return torch.where(base, change(values), values, out=values)
    values[base] = change(values[base])
    return values


def relax(scores: Tensor, base: Tensor, bias: float, out: Tensor | None = None) -> Tensor:
    """Return γ(S) = γ_base ⊙ (1 − σ(S − c)) + (1 − γ_base) ⊙ σ(S − c).

    `base` is γ_base as bool, or the indices where it is 1, here and below; `out` is written to.
    """
    share = torch.sub(scores, bias, out=out).sigmoid_()
    return change_at(share, base, lambda values: 1 - values)


def relax_grad(scores: Tensor, base: Tensor, bias: float, out: Tensor | None = None) -> Tensor:
    """Return dγ/dS = (1 − 2γ_base) ⊙ σ'(S − c)."""
    flip = torch.sub(scores, bias, out=out).sigmoid_()
    # σ' = (1 − σ) σ in one pass, in place
    torch.ops.aten.sigmoid_backward.grad_input(flip.new_ones(()), flip, grad_input=flip)
    return change_at(flip, base, torch.neg)


def round_mask(scores: Tensor, base: Tensor, bias: float) -> Tensor:
    """Return round(γ(S)) as bool: γ_base XOR (S > c), and False at S = c exactly."""
    chosen = scores > bias
    return change_at(chosen, base, torch.logical_not).logical_and_(scores != bias)
