"""The k largest values of a flat vector, found in one pass and in little memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

CHUNK = 1 << 18  # elements that a core processes at once: 1 MiB of float32 fits its cache


def top_k(values: Tensor, count: int, excluded: Tensor | None = None) -> Tensor:
    """Return the sorted flat indices of the `count` largest values; ties go to the lower index.

    `excluded` are flat indices that are excluded. Differs from the authors' code, whose strict > at the
    k-th largest value keeps k − 1 parameters, loses every tie with the k-th, and fails for k = 0.
    """
    sample = values[:: sample_stride(values.numel())]
    total = values.numel()
    return top_k_of_parts(
        lambda: values.split(CHUNK), total, count, excluded, lower_bound(sample, count, total)
    )


def sample_stride(total: int) -> int:
    """Return the stride at which to sample `total` values, about 2²⁰ of them, for `lower_bound`."""
    return max(1, total // 2**20)


def lower_bound(sample: Tensor, count: int, total: int) -> Tensor | None:
    """Return a value that is probably below the `count` largest of `total` values, or None.

    `sample` is an evenly spaced sample. The bound may fail for an unlucky sample: `top_k_of_parts` then
    makes a second pass.
    """
    # the expected rank of the threshold within the sample, plus 4 standard deviations and a little
    share = sample.numel() * max(0, count) / max(1, total)
    rank = int(share + 4 * share**0.5 + 8)
    return sample.topk(rank, sorted=False).values.min() if rank < sample.numel() else None


def top_k_of_parts(
    parts: Callable[[], Iterable[Tensor]],
    total: int,
    count: int,
    excluded: Tensor | None = None,
    least: Tensor | None = None,
) -> Tensor:
    """Return what `top_k` does for `total` values that are not all in memory: `parts` yields them in order.

    They are read once, or twice where `least`, a guess, is not below `count` of them. Beside a part,
    values and indices of at most 2 · `count` entries are in memory, and of no more than there are.

    Args:
        parts: a function that yields the values in order, each time from the first; each part is (m,).
        total: the number of all values.
        count: how many indices are returned, at most.
        excluded: indices that must not be chosen, (b,) int64 in any order.
        least: a guess of a value that more than `count` values are above, a scalar tensor.
    """
    room = min(total, 2 * count + CHUNK)
    chosen = _one_pass(parts(), room, count, excluded, least)
    # the guess was too high: start again without one
    if least is not None and chosen.numel() < count:
        return _one_pass(parts(), room, count, excluded, None)
    return chosen


def _one_pass(
    parts: Iterable[Tensor], room: int, count: int, excluded: Tensor | None, least: Tensor | None
) -> Tensor:
    """Return the indices of the `count` largest values above `least`, in one pass over the parts.

    Args:
        parts: the values in order, each part (m,).
        room: the number of candidates in memory: more than `count`, or all values.
        count: how many indices are returned, at most.
        excluded: indices that must not be chosen, (b,) int64 in any order.
        least: values at or below it are not looked at, a scalar tensor; None: all are.
    """
    if count <= 0:
        return torch.empty(0, dtype=torch.int64)
    excluded = None if excluded is None else excluded.cpu().sort().values
    # one allocation for all candidates: many small ones between the parts would fragment the heap
    value, index = torch.empty(0), torch.empty(0, dtype=torch.int64)
    held, start = 0, 0
    for part in parts:
        if not value.numel():
            value, index = part.new_empty(room), index.new_empty(room, device=part.device)
        inside = torch.ones_like(part, dtype=torch.bool) if least is None else part > least
        if excluded is not None:
            first, last = torch.searchsorted(excluded, torch.tensor([start, start + part.numel()]))
            inside[excluded[first:last].to(part.device) - start] = False
        here = true_indices(inside)
        while here.numel():
            new = here[: room - held]
            end, here = held + new.numel(), here[new.numel() :]
            value[held:end], index[held:end] = part[new], new + start
            held = end
            # The buffer is full: keep the `count` largest, whose minimum is from here on the bound.
            # A later value equal to the bound loses the tie, since its index is higher.
            if held == room > count:
                least, kept = _split_largest(value, count)
                value[:count], index[:count], held = value[kept], index[kept], count
                here = here[part[here] > least]
        start += part.numel()
    return index[:held] if held <= count else index[_split_largest(value[:held], count)[1]]


def _split_largest(value: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the smallest of the `count` largest values, and the sorted indices of those `count` values."""
    least = value.topk(count, sorted=False).values.min()
    inside = value > least
    # of the ties with the smallest, as many as are missing, the lowest indices first
    inside[true_indices(value == least)[: count - int(inside.sum())]] = True
    return least, true_indices(inside)


def true_indices(mask: Tensor) -> Tensor:
    """Return the sorted indices where a bool vector, (n,), is True."""
    if mask.device.type != "cpu":
        return mask.nonzero().view(-1)
    # several times as fast as torch.nonzero on a CPU
    return torch.from_numpy(np.flatnonzero(mask.numpy()))
