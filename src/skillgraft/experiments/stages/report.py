"""Report: the figures of a run, and its region's overlap with other runs'."""

from __future__ import annotations

from typing import TYPE_CHECKING

from skillgraft.evaluation.compared import MODELS
from skillgraft.experiments.stages.evaluate import EvaluatedRun
from skillgraft.runtime.files import write_json
from skillgraft.store import metric_names
from skillgraft.store.names import GRAFT, OVERLAP, OVERLAP_MAP, RELIABILITY

if TYPE_CHECKING:
    from skillgraft.tracking.wandb_run import WandbRun


def report(evaluated: EvaluatedRun, tracker: WandbRun) -> None:
    """Draw the run's figures, compare its region with its peers', and log all of it."""
    from skillgraft.analysis import overlaps, plots, tables

    graft, loaded = evaluated.selected.graft, evaluated.selected.finetuned.loaded
    inputs, folder = loaded.inputs, loaded.inputs.folder
    tests = {model: evaluated.predictions[model]["test"] for model in MODELS}
    labels = loaded.evaluation_set.labels()["test"]
    task = inputs.cfg.task.name
    title = f"{task}, {inputs.identity.group}, seed {inputs.cfg.seed}"
    diagram = plots.save(
        plots.reliability_diagram(tests, labels, title), folder / "figures" / RELIABILITY
    )
    tracker.image("reliability", diagram)
    tracker.table("reliability_bins", tables.reliability_table(tests, labels))
    overlap, matrix = overlaps.overlaps_with_runs(graft, task, inputs.identity, inputs.store)
    write_json(folder / OVERLAP, overlap)
    if len(matrix) > 1:
        drawing = plots.heat_map(matrix, f"overlap (IoU), {inputs.identity.group}", "IoU")
        tracker.image("overlap_map", plots.save(drawing, folder / "figures" / OVERLAP_MAP))
    values = metric_names.measured(evaluated.metrics, overlap)
    tracker.point(values)
    tracker.summarize(values)
    tracker.graft(folder / GRAFT, graft.meta)
