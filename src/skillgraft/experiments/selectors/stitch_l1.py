"""graft=stitch_l1: Localize-and-Stitch (He et al., TMLR 2025), a mask with an L1 penalty."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from skillgraft.config.fields import between
from skillgraft.config.selector_options import MaskTrainingOptions
from skillgraft.experiments import relaxed_selection

if TYPE_CHECKING:
    from torch import Tensor

    from skillgraft.experiments.selection import Selection

log = logging.getLogger(__name__)


@dataclass
class Options(MaskTrainingOptions):
    """The options of mask training, |M| at the start, and the strength of the penalty."""

    init_score: float = between(0)
    """Absolute value of the mask's scores at the start: positive inside the base region,
    negative outside."""
    l1_penalty: float = between(0)
    """λ, the strength of the ℓ1 term on the mask."""


def select(selection: Selection) -> Tensor:
    """Return the indices of the region at the end of mask training, or of the best that was scored."""
    import torch

    from skillgraft.core import relaxed_graft

    options: Options = selection.options
    log.info("mask training: %d steps", options.steps)
    base = relaxed_selection.base_region(selection)
    # γ = σ(M): no region to flip, ±start instead
    scores = torch.full((selection.graftable,), -options.init_score, device=selection.device)
    scores[base] = options.init_score
    relaxed = relaxed_graft.RelaxedGraft(
        selection.classifier.graftable,
        selection.theta_finetuned,
        base[:0],
        scores,
        0.0,
        options.l1_penalty,
    )
    return relaxed_selection.train(selection, relaxed)
