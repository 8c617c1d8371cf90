"""The graft: a region γ with the fine-tuned and the pre-trained values inside the region.

A graft stores only the parameters where γ = 1, so that its file has the size of the region and not of
the model. (The authors' code saves S for every graftable parameter, without names or γ_base.)
"""

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
    """The grafted model θ_pre + γ ⊙ Δ, stored as the parameters where γ = 1.

    Each mapping has the names of all graftable tensors. `indices` maps a name to sorted flat indices
    into the tensor, (k,) int64; `values` to the fine-tuned values there, (k,); `pretrained` to the
    pre-trained values there, (k,); `shapes` to the tensor's shape. `base` is the SHA-256 of all graftable
    pre-trained tensors. `meta` says how the graft was made. `head` holds a new linear head, if any.
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
        """Return the graft of the region `chosen`, sorted flat indices through `pretrained` in its order.

        Args:
            chosen: sorted flat indices of the region, (size,) int64, on any device.
            pretrained: θ_pre, the graftable tensors by name; flat indices count through them in this order.
            finetuned: θ_ft, tensors of the same names and shapes.
            meta: what the graft's file says of its origin, as plain values of JSON.
            head: the tensors of a linear head that was trained with θ_ft.
        """
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
        """The order of the graftable tensors in one flat vector."""
        return FlatLayout(self.shapes)

    @property
    def size(self) -> int:
        """The number of parameters in the region, ‖γ‖₀."""
        return sum(index.numel() for index in self.indices.values())

    @property
    def graftable(self) -> int:
        """The number of graftable parameters, n."""
        return self.layout.total

    @property
    def sparsity(self) -> float:
        """The measured share of graftable parameters in the region, ‖γ‖₀ / n, in [0, 1].

        The paper calls this share sparsity: a smaller number means a smaller region.
        """
        return self.size / self.graftable if self.graftable else 0.0

    density = sparsity  # the same number by the word of the pruning literature

    def region(self) -> Tensor:
        """Return the region as sorted flat indices through all graftable tensors, (‖γ‖₀,) int64."""
        return self.layout.join(self.indices)

    def overlap(self, other: Graft) -> dict[str, float | None]:
        """Return `iou`, `a_in_b`, `b_in_a` and `chance` of this region A and another region B.

        `regions.overlap` defines the four. Raises GraftError where the base models differ.
        """
        same_base([self, other])
        theirs = self.layout.join(other.indices)  # in this graft's order of tensors
        return regions.overlap(self.region(), theirs, self.graftable)

    def iou(self, other: Graft) -> float:
        """Return the intersection over union |A∩B| / |A∪B| of two regions, 0 for two empty regions."""
        return self.overlap(other)["iou"] or 0.0

    def __or__(self, other: Graft) -> Graft:
        """Return the union of two grafts; a parameter of both gets the mean of the two values."""
        return union([self, other])

    def __and__(self, other: Graft) -> Graft:
        """Return the intersection of two grafts, with this graft's values."""
        return intersection([self, other])

    def apply(self, model: M) -> M:
        """Write the graft into `model` in place, and return the model.

        The model must hold the stored pre-trained values inside the region; parameters outside are not
        compared. Raises GraftError where the graft does not fit; the model is then unchanged.
        `active(model, graft)` grafts for the length of a `with` block only.
        """
        for target in patches.find_patches(self, model):
            target.write(self.values[target.name])
        return model

    def save(self, path: str | Path) -> Path:
        """Write the graft as one safetensors file, and return the path.

        The file appears complete or not at all. Indices are int32 where every tensor is small enough.
        """
        return graft_file.write(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Graft:
        """Return the graft of a file.

        Raises GraftError where the file is missing, truncated, altered, or not a graft.
        """
        return cls(**graft_file.read(path))

    def __repr__(self) -> str:
        """Return one line: size, sparsity, base model, task, selector, and the main layer and module."""
        return graft_facts.one_line(self)

    def _repr_html_(self) -> str:
        """Return a small HTML table for a notebook."""
        return graft_facts.html_table(self)


def same_base(grafts: Sequence[Graft]) -> None:
    """Raise GraftError unless all grafts have the same base model."""
    first = grafts[0]
    for other in grafts:
        if first.base != other.base:
            names = " and ".join(map(graft_facts.base_name, (first, other)))
            raise GraftError(f"the grafts have different base models: {names}")


def union(grafts: Sequence[Graft]) -> Graft:
    """Return the union of grafts of one base model; a shared parameter gets the mean of its values.

    For three and more grafts the union differs from a | b | c, which would weigh the last graft most.
    Localize-and-Stitch merges models by the same mean (He et al., TMLR 2025).
    """
    first = grafts[0]
    same_base(grafts)
    # Tensors of the same dtypes are joined into one vector: one sort instead of one per tensor.
    alike: dict[tuple[torch.dtype, ...], list[str]] = {}
    for name in first.shapes:
        alike.setdefault(tuple(graft.values[name].dtype for graft in grafts), []).append(name)
    indices: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}
    pretrained: dict[str, Tensor] = {}
    for names in alike.values():
        layout = FlatLayout({name: first.shapes[name] for name in names})
        every = torch.cat([layout.join(graft.indices) for graft in grafts])
        value = torch.cat([graft.values[name] for graft in grafts for name in names])
        # index: the union's u parameters, (u,); place: where each of all m values belongs there, (m,);
        # count: how many grafts hold each parameter, (u,)
        index, place = every.unique(return_inverse=True)
        count = torch.bincount(place, minlength=index.numel())
        # in float64, where a sum of large fp16 values stays finite
        total = torch.zeros(index.numel(), dtype=torch.float64).index_add_(0, place, value.double())
        one, before = (torch.empty(index.numel(), dtype=value.dtype) for _ in range(2))
        one[place] = value
        before[place] = torch.cat([graft.pretrained[name] for graft in grafts for name in names])
        # a value of one graft alone keeps its bits
        mean = torch.where(count > 1, (total / count).to(value.dtype), one)
        parts = layout.split(index)
        sizes = [part.numel() for part in parts.values()]
        indices |= parts
        values |= dict(zip(names, mean.split(sizes), strict=True))
        pretrained |= dict(zip(names, before.split(sizes), strict=True))
    head = first.head if all(same_tensors(first.head, graft.head) for graft in grafts) else {}
    return combined(grafts, "union", indices, values, pretrained, head)


def intersection(grafts: Sequence[Graft]) -> Graft:
    """Return the intersection of grafts of one base model, with the values of the first graft."""
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
    """Return a graft whose `meta` names the grafts from which the graft was made.

    Args:
        grafts: the grafts that were combined, of one base model.
        rule: union or intersection.
        indices: the sorted indices of the region within each tensor, by name; (k,) int64.
        values: the fine-tuned values there, by name; (k,).
        pretrained: the pre-trained values there, by name; (k,).
        head: the tensors of a linear head; empty without one.
    """
    first = grafts[0]
    meta = {
        "model": first.meta.get("model"),
        "rule": rule,
        "parents": [dict(graft.meta) for graft in grafts],
    }
    return Graft(indices, values, pretrained, first.shapes, first.base, meta, head)


def same_tensors(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Return whether two mappings have the same names and equal tensors."""
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)
