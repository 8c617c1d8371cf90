"""The base of the two Lightning modules: a training that can stop and resume after any batch."""

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
    """A Lightning module that can write a checkpoint after any batch, and resume from the checkpoint.

    With several ranks, each rank trains on its part of the batches, only rank 0 writes checkpoints, and
    the process that started the ranks loads the last checkpoint.
    """

    classifier: Classifier
    folder: Path
    note: Log
    batches: Any  # of the steps from `start` on
    losses: list[Tensor]  # of the batches since the last entry of the history

    @property
    def launched(self) -> bool:
        """Whether the training runs in ranks, processes that are started for the training."""
        return self.trainer.strategy.launcher is not None

    @property
    def sent(self) -> Path:
        """The file from which ranks receive the module."""
        return self.folder / distributed.FOLDER / "module.pt"

    @property
    def end(self) -> Path:
        """The file whose existence tells ranks to stop."""
        return self.sent.with_name("end")

    def __reduce__(self) -> Any:
        """Pickle the module as a path to a file, because multiprocessing would make ranks share memory."""
        return distributed.receive, (self.sent,)

    def __getstate__(self) -> dict[str, Any]:
        """Return the module's state for ranks, without the log, which only the starting process writes."""
        return {**super().__getstate__(), "note": log_nothing}

    def state_dict(self, *_args: Any, **_more: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return nothing for Lightning to send back from rank 0, because `save` writes all results."""
        return {}

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Return the batch on a device, copied as in evaluation."""
        return to_device(batch, device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean cross-entropy over the class logits, times the weight of the rank's part."""
        loss = nn.functional.cross_entropy(self.classifier(batch), batch["labels"])
        if "weight" in batch:
            loss = loss * batch["weight"]
        # the log shows the mean over ranks
        self.losses.append(self.trainer.strategy.reduce(loss.detach().clone(), reduce_op="mean"))
        return loss

    def resume(self) -> None:
        """Load the checkpoint that `save` wrote, and log the new part of its history."""
        raise NotImplementedError

    def save(self) -> None:
        """Write a checkpoint, complete or not at all."""
        raise NotImplementedError

    def on_train_start(self) -> None:
        """End at once where a signal came before Lightning handles signals, and ignore signals in a rank."""
        if signals.asked:
            raise SIGTERMException
        # Lightning has just set handlers in the rank, but the run's own process handles signals
        if self.launched:
            distributed.ignore_signals()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> int | None:
        """End the training of all ranks before the same batch, with a checkpoint, where `end` exists."""
        if not self.launched:
            return None
        told = self.end.exists() if self.global_rank == 0 else False
        if not self.trainer.strategy.reduce_boolean_decision(told, all=False):
            return None
        self.save()
        return -1  # tells Lightning to skip the rest of the epoch
