"""Regions that are a part of the model: its biases, a layer, or one kind of module."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from skillgraft.config.nearest import nearest
from skillgraft.runtime.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from skillgraft.experiments.selection import Selection


def check_part(names: Iterable[str], kind: str, part: str | None) -> None:
    """Raise InputError where a model's parameters have no such part of a kind (`core.modules`)."""
    from skillgraft.core import modules

    known = modules.part_names(names, kind)
    if part not in known:
        hint = nearest(part or "", known)
        raise InputError(f"graft.{kind}={part}: this model has {', '.join(known)}.{hint}")


def all_of_part(selection: Selection, kind: str, part: str | None) -> Tensor:
    """Return the indices of every parameter of a part."""
    from skillgraft.core import modules

    of = modules.PART_OF[kind]
    return modules.all_of(selection.theta_finetuned, lambda name: of(name) == part)
