"""The region γ_base of the parameters that fine-tuning moved most (Panigrahi et al., 2023)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from skillgraft.core import top_k
from skillgraft.core.flat_model import chunk_sizes, group_views, join_views


@torch.no_grad()
def base_region(
    finetuned: Mapping[str, Tensor],
    pretrained: Mapping[str, Tensor],
    count: int,
    excluded: Tensor | None = None,
) -> Tensor:
    """Return the sorted flat indices of the `count` largest |Δ|, over all tensors together.

    One threshold holds for all tensors, so that each layer's share of γ_base follows from its movement.
    `excluded` are flat indices that are excluded. |Δ| is computed chunk by chunk and never stored.
    """
    sizes = chunk_sizes(next(iter(pretrained.values())))
    total = sum(p.numel() for p in pretrained.values())
    after = {name: finetuned[name].to(p) for name, p in pretrained.items()}
    pairs = [group_views(tensors, *sizes) for tensors in (after.values(), pretrained.values())]
    every = top_k.sample_stride(total)

    def parts() -> Iterator[Tensor]:
        return ((join_views(a) - join_views(b)).abs_() for a, b in zip(*pairs, strict=True))

    # An evenly spaced sample of |Δ| estimates the threshold: most parameters are then compared only once.
    sample = torch.cat(
        [
            (after[n].reshape(-1)[::every] - p.reshape(-1)[::every]).abs_()
            for n, p in pretrained.items()
        ]
    )
    return top_k.top_k_of_parts(
        parts, total, count, excluded, top_k.lower_bound(sample, count, total)
    )
