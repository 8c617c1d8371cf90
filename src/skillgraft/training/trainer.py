"""Lightning's trainer as this project uses it."""

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
    """Return a Lightning Trainer that runs `steps` batches and writes nothing by itself.

    `bars` shows a progress bar.
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
        # one process, whatever cluster it is on: Lightning would otherwise look for SLURM's tasks
        plugins=[LightningEnvironment()],
        **more,
    )


def fit(trainer: pl.Trainer, module: Resumable) -> None:
    """Run Lightning's loop, without the warnings that are about its own choices.

    Raises Interrupted where a signal has asked for it: after the step and with a checkpoint, and on
    several ranks after the same step.
    """
    if module.batches.start:
        log.info("going on from step %d", module.batches.start)
    with warnings.catch_warnings():
        distributed.ignore_warnings()
        device = next(module.parameters()).device
        if trainer.strategy.launcher is not None:
            sharded = isinstance(trainer.strategy, distributed.ShardedStrategy)
            if sharded:
                module.to("cpu")  # the GPU is the ranks'
            if device.type == "cuda":
                torch.cuda.empty_cache()  # what torch keeps of it
            with distributed.started(module, module.sent), signals.between_steps(module.end.touch):
                trainer.fit(module)
            if sharded:
                module.to(device)
            module.resume()
        else:
            try:
                with signals.between_steps():
                    trainer.fit(module)
            except SIGTERMException:  # between two batches; without a code, as if all were well
                module.save()
                raise signals.Interrupted(
                    signals.asked[0] if signals.asked else signal.SIGTERM
                ) from None
            module.to(device)  # Lightning leaves the module on the CPU
        if signals.asked:  # with several ranks, or after Lightning's last look
            raise signals.Interrupted(signals.asked[0])
