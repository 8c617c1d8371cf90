"""A Lightning module that can resume after any batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor, nn

from skillgraft.models.classifier import Classifier
from skillgraft.runtime import signals
from skillgraft.tasks.batches import Batch, to_device
from skillgraft.training import distributed

Log = Callable[[dict[str, Any]], None]


def log_nothing(row: Mapping[str, Any]) -> None:
    """Log nothing."""


class Resumable(pl.LightningModule):
    """A Lightning module that can write what a resumed run needs, after any batch.

    On several ranks all do the same but for their shares of the batches, rank 0 alone writes, and the
    process that started them takes up what it has written.
    """

    classifier: Classifier
    folder: Path
    note: Log
    batches: Any  # of the steps from `start` on
    losses: list[Tensor]  # of the batches since the last row of the history

    @property
    def launched(self) -> bool:
        """Whether the training is done by ranks, processes that are started for it."""
        return self.trainer.strategy.launcher is not None

    @property
    def sent(self) -> Path:
        """The file through which ranks receive the module."""
        return self.folder / distributed.FOLDER / "module.pt"

    @property
    def end(self) -> Path:
        """The file whose being there tells ranks to stop."""
        return self.sent.with_name("end")

    def __reduce__(self) -> Any:
        """Be a file to another process: by multiprocessing's own way ranks would share memory."""
        return distributed.receive, (self.sent,)

    def __getstate__(self) -> dict[str, Any]:
        """Return what ranks are to have: the log is with the process that started them."""
        return {**super().__getstate__(), "note": log_nothing}

    def state_dict(self, *_args: Any, **_more: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return nothing: what Lightning would carry back from a rank, `save` has written."""
        return {}

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Return the batch on the device, as batches without gradients get there."""
        return to_device(batch, device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean cross-entropy over the class logits, weighted by the rank's share."""
        loss = nn.functional.cross_entropy(self.classifier(batch), batch["labels"])
        if "weight" in batch:
            loss = loss * batch["weight"]
        # for the log, the mean over ranks
        self.losses.append(self.trainer.strategy.reduce(loss.detach().clone(), reduce_op="mean"))
        return loss

    def resume(self) -> None:
        """Take up what `save` wrote, and pass on what is new in its history."""
        raise NotImplementedError

    def save(self) -> None:
        """Write it, whole or not at all."""
        raise NotImplementedError

    def on_train_start(self) -> None:
        """End at once where a signal came before Lightning listened; in a rank, let it not listen."""
        if signals.asked:
            raise SIGTERMException
        if self.launched:  # the run itself has the signals
            distributed.ignore_signals()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> int | None:
        """End the training, with a checkpoint, where ranks were told to: all before the same batch."""
        if not self.launched:
            return None
        told = self.end.exists() if self.global_rank == 0 else False
        if not self.trainer.strategy.reduce_boolean_decision(told, all=False):
            return None
        self.save()
        return -1  # to Lightning: no further batch
