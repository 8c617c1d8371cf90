"""Regions as sorted flat indices: sizes, random regions, overlaps, and writing at indices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor


def region_size(sparsity: float, graftable: int) -> int:
    """Return the requested size of a region, round(s · n), from its sparsity s and n graftable parameters."""
    return round(sparsity * graftable)


def at_random(total: int, count: int, seed: int, excluded: Tensor | None = None) -> Tensor:
    """Return `count` sorted indices below `total`, drawn uniformly without replacement.

    `excluded` are indices that are excluded.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(total, generator=generator)
    if excluded is not None and excluded.numel():
        order = order[~torch.isin(order, excluded.cpu())]
    return order[:count].sort().values


def write_at(tensor: Tensor, indices: Tensor, values: Tensor) -> None:
    """Write values, (k,), into a tensor of any strides at flat indices, (k,), in place.

    torch's own `put_` is not used, because torch.use_deterministic_algorithms forbids it.
    """
    if tensor.is_contiguous():
        tensor.view(-1)[indices] = values
    else:
        tensor[torch.unravel_index(indices, tensor.shape)] = values


def overlap(a: Tensor, b: Tensor, total: int) -> dict[str, float | None]:
    """Return how much two regions A and B, given as flat indices, overlap.

    `iou` is |A∩B| / |A∪B|, `a_in_b` is |A∩B| / |A|, and `b_in_a` is |A∩B| / |B|. `chance` is the expected
    intersection over the expected union of two random regions of these sizes among `total` parameters:
    E|A∩B| = |A| · |B| / total. A ratio whose denominator is 0 is None.
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
    """Return the share of a region's parameters in each group of tensors.

    `sizes` maps a tensor's name to its number of parameters in the region; `key` maps a name to a group.
    """
    total, groups = sum(sizes.values()), dict.fromkeys(map(key, sizes), 0)
    for name, size in sizes.items():
        groups[key(name)] += size
    return {group: size / total if total else 0.0 for group, size in groups.items()}


def missing_names(wanted: Iterable[str], have: Iterable[str]) -> list[str]:
    """Return the names of `wanted` that `have` lacks, sorted."""
    return sorted(set(wanted) - set(have))
