"""graft=fisher: the largest g²⊙Δ², summed over points of the path θ_pre → θ_ft."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from skillgraft.config.selector_options import GradientOptions
from skillgraft.experiments.gradient_batches import flat_model_and_losses

if TYPE_CHECKING:
    from torch import Tensor

    from skillgraft.experiments.selection import Selection


@dataclass
class Options(GradientOptions):
    """Where on the path g is taken, and of which examples."""

    per_example: bool | None = None
    """Square the gradient of each example rather than that of a batch; eight times the cost."""


def select(selection: Selection) -> Tensor:
    """Return the indices of the largest g²⊙Δ²."""
    from skillgraft.core import gradient_scores, top_k

    options: Options = selection.options
    size = 1 if options.per_example else options.batch_size
    with flat_model_and_losses(selection, size, options.examples_per_step) as (flat, losses):
        worth = gradient_scores.fisher(flat, losses, options.path_points)
        return top_k.top_k(worth, selection.size, selection.reserved)
