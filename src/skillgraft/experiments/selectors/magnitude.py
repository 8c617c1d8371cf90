"""graft=magnitude: the parameters that are largest after fine-tuning."""

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
    """Return the indices of the largest |θ_ft|."""
    from skillgraft.core import gradient_scores, top_k

    magnitude = gradient_scores.magnitude(selection.theta_finetuned)
    return top_k.top_k(magnitude, selection.size, selection.reserved)
