"""Apply grafts to a model for the length of a `with` block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

from skillgraft.core.graft import Graft, union
from skillgraft.core.patches import find_patches

M = TypeVar("M", bound=nn.Module)


@contextmanager
def active(model: M, *grafts: Graft) -> Iterator[M]:
    """Graft a model inside a `with` block, and restore the model bit for bit at the end of the block.

    Several grafts are applied as their union. Applying and restoring take milliseconds, so that one
    model can change skills with every request. Requests that need other skills must not run inside the
    block. Raises GraftError where a graft does not fit; the model is then unchanged.
    """
    if not grafts:
        yield model
        return
    graft = grafts[0] if len(grafts) == 1 else union(grafts)
    found = find_patches(graft, model)  # every check comes before the first write
    try:
        for target in found:
            target.write(graft.values[target.name])
        yield model
    finally:
        # Differs from the authors' code, which restores by p + (θ_pre − p): rounding may change bits there.
        for target in found:
            target.write(target.before)
