"""Models compiled by torch."""

from __future__ import annotations

import torch

from skillgraft.models.classifier import Classifier
from skillgraft.runtime.errors import InputError, reason
from skillgraft.tasks.batches import Batch, to_device


def compiled(classifier: Classifier, batch: Batch) -> None:
    """Compile the base model in place, for batches of any size, and run it once.

    Raises InputError where torch cannot compile here.
    """
    # what earlier jobs of this process have compiled counts against its limit, past which the rest
    # would quietly run as written: a job of train and evaluation, with and without gradients, needs six
    torch.compiler.reset()
    torch.compiler.config.recompile_limit = 64
    torch.compiler.config.fail_on_recompile_limit_hit = True
    # dropout as without: the compiler's own would draw other entries
    classifier.model.base_model.compile(dynamic=True, options={"fallback_random": True})
    device = next(classifier.parameters()).device
    try:
        with torch.no_grad():
            classifier(to_device(batch, device))
    except Exception as error:  # of dynamo, of its backend, or of a compiler: no common class
        raise InputError(
            f"trainer.compile=true: torch cannot compile here ({reason(error)})"
        ) from error
