"""Regions as pure functions of flat tensors: selection, relaxation, rounding (method: section 3)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import prod

import numpy as np
import torch
from torch import Tensor

CHUNK = 1 << 18  # entries of a flat vector that a core works on at once: they fit its cache


@dataclass(frozen=True)
class Layout:
    """The order in which named tensors lie in one flat vector; flat indices count through it."""

    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Layout:
        """Return the layout of named tensors, in the mapping's order."""
        return cls({name: tuple(tensor.shape) for name, tensor in tensors.items()})

    @property
    def sizes(self) -> list[int]:
        """The number of entries of each tensor."""
        return [prod(shape) for shape in self.shapes.values()]

    @property
    def total(self) -> int:
        """The number of entries of all tensors, n."""
        return sum(self.sizes)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Return each tensor as a view of a flat (n,) vector."""
        parts = flat.split(self.sizes)
        return {
            name: part.view(shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def flatten(self, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> Tensor:
        """Return named tensors as one flat (n,) vector, a copy."""
        return torch.cat([tensors[name].detach().reshape(-1).to(dtype) for name in self.shapes])

    def split(self, indices: Tensor) -> dict[str, Tensor]:
        """Return, by name, the tensor's own flat indices of sorted indices into the whole vector."""
        ends = list(accumulate(self.sizes))
        cuts = torch.searchsorted(indices, torch.tensor(ends, device=indices.device)).tolist()
        starts = [0, *cuts][: len(cuts)]
        offsets = [0, *ends][: len(ends)]
        return {
            name: indices[start:cut] - offset
            for name, start, cut, offset in zip(self.shapes, starts, cuts, offsets, strict=True)
        }

    def join(self, indices: Mapping[str, Tensor]) -> Tensor:
        """Return sorted indices into the whole vector: the inverse of `split`."""
        offsets = [0, *accumulate(self.sizes)]
        empty = torch.empty(0, dtype=torch.int64)
        parts = [
            indices.get(name, empty).cpu() + offset
            for name, offset in zip(self.shapes, offsets, strict=False)
        ]
        return torch.cat(parts)


def region_size(sparsity: float, graftable: int) -> int:
    """Return round(s·n), the asked size of a region."""
    return round(sparsity * graftable)


def top(values: Tensor, count: int, barred: Tensor | None = None) -> Tensor:
    """Return the sorted flat indices of the `count` largest values; ties go to the lower index.

    `barred` are flat indices that are not to be had. Differs from the authors' code, whose strict >
    at the k-th value keeps k - 1 entries and loses every tie with it.
    """
    sample = values[:: stride(values.numel())]
    total = values.numel()
    return largest(lambda: values.split(CHUNK), total, count, barred, bound(sample, count, total))


def stride(total: int) -> int:
    """Return the step in which to go through values for a sample that `bound` can use."""
    return max(1, total // 2**20)


def bound(sample: Tensor, count: int, total: int) -> Tensor | None:
    """Return a value that most likely a little more than `count` of `total` are above, or None."""
    share = sample.numel() * max(0, count) / max(1, total)
    rank = int(share + 4 * share**0.5 + 8)
    return sample.topk(rank, sorted=False).values.min() if rank < sample.numel() else None


def largest(
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
    chosen = once(parts(), room, count, barred, least)
    if least is not None and chosen.numel() < count:
        return once(parts(), room, count, barred, None)
    return chosen


def once(
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
        here = where(inside)
        while here.numel():
            new = here[: room - held]
            end, here = held + new.numel(), here[new.numel() :]
            value[held:end], index[held:end] = part[new], new + start
            held = end
            if held == room > count:  # from here on a value must be above `count` of those before
                least, kept = sift(value, count)
                value[:count], index[:count], held = value[kept], index[kept], count
                here = here[part[here] > least]
        start += part.numel()
    return index[:held] if held <= count else index[sift(value[:held], count)[1]]


def sift(value: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the least of the `count` largest of more values, and where in order those are."""
    least = value.topk(count, sorted=False).values.min()
    inside = value > least
    inside[where(value == least)[: count - int(inside.sum())]] = True
    return least, where(inside)


def where(mask: Tensor) -> Tensor:
    """Return the sorted indices where a bool (n,) vector is True."""
    if mask.device.type != "cpu":
        return mask.nonzero().view(-1)
    return torch.from_numpy(np.flatnonzero(mask.numpy()))  # several times as fast as torch's


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


def base_of(inside: Tensor, total: int) -> Tensor:
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


def slope(scores: Tensor, base: Tensor, bias: float, out: Tensor | None = None) -> Tensor:
    """Return dγ/dS = (1 − 2γ_base) ⊙ σ'(S − c)."""
    flip = torch.sub(scores, bias, out=out).sigmoid_()
    # σ' = (1 − σ) σ in one pass, in place
    torch.ops.aten.sigmoid_backward.grad_input(flip.new_ones(()), flip, grad_input=flip)
    return change_at(flip, base, torch.neg)


def rounded(scores: Tensor, base: Tensor, bias: float) -> Tensor:
    """Return round(γ(S)) as bool: γ_base XOR (S > c), and False at S = c exactly."""
    chosen = scores > bias
    return change_at(chosen, base, torch.logical_not).logical_and_(scores != bias)


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


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of named tensors: names, shapes, dtypes and bytes, in name order."""
    return digest_one_by_one(sorted(tensors), lambda name: tensors[name])


def digest_one_by_one(names: Iterable[str], read: Callable[[str], Tensor]) -> str:
    """Return what `digest` does for tensors that are read when their turn comes; names are sorted."""
    content = hashlib.sha256()
    for name in names:
        tensor = read(name).detach().cpu().contiguous()
        content.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        content.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


def shares(sizes: Mapping[str, int], key: Callable[[str], str]) -> dict[str, float]:
    """Return the share of a region's entries in each group of tensors, by `key` of the name."""
    total, groups = sum(sizes.values()), dict.fromkeys(map(key, sizes), 0)
    for name, size in sizes.items():
        groups[key(name)] += size
    return {group: size / total if total else 0.0 for group, size in groups.items()}


def missing_names(wanted: Iterable[str], have: Iterable[str]) -> list[str]:
    """Return the names that are wanted and not there, sorted."""
    return sorted(set(wanted) - set(have))
