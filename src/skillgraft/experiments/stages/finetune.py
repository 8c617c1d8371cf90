"""Fine-tune: θ_ft, made here or taken from the store."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from skillgraft.experiments.stage_timer import StageTimer
from skillgraft.experiments.stages.load import LoadedRun
from skillgraft.runtime.files import read_json, write_json
from skillgraft.store import checksums
from skillgraft.store.names import HISTORY, MADE, SHARED, WEIGHTS
from skillgraft.training.names import BEST, RESUME

if TYPE_CHECKING:
    from skillgraft.tracking.wandb_run import WandbRun

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FineTunedRun:
    """A run whose fine-tuned weights, and the predictions with them, are complete in `folder`."""

    loaded: LoadedRun
    folder: Path
    weights: str  # MADE by this run, or SHARED with an earlier one


def finetune(loaded: LoadedRun, tracker: WandbRun, timer: StageTimer) -> FineTunedRun:
    """Make the run's fine-tuned weights, or find them, and log their curves."""
    inputs = loaded.inputs
    name = inputs.identity.finetuned
    folder = inputs.store.finetuned(name)
    with inputs.store.lock(f"finetuned-{name}"):
        if checksums.is_complete(folder):
            log.info("fine-tuned weights: taken from the store (%s)", name)
            for row in read_json(folder / HISTORY):
                tracker.log(row)
            return FineTunedRun(loaded, folder, SHARED)
        log.info("fine-tuning: %d steps", inputs.cfg.finetune.steps)
        with timer.timed("finetune"):
            make_finetuned(loaded, folder, tracker)
        return FineTunedRun(loaded, folder, MADE)


def make_finetuned(loaded: LoadedRun, complete: Path, tracker: WandbRun) -> None:
    """Fine-tune, evaluate θ_ft and θ_pre on every split, and publish both for all runs to share."""
    from skillgraft.training import fine_tuning
    from skillgraft.training.checkpoints import write_tensors

    inputs, classifier = loaded.inputs, loaded.classifier
    folder = inputs.store.partial(f"finetuned-{inputs.identity.finetuned}")
    done = fine_tuning.finetune(
        classifier,
        inputs.cfg,
        loaded.training_tasks(),
        loaded.pad,
        folder,
        tracker.log,
        bars=inputs.bars,
    )
    write_tensors(folder / WEIGHTS, classifier.trained(), {})
    after = loaded.predict_all_tasks()
    loaded.reset()
    before = loaded.predict_all_tasks()
    for name, examples in loaded.evaluation_sets.items():
        predictions = {"pretrained": before[name], "finetuned": after[name]}
        examples.write(predictions, folder / f"predictions{loaded.suffix(name)}.parquet")
    write_json(folder / HISTORY, done.history)
    for scratch in (RESUME, BEST):
        (folder / scratch).unlink(missing_ok=True)
    inputs.store.publish(folder, complete, {"best_step": done.best_step})
