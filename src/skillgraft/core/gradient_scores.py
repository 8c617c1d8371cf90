"""Rank parameters by the gradient of the loss, or by magnitude: selectors that learn no mask.

g is the mean gradient ∂L/∂θ over batches, (n,). A selector keeps the k parameters of largest value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from skillgraft.core import top_k
from skillgraft.core.flat_model import FlatModel
from skillgraft.core.layout import FlatLayout
from skillgraft.runtime.errors import InputError

# one pass over the examples, which yields the scalar loss of each batch
Pass = Callable[[], Iterable[Tensor]]


def magnitude(finetuned: Mapping[str, Tensor]) -> Tensor:
    """Return the magnitudes |θ_ft| as one flat vector, (n,)."""
    return FlatLayout.of(finetuned).flatten(finetuned).abs_()


def mean_gradient(flat: FlatModel, losses: Pass, *, squared: bool = False) -> Tensor:
    """Return the mean over batches of g, or of g² with `squared`, at the present θ, (n,).

    Raises InputError where the gradient is not finite, since NaN has no place in a ranking.
    """
    total, count = torch.zeros_like(flat.theta), 0
    views = flat.layout.views(total)
    with torch.enable_grad():
        for loss in losses():
            loss.backward()
            for name, gradient in flat.take_gradients().items():
                views[name].add_(gradient if not squared else gradient.square())
            count += 1
    if not bool(total.isfinite().all()):
        raise InputError(
            "graft.selector: the loss's gradient between θ_pre and θ_ft is not finite: "
            "lower finetune.lr"
        )
    return total.div_(count)


def gradient_at(flat: FlatModel, losses: Pass, share: float, *, squared: bool = False) -> Tensor:
    """Return the mean over batches of g, or of g² with `squared`, at θ_pre + share · Δ, (n,)."""
    flat.write(lambda _: share)
    return mean_gradient(flat, losses, squared=squared)


def path_gradient(flat: FlatModel, losses: Pass, points: int, *, squared: bool = False) -> Tensor:
    """Return the mean of g, or of g² with `squared`, over the path θ_pre → θ_ft, (n,).

    The path is cut into `points` equal parts, and the gradient is taken at the middle of each (the
    midpoint rule, whose error is O(points⁻²)).
    """
    total = torch.zeros_like(flat.theta)
    for point in range(points):  # a running sum: one (n,) vector instead of one per point
        total.add_(gradient_at(flat, losses, (point + 0.5) / points, squared=squared))
    return total.div_(points)


def attribution(flat: FlatModel, losses: Pass, points: int) -> Tensor:
    """Return −g ⊙ Δ, where g is the mean gradient along the path θ_pre → θ_ft, (n,).

    These are integrated gradients (Sundararajan et al., ICML 2017): their sum approximates
    L(θ_pre) − L(θ_ft), so that each value is the parameter's share of the loss that fine-tuning removes.
    """
    return flat.times_delta(path_gradient(flat, losses, points)).neg_()


def fisher(flat: FlatModel, losses: Pass, points: int) -> Tensor:
    """Return F ⊙ Δ², where F is the mean of g² along the path θ_pre → θ_ft, (n,).

    Where every batch holds one example, F is the diagonal of the empirical Fisher information. With
    larger batches g is the mean gradient of a batch.
    """
    squares = path_gradient(flat, losses, points, squared=True)
    return flat.times_delta(flat.times_delta(squares))


def greedy(
    flat: FlatModel, losses: Pass, count: int, rounds: int, excluded: Tensor | None = None
) -> Tensor:
    """Return the flat indices of `count` parameters, chosen in rounds by the largest −g ⊙ Δ.

    g is taken anew at the graft of the entries chosen so far, so that what they have already gained
    is not counted twice.

    Args:
        flat: the model in one flat vector.
        losses: a function that yields the losses of the batches, each time from the first.
        count: how many parameters are chosen, at least 0.
        rounds: in how many rounds, at least 1.
        excluded: flat indices that must not be chosen, (m,) int64.
    """
    chosen = torch.zeros(flat.layout.total, dtype=torch.bool, device=flat.theta.device)  # γ, (n,)
    never = torch.zeros(0, dtype=torch.int64) if excluded is None else excluded
    for number in range(1, rounds + 1):
        here = chosen.nonzero().view(-1)
        wanted = round(count * number / rounds) - here.numel()
        if wanted <= 0:  # fewer parameters than rounds
            continue
        flat.write(lambda at: chosen[at])
        worth = flat.times_delta(mean_gradient(flat, losses)).neg_()
        chosen[top_k.top_k(worth, wanted, torch.cat([here, never.to(here.device)]))] = True
    return chosen.nonzero().view(-1)
