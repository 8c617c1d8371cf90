"""The losses whose gradients the selectors read that train nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from skillgraft.core.flat_model import FlatModel
    from skillgraft.experiments.selection import Selection


@contextmanager
def flat_model_and_losses(
    selection: Selection, batch_size: int, examples: int
) -> Iterator[tuple[FlatModel, Callable[[], Iterable[Tensor]]]]:
    """Yield the classifier with flat parameters, and the losses of one pass over training examples.

    `batch_size` is the number of examples of each loss, `examples` that of the pass.
    """
    from skillgraft.core import flat_model
    from skillgraft.training import mask_batches
    from skillgraft.training.losses import batch_losses

    batches = mask_batches.MaskBatches(
        selection.train, selection.pad, batch_size, examples, selection.cfg.seed, 0, 1
    )
    flat = flat_model.FlatModel(selection.classifier.graftable, selection.theta_finetuned)

    def losses() -> Iterable[Tensor]:
        return batch_losses(selection.classifier, batches, flat.theta.device)

    try:
        yield flat, losses
    finally:
        flat.close()
