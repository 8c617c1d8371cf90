"""The stages of a run, one after another."""

from __future__ import annotations

from collections.abc import Callable

from skillgraft.experiments import provenance
from skillgraft.experiments.devices import on_device
from skillgraft.experiments.stage_timer import StageTimer
from skillgraft.experiments.stages import evaluate, finetune, load, publish, report, select
from skillgraft.experiments.stages.inputs import RunInputs


def make_run(inputs: RunInputs, tell: Callable[..., None]) -> None:
    """Make a run in its partial folder and publish it.

    `tell` is told whether the fine-tuned weights were made.
    """
    provenance.code()  # what is imported, not what the checkout holds when the run ends
    timer = StageTimer(inputs.folder)
    with timer.timed("imports"):
        from skillgraft.tracking import wandb_run
    with on_device(inputs.cfg, inputs.context.number) as device:
        provenance.forget_peaks(inputs.cfg.trainer.accelerator)
        with timer.timed("load"):
            loaded = load.load(inputs, device)
        with wandb_run.tracking(inputs.cfg, inputs.identity, inputs.folder) as tracker:
            finetuned = finetune.finetune(loaded, tracker, timer)
            tell(finetuned=finetuned.weights)
            with timer.timed("graft"):
                selected = select.select(finetuned, tracker)
            with timer.timed("evaluate"):
                evaluated = evaluate.evaluate(selected)
            with timer.timed("report"):
                report.report(evaluated, tracker)
        publish.publish(evaluated, timer)
