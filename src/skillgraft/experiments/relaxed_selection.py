"""Regions that training a relaxed mask finds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from skillgraft.runtime.files import write_json
from skillgraft.store.names import HISTORY
from skillgraft.training.names import MASK

if TYPE_CHECKING:
    from torch import Tensor

    from skillgraft.core.relaxed_graft import RelaxedGraft
    from skillgraft.experiments.selection import Selection


def train(selection: Selection, relaxed: RelaxedGraft) -> Tensor:
    """Train a relaxed graft's scores; return the best region's indices. Keeps the curves' rows."""
    from skillgraft.training import mask_training

    try:
        chosen, history = mask_training.learn_mask(
            selection.classifier,
            relaxed,
            selection.cfg,
            selection.train,
            selection.validation,
            selection.pad,
            selection.folder,
            selection.log,
            selection.bars,
        )
    finally:
        relaxed.close()
    write_json(selection.folder / HISTORY, history)
    (selection.folder / MASK).unlink(missing_ok=True)
    return chosen


def base_region(selection: Selection) -> Tensor:
    """Return the region that mask training starts from: the parameters that moved most."""
    from skillgraft.core import movement

    return movement.base_region(
        selection.theta_finetuned, selection.theta_pre, selection.size, selection.reserved
    ).to(selection.device)
