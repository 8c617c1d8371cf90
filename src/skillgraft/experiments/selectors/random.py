"""graft=random: parameters drawn uniformly."""

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
    """Return indices drawn uniformly from the mask's seed."""
    from skillgraft.core import regions

    seed = selection.seed("random")
    return regions.at_random(selection.graftable, selection.size, seed, selection.reserved)
