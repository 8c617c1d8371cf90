"""Selectors: which entries a region has, given θ_pre, θ_ft and, for some, the loss (method: section 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from skillgraft import region
from skillgraft.graft import layer_of, module_of
from skillgraft.mask import FlatModel
from skillgraft.region import Layout

Pass = Callable[[], Iterable[Tensor]]  # one pass over the examples: the loss of each batch


def magnitude(finetuned: Mapping[str, Tensor], count: int) -> Tensor:
    """Return the sorted flat indices of the `count` largest |θ_ft|."""
    return region.top(Layout.of(finetuned).flatten(finetuned).abs_(), count)


def whole(tensors: Mapping[str, Tensor], chosen: Callable[[str], bool]) -> Tensor:
    """Return the sorted flat indices of every entry of the tensors whose name is chosen."""
    layout = Layout.of(tensors)
    indices = {
        name: torch.arange(size)
        for name, size in zip(layout.shapes, layout.sizes, strict=True)
        if chosen(name)
    }
    return layout.join(indices)


def part_names(tensors: Iterable[str], kind: str) -> list[str]:
    """Return the blocks (`kind` layer) or kinds of module that there are, in the tensors' order."""
    return list(dict.fromkeys(map(layer_of if kind == "layer" else module_of, tensors)))


def path_gradient(flat: FlatModel, losses: Pass, share: float, *, squared: bool = False) -> Tensor:
    """Return the mean over batches of g, or of g², at θ_pre + share · Δ; (n,)."""
    flat.write(lambda _: share)
    return mean_gradient(flat, losses, squared=squared)


def mean_gradient(flat: FlatModel, losses: Pass, *, squared: bool = False) -> Tensor:
    """Return the mean over batches of the loss's gradient, or of its square, where θ stands; (n,)."""
    total, count = torch.zeros_like(flat.gradient), 0
    with torch.enable_grad():
        for loss in losses():
            loss.backward()
            total.add_(flat.gradient if not squared else flat.gradient.square())
            flat.gradient.zero_()
            count += 1
    return total.div_(count)


def midpoints(points: int) -> list[float]:
    """Return the middles of `points` equal parts of [0, 1]."""
    return [(point + 0.5) / points for point in range(points)]


def attribution(flat: FlatModel, losses: Pass, count: int, points: int) -> Tensor:
    """Return the `count` largest of −g ⊙ Δ, g the mean gradient at points of the path θ_pre → θ_ft.

    The sum over all entries is, to the order of the points, by how much fine-tuning lowers the loss
    (integrated gradients): an entry's own part of it is what grafting it alone is worth.
    """
    gradient = sum(path_gradient(flat, losses, share) for share in midpoints(points))
    return region.top(-(gradient * flat.delta), count)


def greedy(flat: FlatModel, losses: Pass, count: int, rounds: int) -> Tensor:
    """Return `count` entries chosen in rounds: each takes its share of the largest −g ⊙ Δ that are left.

    g is taken anew at the graft of the entries chosen so far, so that what they have already gained
    is not counted twice.
    """
    chosen = torch.zeros(flat.layout.total, dtype=torch.bool, device=flat.delta.device)
    for number in range(1, rounds + 1):
        flat.write(lambda at: chosen[at])
        worth = -(mean_gradient(flat, losses) * flat.delta)
        worth[chosen] = -torch.inf
        wanted = round(count * number / rounds) - int(chosen.sum())
        chosen[region.top(worth, wanted)] = True
    return chosen.nonzero().view(-1)


def fisher(flat: FlatModel, losses: Pass, count: int, points: int) -> Tensor:
    """Return the `count` largest of g² ⊙ Δ², summed over points of the path θ_pre → θ_ft.

    g² is the mean over batches of the squared gradient of a batch (of an example, in batches of one).
    """
    squares = sum(path_gradient(flat, losses, t, squared=True) for t in midpoints(points))
    return region.top(squares * flat.delta.square(), count)


def batch_losses(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], device: torch.device
) -> Iterable[Tensor]:
    """Yield the mean cross-entropy of each batch."""
    for batch in batches:
        here = {name: tensor.to(device) for name, tensor in batch.items()}
        yield nn.functional.cross_entropy(model(here), here["labels"])
