"""A model with grafts inside a `with` block."""

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
    """Graft a model inside a `with` block, with the union of several grafts, and undo it exactly at its end.

    It takes milliseconds, so that one model can change skills with every request; requests that want
    other skills must not run inside the block. Raises GraftError, with nothing written.
    """
    if not grafts:
        yield model
        return
    graft = grafts[0] if len(grafts) == 1 else union(grafts)
    found = find_patches(graft, model)
    try:
        for target in found:
            target.write(graft.values[target.name])
        yield model
    finally:
        for target in found:
            target.write(target.before)
