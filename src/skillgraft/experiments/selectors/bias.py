"""graft=bias: every bias of the graftable blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from skillgraft.config.selector_options import SelectorOptions
from skillgraft.experiments import part_of_model

if TYPE_CHECKING:
    from torch import Tensor

    from skillgraft.experiments.selection import Selection


@dataclass
class Options(SelectorOptions):
    """Nothing: the model has its biases."""

    reads_sparsity: ClassVar[bool] = False


def check(_: Options, theta_base: Mapping[str, Tensor]) -> None:
    """Raise InputError where the model has no bias."""
    part_of_model.check_part(theta_base, "bias", "bias")


def select(selection: Selection) -> Tensor:
    """Return the indices of every bias of the graftable blocks."""
    return part_of_model.all_of_part(selection, "bias", "bias")
