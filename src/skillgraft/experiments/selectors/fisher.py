"""graft=fisher: the largest g²⊙Δ², summed over points of the path θ_pre → θ_ft."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from skillgraft.config.fields import between
from skillgraft.config.selector_options import SelectorOptions
from skillgraft.experiments.gradient_batches import flat_model_and_losses

if TYPE_CHECKING:
    from torch import Tensor

    from skillgraft.experiments.selection import Selection


@dataclass
class Options(SelectorOptions):
    """Where on the path g is taken, and of which examples."""

    path_points: int = between(1)
    """Points of the straight path θ_pre → θ_ft at which gradients are taken."""
    per_example: bool | None = None
    """Square the gradient of each example rather than that of a batch; eight times the cost."""
    batch_size: int = between(1)
    """Training examples in one gradient."""
    examples_per_step: int = between(1)
    """Training examples per step of mask training, or per pass of a gradient selector."""


def select(selection: Selection) -> Tensor:
    """Return the indices of the largest g²⊙Δ²."""
    from skillgraft.core import gradient_scores, top_k

    options: Options = selection.options
    size = 1 if options.per_example else options.batch_size
    with flat_model_and_losses(selection, size, options.examples_per_step) as (flat, losses):
        worth = gradient_scores.fisher(flat, losses, options.path_points)
        return top_k.top_k(worth, selection.size, selection.reserved)
