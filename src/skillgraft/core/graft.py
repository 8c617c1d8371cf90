"""The graft: a value that holds a region with its fine-tuned and pre-trained values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from skillgraft.core import digests, graft_facts, graft_file, patches, regions
from skillgraft.core.layout import FlatLayout
from skillgraft.runtime.errors import GraftError

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class Graft:
    """θ_pre + γ⊙Δ, as what of it differs from θ_pre.

    `indices`, `values` and `pretrained` map each graftable parameter's name to sorted flat indices
    (int64), the fine-tuned values there and the pre-trained values there; `shapes` to its shape.
    `base` is the digest of all graftable pre-trained tensors. `head` holds a new linear head.
    """

    indices: Mapping[str, Tensor]
    values: Mapping[str, Tensor]
    pretrained: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    base: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    head: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def take(
        cls,
        chosen: Tensor,
        pretrained: Mapping[str, Tensor],
        finetuned: Mapping[str, Tensor],
        meta: Mapping[str, Any] | None = None,
        head: Mapping[str, Tensor] | None = None,
    ) -> Graft:
        """Return the graft of sorted flat indices `chosen`, counted through `pretrained` in its order."""
        layout = FlatLayout.of(pretrained)
        indices = {name: part.cpu() for name, part in layout.split(chosen).items()}

        def at(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {n: tensors[n].detach().cpu().take(i) for n, i in indices.items()}

        return cls(
            indices,
            at(finetuned),
            at(pretrained),
            layout.shapes,
            digests.digest(pretrained),
            dict(meta or {}),
            {name: tensor.detach().cpu().clone() for name, tensor in (head or {}).items()},
        )

    @property
    def layout(self) -> FlatLayout:
        """How the graftable tensors lie in one flat vector."""
        return FlatLayout(self.shapes)

    @property
    def size(self) -> int:
        """‖γ‖₀, the number of entries in the region."""
        return sum(index.numel() for index in self.indices.values())

    @property
    def graftable(self) -> int:
        """The number of graftable parameters."""
        return self.layout.total

    @property
    def sparsity(self) -> float:
        """The measured share of graftable parameters that the region keeps."""
        return self.size / self.graftable if self.graftable else 0.0

    density = sparsity  # the same number by the word of the pruning literature

    def region(self) -> Tensor:
        """Return the sorted flat indices of the region through all graftable tensors, int64."""
        return self.layout.join(self.indices)

    def overlap(self, other: Graft) -> dict[str, float | None]:
        """Return `iou`, `a_in_b`, `b_in_a` and `chance` of two regions of one base model."""
        same_base([self, other])
        theirs = self.layout.join(other.indices)  # in this graft's order of tensors
        return regions.overlap(self.region(), theirs, self.graftable)

    def iou(self, other: Graft) -> float:
        """Return |A∩B| / |A∪B|; two empty regions have 0."""
        return self.overlap(other)["iou"] or 0.0

    def __or__(self, other: Graft) -> Graft:
        """Return the union; a shared entry gets the mean of the two values."""
        return union([self, other])

    def __and__(self, other: Graft) -> Graft:
        """Return the intersection, with this graft's values."""
        return intersection([self, other])

    def apply(self, model: M) -> M:
        """Write the graft into `model` in place and return it; nothing is written where it does not fit.

        The stored pre-trained values are compared, not the whole model. Raises GraftError.
        `active(model, graft)` is the same inside a `with` block, and undoes it.
        """
        for target in patches.find_patches(self, model):
            target.write(self.values[target.name])
        return model

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, whole or not at all; indices are int32 where they fit."""
        return graft_file.write(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Graft:
        """Read a graft file; raises GraftError where it is missing, truncated, altered or no graft."""
        return cls(**graft_file.read(path))

    def __repr__(self) -> str:
        """Return one line: size, sparsity, base model, task, selector, and where most of it is."""
        return graft_facts.one_line(self)

    def _repr_html_(self) -> str:
        """Return a small table for a notebook."""
        return graft_facts.html_table(self)


def same_base(grafts: Sequence[Graft]) -> None:
    """Raise GraftError unless all grafts are of one base model."""
    first = grafts[0]
    for other in grafts:
        if first.base != other.base:
            names = " and ".join(map(graft_facts.base_name, (first, other)))
            raise GraftError(f"the grafts have different base models: {names}")


def union(grafts: Sequence[Graft]) -> Graft:
    """Return the union of grafts of one base; a shared entry gets the mean of all values it has.

    Of three and more this is not a | b | c, which would weigh the last most.
    """
    first = grafts[0]
    same_base(grafts)
    alike: dict[tuple[torch.dtype, ...], list[str]] = {}  # names whose values fit one vector
    for name in first.shapes:
        alike.setdefault(tuple(graft.values[name].dtype for graft in grafts), []).append(name)
    indices: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}
    pretrained: dict[str, Tensor] = {}
    for names in alike.values():
        layout = FlatLayout({name: first.shapes[name] for name in names})
        every = torch.cat([layout.join(graft.indices) for graft in grafts])
        value = torch.cat([graft.values[name] for graft in grafts for name in names])
        index, place = every.unique(return_inverse=True)
        count = torch.bincount(place, minlength=index.numel())
        # in float64, where the sum of large fp16 values is finite
        total = torch.zeros(index.numel(), dtype=torch.float64).index_add_(0, place, value.double())
        one, before = (torch.empty(index.numel(), dtype=value.dtype) for _ in range(2))
        one[place] = value
        before[place] = torch.cat([graft.pretrained[name] for graft in grafts for name in names])
        mean = torch.where(count > 1, (total / count).to(value.dtype), one)
        parts = layout.split(index)
        sizes = [part.numel() for part in parts.values()]
        indices |= parts
        values |= dict(zip(names, mean.split(sizes), strict=True))
        pretrained |= dict(zip(names, before.split(sizes), strict=True))
    head = first.head if all(same_tensors(first.head, graft.head) for graft in grafts) else {}
    return combined(grafts, "union", indices, values, pretrained, head)


def intersection(grafts: Sequence[Graft]) -> Graft:
    """Return the intersection of grafts of one base, with the first one's values."""
    first = grafts[0]
    same_base(grafts)
    indices, values, pretrained = {}, {}, {}
    for name, index in first.indices.items():
        shared = torch.ones_like(index, dtype=torch.bool)
        for other in grafts:
            shared &= torch.isin(index, other.indices[name], assume_unique=True)
        indices[name], values[name] = index[shared], first.values[name][shared]
        pretrained[name] = first.pretrained[name][shared]
    return combined(grafts, "intersection", indices, values, pretrained, first.head)


def combined(
    grafts: Sequence[Graft],
    rule: str,
    indices: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    pretrained: Mapping[str, Tensor],
    head: Mapping[str, Tensor],
) -> Graft:
    """Return a graft that says which grafts it was made from."""
    first = grafts[0]
    meta = {
        "model": first.meta.get("model"),
        "rule": rule,
        "parents": [dict(graft.meta) for graft in grafts],
    }
    return Graft(indices, values, pretrained, first.shapes, first.base, meta, head)


def same_tensors(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Return whether two mappings of tensors are equal, bit for bit."""
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)
