"""Scores of entries by the gradient of the loss, and by magnitude."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from skillgraft.core import top_k
from skillgraft.core.flat_model import FlatModel
from skillgraft.core.layout import FlatLayout
from skillgraft.runtime.errors import InputError

Pass = Callable[[], Iterable[Tensor]]  # one pass over the examples: the loss of each batch


def magnitude(finetuned: Mapping[str, Tensor]) -> Tensor:
    """Return |θ_ft|; (n,)."""
    return FlatLayout.of(finetuned).flatten(finetuned).abs_()


def mean_gradient(flat: FlatModel, losses: Pass, *, squared: bool = False) -> Tensor:
    """Return the mean over batches of the loss's gradient, or of its square, where θ stands; (n,).

    Raises InputError where the loss or the gradient is not finite: no order would mean anything.
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
    """Return the mean over batches of g, or of g², at θ_pre + share · Δ; (n,)."""
    flat.write(lambda _: share)
    return mean_gradient(flat, losses, squared=squared)


def path_gradient(flat: FlatModel, losses: Pass, points: int, *, squared: bool = False) -> Tensor:
    """Return the mean of g, or of g², over the middles of `points` equal parts of θ_pre → θ_ft; (n,)."""
    total = torch.zeros_like(flat.theta)
    for point in range(points):  # a sum as it goes: one vector, not one a point
        total.add_(gradient_at(flat, losses, (point + 0.5) / points, squared=squared))
    return total.div_(points)


def attribution(flat: FlatModel, losses: Pass, points: int) -> Tensor:
    """Return −g ⊙ Δ, g the mean gradient at points of the path θ_pre → θ_ft; (n,).

    Its sum is, to the order of the points, by how much fine-tuning lowers the loss (integrated
    gradients): an entry's own part of it is what grafting it alone is worth.
    """
    return flat.times_delta(path_gradient(flat, losses, points)).neg_()


def fisher(flat: FlatModel, losses: Pass, points: int) -> Tensor:
    """Return g² ⊙ Δ², g² the mean squared gradient at points of the path θ_pre → θ_ft; (n,).

    The gradient is that of a batch, so of an example in batches of one.
    """
    squares = path_gradient(flat, losses, points, squared=True)
    return flat.times_delta(flat.times_delta(squares))


def greedy(
    flat: FlatModel, losses: Pass, count: int, rounds: int, barred: Tensor | None = None
) -> Tensor:
    """Return `count` entries chosen in rounds: each takes its share of the largest −g ⊙ Δ that are left.

    g is taken anew at the graft of the entries chosen so far, so that what they have already gained
    is not counted twice. `barred` are flat indices that are not to be had.
    """
    chosen = torch.zeros(flat.layout.total, dtype=torch.bool, device=flat.theta.device)
    never = torch.zeros(0, dtype=torch.int64) if barred is None else barred
    for number in range(1, rounds + 1):
        here = chosen.nonzero().view(-1)
        wanted = round(count * number / rounds) - here.numel()
        if wanted <= 0:  # fewer entries than rounds
            continue
        flat.write(lambda at: chosen[at])
        worth = flat.times_delta(mean_gradient(flat, losses)).neg_()
        chosen[top_k.top_k(worth, wanted, torch.cat([here, never.to(here.device)]))] = True
    return chosen.nonzero().view(-1)
