"""graft=attribution: the largest −g⊙Δ, what each parameter does to the loss to first order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from skillgraft.config.fields import between
from skillgraft.config.selector_options import GradientOptions
from skillgraft.experiments.gradient_batches import flat_model_and_losses

if TYPE_CHECKING:
    from torch import Tensor

    from skillgraft.experiments.selection import Selection


@dataclass
class Options(GradientOptions):
    """Where on the path g is taken, of which examples, and in how many rounds."""

    greedy_rounds: int | None = between(1, default=None)
    """Choose the region in so many rounds, each with the gradient at the graft so far; null:
    along the path."""


def select(selection: Selection) -> Tensor:
    """Return the indices of the largest −g⊙Δ, at once or in greedy rounds."""
    from skillgraft.core import gradient_scores, top_k

    options: Options = selection.options
    size, reserved = selection.size, selection.reserved
    with flat_model_and_losses(selection, options.batch_size, options.examples_per_step) as (
        flat,
        losses,
    ):
        if options.greedy_rounds is not None:
            return gradient_scores.greedy(flat, losses, size, options.greedy_rounds, reserved)
        worth = gradient_scores.attribution(flat, losses, options.path_points)
        return top_k.top_k(worth, size, reserved)
