"""Compile a model with torch.compile."""

from __future__ import annotations

import torch

from skillgraft.models.classifier import Classifier
from skillgraft.runtime.errors import InputError, reason
from skillgraft.tasks.batches import Batch, to_device


def compiled(classifier: Classifier, batch: Batch) -> None:
    """Compile a classifier's base model in place, for batches of any size, and run the model once.

    The run brings errors of the compiler to light before training. Raises InputError where torch cannot
    compile on this machine.
    """
    # Models that earlier jobs of this process compiled count against the limit of recompilations, past
    # which torch would run the model uncompiled without an error. One job needs six compilations: for
    # training and evaluation, with and without gradients.
    torch.compiler.reset()
    torch.compiler.config.recompile_limit = 64
    torch.compiler.config.fail_on_recompile_limit_hit = True
    # fallback_random: dropout draws the same elements as without the compiler
    classifier.model.base_model.compile(dynamic=True, options={"fallback_random": True})
    device = next(classifier.parameters()).device
    try:
        with torch.no_grad():
            classifier(to_device(batch, device))
    except Exception as error:  # dynamo, its backends and C++ compilers share no class of errors
        raise InputError(
            f"trainer.compile=true: torch cannot compile here ({reason(error)})"
        ) from error
