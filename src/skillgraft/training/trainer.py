"""Make Lightning's trainer, and run its loop until the end or a signal."""

from __future__ import annotations

import logging
import signal
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.utilities.exceptions import SIGTERMException

from skillgraft.config.schema import RunConfig
from skillgraft.runtime import shared_machine, signals
from skillgraft.training import distributed
from skillgraft.training.resumable import Resumable

log = logging.getLogger(__name__)


def make_trainer(
    cfg: RunConfig,
    steps: int,
    folder: Path,
    sharded: bool = False,
    bars: bool = False,
    **more: Any,
) -> pl.Trainer:
    """Return a Lightning Trainer that runs `steps` batches and writes no files of its own.

    Args:
        cfg: the resolved configuration.
        steps: the number of batches.
        folder: where Lightning would write.
        sharded: whether each device holds a shard of the model instead of a whole one.
        bars: whether progress bars are shown.
        more: further arguments of Lightning's Trainer.
        bars: whether progress bars are shown.
    """
    return pl.Trainer(
        accelerator=cfg.trainer.accelerator,
        devices=[*shared_machine.acquired] or cfg.trainer.devices,
        strategy=distributed.strategy(cfg.trainer, sharded),
        precision=cfg.trainer.precision,  # type: ignore[arg-type]
        max_epochs=1,
        limit_train_batches=steps,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=bars,
        callbacks=[TQDMProgressBar(leave=True)] if bars else [],
        num_sanity_val_steps=0,
        # Under SLURM, Lightning would otherwise expect one SLURM task per rank.
        plugins=[LightningEnvironment()],
        **more,
    )


def fit(trainer: pl.Trainer, module: Resumable) -> None:
    """Train a module with Lightning until its last step or a signal.

    Raises Interrupted after a signal, at the end of the present step and with a checkpoint. Several
    ranks end after the same step.
    """
    if module.batches.start:
        log.info("going on from step %d", module.batches.start)
    with warnings.catch_warnings():
        distributed.ignore_warnings()
        device = next(module.parameters()).device
        if trainer.strategy.launcher is not None:
            sharded = isinstance(trainer.strategy, distributed.ShardedStrategy)
            if sharded:
                module.to("cpu")  # the ranks need the GPU's memory
            if device.type == "cuda":
                torch.cuda.empty_cache()  # frees memory that torch keeps reserved
            with distributed.started(module, module.sent), signals.between_steps(module.end.touch):
                trainer.fit(module)
            if sharded:
                module.to(device)
            module.resume()
        else:
            try:
                with signals.between_steps():
                    trainer.fit(module)
            except SIGTERMException:  # Lightning stopped between two batches, without an exit code
                module.save()
                raise signals.Interrupted(
                    signals.asked[0] if signals.asked else signal.SIGTERM
                ) from None
            module.to(device)  # Lightning leaves the module on the CPU
        if signals.asked:  # with several ranks, or a signal after Lightning's last check
            raise signals.Interrupted(signals.asked[0])
