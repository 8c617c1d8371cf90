"""Regions as sorted flat indices: sizes, random regions, overlaps, writing at indices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor


def region_size(sparsity: float, graftable: int) -> int:
    """Return round(s·n), the asked size of a region."""
    return round(sparsity * graftable)


def at_random(total: int, count: int, seed: int, barred: Tensor | None = None) -> Tensor:
    """Return `count` sorted indices below `total`, uniform without replacement, none of `barred`."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(total, generator=generator)
    if barred is not None and barred.numel():
        order = order[~torch.isin(order, barred.cpu())]
    return order[:count].sort().values


def write_at(tensor: Tensor, indices: Tensor, values: Tensor) -> None:
    """Write values at flat indices, in place, whatever the strides.

    Not `put_`, which torch.use_deterministic_algorithms forbids.
    """
    if tensor.is_contiguous():
        tensor.view(-1)[indices] = values
    else:
        tensor[torch.unravel_index(indices, tensor.shape)] = values


def overlap(a: Tensor, b: Tensor, total: int) -> dict[str, float | None]:
    """Return IoU and both asymmetric shares of two sorted index vectors, and the IoU of chance.

    `chance` is the IoU that two random regions of these sizes among `total` entries have in the
    mean (the expected intersection over the expected union); a ratio over nothing is None.
    """
    shared = int(torch.isin(a, b, assume_unique=True).sum())
    expected = a.numel() * b.numel() / total if total else 0.0

    def ratio(part: float, whole: float) -> float | None:
        return part / whole if whole else None

    return {
        "iou": ratio(shared, a.numel() + b.numel() - shared),
        "a_in_b": ratio(shared, a.numel()),
        "b_in_a": ratio(shared, b.numel()),
        "chance": ratio(expected, a.numel() + b.numel() - expected),
    }


def shares(sizes: Mapping[str, int], key: Callable[[str], str]) -> dict[str, float]:
    """Return the share of a region's entries in each group of tensors, by `key` of the name."""
    total, groups = sum(sizes.values()), dict.fromkeys(map(key, sizes), 0)
    for name, size in sizes.items():
        groups[key(name)] += size
    return {group: size / total if total else 0.0 for group, size in groups.items()}


def missing_names(wanted: Iterable[str], have: Iterable[str]) -> list[str]:
    """Return the names that are wanted and not there, sorted."""
    return sorted(set(wanted) - set(have))
