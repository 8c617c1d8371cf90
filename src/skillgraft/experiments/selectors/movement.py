"""graft=movement: the parameters that fine-tuning moved most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from skillgraft.config.selector_options import SelectorOptions

if TYPE_CHECKING:
    from torch import Tensor

    from skillgraft.experiments.selection import Selection


@dataclass
class Options(SelectorOptions):
    """Nothing beside the size."""


def select(selection: Selection) -> Tensor:
    """Return the indices of the largest |θ_ft − θ_pre|."""
    from skillgraft.core import movement

    return movement.base_region(
        selection.theta_finetuned, selection.theta_pre, selection.size, selection.reserved
    )
