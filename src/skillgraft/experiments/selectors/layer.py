"""graft=layer: one transformer block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from omegaconf import MISSING

from skillgraft.config.selector_options import SelectorOptions
from skillgraft.experiments import part_of_model

if TYPE_CHECKING:
    from torch import Tensor

    from skillgraft.experiments.selection import Selection


@dataclass
class Options(SelectorOptions):
    """The layer that is the region."""

    reads_sparsity: ClassVar[bool] = False
    named_by: ClassVar[str | None] = "layer"

    layer: str = MISSING
    """The number of the transformer block, counted from 0."""


def check(options: Options, theta_base: Mapping[str, Tensor]) -> None:
    """Raise InputError where the model has no such part."""
    part_of_model.check_part(theta_base, "layer", options.layer)


def select(selection: Selection) -> Tensor:
    """Return the indices of one transformer block."""
    options: Options = selection.options
    return part_of_model.all_of_part(selection, "layer", options.layer)
