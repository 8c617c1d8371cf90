"""The losses of batches, for selectors that rank parameters by their gradient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from skillgraft.tasks.batches import to_device


def batch_losses(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], device: torch.device
) -> Iterable[Tensor]:
    """Yield the mean cross-entropy of each batch over the class logits, a scalar in nats."""
    for batch in batches:
        here = to_device(batch, device)
        yield nn.functional.cross_entropy(model(here), here["labels"])
