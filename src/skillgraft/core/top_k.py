"""The largest entries of a flat vector, in one pass and little memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

CHUNK = 1 << 18  # entries of a flat vector that a core works on at once: they fit its cache


def top_k(values: Tensor, count: int, barred: Tensor | None = None) -> Tensor:
    """Return the sorted flat indices of the `count` largest values; ties go to the lower index.

    `barred` are flat indices that are not to be had. Differs from the authors' code, whose strict >
    at the k-th value keeps k - 1 entries and loses every tie with it.
    """
    sample = values[:: sample_stride(values.numel())]
    total = values.numel()
    return top_k_of_parts(
        lambda: values.split(CHUNK), total, count, barred, lower_bound(sample, count, total)
    )


def sample_stride(total: int) -> int:
    """Return the step in which to go through values for a sample that `bound` can use."""
    return max(1, total // 2**20)


def lower_bound(sample: Tensor, count: int, total: int) -> Tensor | None:
    """Return a value that most likely a little more than `count` of `total` are above, or None."""
    share = sample.numel() * max(0, count) / max(1, total)
    rank = int(share + 4 * share**0.5 + 8)
    return sample.topk(rank, sorted=False).values.min() if rank < sample.numel() else None


def top_k_of_parts(
    parts: Callable[[], Iterable[Tensor]],
    total: int,
    count: int,
    barred: Tensor | None = None,
    least: Tensor | None = None,
) -> Tensor:
    """Return what `top` does for `total` values that are not all in memory: `parts` yields them in order.

    They are read once, or twice where `least`, a guess, is not below `count` of them. Beside a part,
    values and indices of at most 2 · `count` entries are in memory, and of no more than there are.
    """
    room = min(total, 2 * count + CHUNK)
    chosen = _one_pass(parts(), room, count, barred, least)
    if least is not None and chosen.numel() < count:
        return _one_pass(parts(), room, count, barred, None)
    return chosen


def _one_pass(
    parts: Iterable[Tensor], room: int, count: int, barred: Tensor | None, least: Tensor | None
) -> Tensor:
    """Return the indices of the `count` largest values above `least`, in one pass over the parts.

    `room` is for how many entries: more than `count`, or all there are.
    """
    if count <= 0:
        return torch.empty(0, dtype=torch.int64)
    barred = None if barred is None else barred.cpu().sort().values
    # one piece of memory from the start: many small ones between the parts would tear the heap
    value, index = torch.empty(0), torch.empty(0, dtype=torch.int64)
    held, start = 0, 0
    for part in parts:
        if not value.numel():
            value, index = part.new_empty(room), index.new_empty(room, device=part.device)
        inside = torch.ones_like(part, dtype=torch.bool) if least is None else part > least
        if barred is not None:
            first, last = torch.searchsorted(barred, torch.tensor([start, start + part.numel()]))
            inside[barred[first:last].to(part.device) - start] = False
        here = true_indices(inside)
        while here.numel():
            new = here[: room - held]
            end, here = held + new.numel(), here[new.numel() :]
            value[held:end], index[held:end] = part[new], new + start
            held = end
            if held == room > count:  # from here on a value must be above `count` of those before
                least, kept = _split_largest(value, count)
                value[:count], index[:count], held = value[kept], index[kept], count
                here = here[part[here] > least]
        start += part.numel()
    return index[:held] if held <= count else index[_split_largest(value[:held], count)[1]]


def _split_largest(value: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the least of the `count` largest of more values, and where in order those are."""
    least = value.topk(count, sorted=False).values.min()
    inside = value > least
    inside[true_indices(value == least)[: count - int(inside.sum())]] = True
    return least, true_indices(inside)


def true_indices(mask: Tensor) -> Tensor:
    """Return the sorted indices where a bool (n,) vector is True."""
    if mask.device.type != "cpu":
        return mask.nonzero().view(-1)
    return torch.from_numpy(np.flatnonzero(mask.numpy()))  # several times as fast as torch's
