"""graft=learned: a sigmoid mask trained by SGD, as in section 3.1 of the paper."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from omegaconf import MISSING

from skillgraft.config.selector_options import MaskTrainingOptions
from skillgraft.experiments import relaxed_selection

if TYPE_CHECKING:
    from torch import Tensor

    from skillgraft.experiments.selection import Selection

log = logging.getLogger(__name__)


@dataclass
class Options(MaskTrainingOptions):
    """The options of mask training, and the bias inside of the sigmoid."""

    sigmoid_bias: float = MISSING
    """The bias inside the sigmoid: the larger, the closer to the base region the mask starts."""


def select(selection: Selection) -> Tensor:
    """Return the indices of the best region of mask training."""
    from skillgraft.core import best_mask, relaxed_graft

    options: Options = selection.options
    log.info("mask training: %d steps", options.steps)
    base = relaxed_selection.base_region(selection)
    scores = best_mask.initial_scores(selection.graftable, selection.cfg.seed).to(selection.device)
    relaxed = relaxed_graft.RelaxedGraft(
        selection.classifier.graftable,
        selection.theta_finetuned,
        base,
        scores,
        options.sigmoid_bias,
        0.0,
    )
    return relaxed_selection.train(selection, relaxed)
