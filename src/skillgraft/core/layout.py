"""Flat indices: named tensors laid end to end in one vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True)
class FlatLayout:
    """The order and shapes of named tensors that lie end to end in one flat (n,) vector."""

    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> FlatLayout:
        """Return the layout of named tensors, in the mapping's order."""
        return cls({name: tuple(tensor.shape) for name, tensor in tensors.items()})

    @property
    def sizes(self) -> list[int]:
        """The number of elements of each tensor."""
        return [prod(shape) for shape in self.shapes.values()]

    @property
    def total(self) -> int:
        """The number of elements of all tensors together, n."""
        return sum(self.sizes)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Return, by name, the tensors as views of a flat (n,) vector."""
        parts = flat.split(self.sizes)
        return {
            name: part.view(shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def flatten(self, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> Tensor:
        """Return named tensors copied into one flat (n,) vector."""
        return torch.cat([tensors[name].detach().reshape(-1).to(dtype) for name in self.shapes])

    def split(self, indices: Tensor) -> dict[str, Tensor]:
        """Return, by name, sorted indices into the flat vector as flat indices into each tensor."""
        # sorted, so that each tensor's indices are one slice
        ends = list(accumulate(self.sizes))
        cuts = torch.searchsorted(indices, torch.tensor(ends, device=indices.device)).tolist()
        starts = [0, *cuts][: len(cuts)]
        offsets = [0, *ends][: len(ends)]
        return {
            name: indices[start:cut] - offset
            for name, start, cut, offset in zip(self.shapes, starts, cuts, offsets, strict=True)
        }

    def join(self, indices: Mapping[str, Tensor]) -> Tensor:
        """Return flat indices into each tensor as sorted indices into the flat vector: `split` undone."""
        offsets = [0, *accumulate(self.sizes)]
        empty = torch.empty(0, dtype=torch.int64)
        parts = [
            indices.get(name, empty).cpu() + offset
            for name, offset in zip(self.shapes, offsets, strict=False)
        ]
        return torch.cat(parts)
