"""W&B workspaces and reports as code: what to show of a project's runs, by the names that they log."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from skillgraft.evaluation.compared import MODELS
from skillgraft.runtime.errors import InputError
from skillgraft.store import index
from skillgraft.store.folders import Store
from skillgraft.tracking import wandb_names
from skillgraft.tracking.wandb_run import OVER_SIZE, SIZE

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import Report
    from wandb_workspaces.workspaces import Workspace

SELECTOR = "graft.selector"
# What tells runs apart, as their W&B configuration has it, and the label of its axis.
AXES = {"task.name": "task", "model.name": "model", SELECTOR: "selector", "sparsity": "sparsity",
        "seed": "seed"}  # fmt: skip
RUNS, SWEEPS = "JobType = 'run'", "JobType = 'sweep'"


def library() -> tuple[Any, Any]:
    """Return the two halves of wandb-workspaces: reports, which has the panels, and workspaces."""
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "wandb_workspaces":
            raise
        raise InputError('grafts dashboard needs: pip install "skillgraft[dashboard]"') from error
    return reports, workspaces


@dataclass(frozen=True)
class Part:
    """A section of the workspace and, with the same panels, a report of its own."""

    title: str
    text: str
    panels: Callable[[Any, Collection[str]], list[Any]]
    of: str = RUNS


def sparsity(wr: Any, names: Collection[str]) -> list[Any]:
    """Return score and ECE of the graft over its measured size, and over the requested sparsity."""
    score, ece = OVER_SIZE
    by_size = [
        wr.LinePlot(
            title=f"{title} by selector, over the region's size",
            x=SIZE,
            y=[name],
            log_x=True,
            title_x="parameters",
            groupby=wr.Config(SELECTOR),
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
            max_runs_to_show=1000,
        )
        for name, title in ((score, "graft: score"), (ece, "graft: ECE"))
    ]
    return by_size + [
        wr.ScatterPlot(
            title=f"graft: score over {title}, all runs and their running mean",
            x=x,
            y=wr.SummaryMetric(score),
            log_x=True,
            running_ymean=True,
        )
        for x, title in (
            (wr.Config("sparsity"), "requested sparsity"),
            (wr.SummaryMetric("region/sparsity"), "fraction of parameters kept"),
        )
    ]


def calibration(wr: Any, names: Collection[str]) -> list[Any]:
    """Return ECE against accuracy of each model, ECEs side by side, and the reliability diagrams."""
    scatters = [
        wr.ScatterPlot(
            title=f"{title}: ECE against accuracy",
            x=wr.SummaryMetric(f"{model}/test/accuracy"),
            y=wr.SummaryMetric(f"{model}/test/ece"),
        )
        for model, title in MODELS.items()
    ]
    return [
        *scatters,
        bars(wr, "ECE by selector", [f"{model}/test/ece" for model in MODELS]),
        wr.MediaBrowser(title="reliability diagrams", media_keys=["reliability"]),
    ]


def compared(wr: Any, names: Collection[str]) -> list[Any]:
    """Return parallel coordinates over what tells runs apart, the region's size and the score."""
    columns = [
        wr.ParallelCoordinatesPlotColumn(
            wr.Config(key), display_name=label, log=True if key == "sparsity" else None
        )
        for key, label in AXES.items()
    ]
    columns += [
        wr.ParallelCoordinatesPlotColumn(
            wr.SummaryMetric(SIZE), display_name="parameters", log=True
        ),
        wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(OVER_SIZE[0]), display_name="score"),
        wr.ParallelCoordinatesPlotColumn(
            wr.SummaryMetric("graft/test/agreement"), display_name="agreement"
        ),
    ]
    return [wr.ParallelCoordinatesPlot(title="runs", columns=columns)]


def overlap(wr: Any, names: Collection[str]) -> list[Any]:
    """Return the overlap maps, the number of regions compared, and the IoU with each task's region."""
    panels = [
        wr.MediaBrowser(title="overlap of regions (IoU)", media_keys=["overlap_map"]),
        wr.ScalarChart(
            title="regions that a region was compared with, at most",
            metric=wr.SummaryMetric("overlap/n_compared"),
            groupby_aggfunc="max",
        ),
    ]
    for task in matching(r"overlap/([^/]+)/iou", names):
        shown = [f"overlap/{task}/{name}" for name in ("iou", "chance")]
        panels.append(bars(wr, f"overlap with {task}", shown))
    return panels


def ood(wr: Any, names: Collection[str]) -> list[Any]:
    """Return the score of the fine-tuned model and the graft on each shifted test set."""
    return [
        bars(
            wr,
            f"score on {shift}",
            [f"{model}/ood/{shift}/score" for model in MODELS],
        )
        for shift in matching(r"graft/ood/([^/]+)/score", names)
    ]


def curves(wr: Any, names: Collection[str]) -> list[Any]:
    """Return the curves of fine-tuning and of mask training."""
    return [
        wr.LinePlot(title=title, x=x, y=[y])
        for title, x, y in (
            ("fine-tuning: loss", "finetune/step", "finetune/loss"),
            ("mask training: loss", "mask/step", "mask/loss"),
            ("mask training: score of the rounded graft", "mask/step", "mask/objective"),
            ("mask training: size of the rounded graft", "mask/step", "mask/size"),
        )
    ]


def sweeps(wr: Any, names: Collection[str]) -> list[Any]:
    """Return a sweep's figure, tables and mean overlaps; figure and `claim` where it has a claim."""
    return [
        wr.MediaBrowser(title="the claim's figure", media_keys=["figure"]),
        *(wr.WeavePanelSummaryTable(table_name=name) for name in ("claim", "over_seeds", "runs")),
        wr.MediaBrowser(title="overlap of regions, mean of runs", media_keys=["overlap_map"]),
    ]


def bars(wr: Any, title: str, metrics: list[str]) -> Any:
    """Return bars of some metrics, the mean of the runs of a selector, with their deviation."""
    return wr.BarPlot(
        title=title,
        metrics=[wr.SummaryMetric(name) for name in metrics],
        groupby=wr.Config(SELECTOR),
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
        max_runs_to_show=1000,
    )


def names_of(store: Store) -> set[str]:
    """Return the names of all that the runs of a store measured."""
    return {name for _, row in index.rows(store.root) for name in json.loads(row)}


def matching(pattern: str, names: Collection[str]) -> list[str]:
    """Return what the group of a pattern is in the names that it matches, sorted."""
    return sorted({found.group(1) for name in names if (found := re.fullmatch(pattern, name))})


PARTS = (
    Part(
        "sparsity curve",
        "What a graft is worth by its size. The size is that of the region as it came out; "
        "sparsity is the fraction of the graftable parameters that it keeps.",
        sparsity,
    ),
    Part(
        "calibration",
        "Expected calibration error (15 bins) on the test examples, against accuracy.",
        calibration,
    ),
    Part("runs compared", "Task, model, selector, sparsity, seed, and what came of it.", compared),
    Part(
        "overlap",
        "Intersection over union of the regions of runs that differ in the task only, "
        "beside that of random regions of the same sizes.",
        overlap,
    ),
    Part("out of distribution", "The task's own metric on shifted test sets.", ood),
    Part("training curves", "Fine-tuning and mask training by step.", curves),
    Part(
        "sweeps",
        "Each sweep's own W&B run: the figure and table of its claim, means over seeds, and its runs.",
        sweeps,
        SWEEPS,
    ),
)


def workspace(project: str, entity: str, names: Collection[str]) -> Workspace:
    """Return the workspace: one section per part, over a project's runs; sweeps have their own report."""
    wr, ws = library()
    return ws.Workspace(
        entity=entity,
        project=project,
        name="skillgraft",
        sections=[
            ws.Section(name=part.title, panels=panels, is_open=True)
            for part in PARTS
            if part.of == RUNS and (panels := part.panels(wr, names))
        ],
        settings=ws.WorkspaceSettings(max_runs=1000),
        runset_settings=ws.RunsetSettings(filters=RUNS),
    )


def reports(project: str, entity: str, names: Collection[str]) -> list[Report]:
    """Return one report per part, but none that would be empty for these names."""
    wr, _ = library()
    return [
        wr.Report(
            project=project,
            entity=entity,
            title=f"skillgraft: {part.title}",
            description=part.text,
            width="fluid",
            blocks=[
                wr.P(part.text),
                # without entity and project a run set is of the report's own project
                wr.PanelGrid(runsets=[wr.Runset(name=part.title, filters=part.of)], panels=panels),
            ],
        )
        for part in PARTS
        if (panels := part.panels(wr, names))
    ]


def specification(project: str, entity: str, names: Collection[str]) -> dict[str, Any]:
    """Return workspace and reports as W&B would be sent them, without ids, which are random."""
    shown: list[Any] = [workspace(project, entity, names), *reports(project, entity, names)]
    first, *rest = [
        plain(wandb_names.model(view).model_dump(mode="json", by_alias=True, exclude_none=True))
        for view in shown
    ]
    return {"workspace": first, "reports": rest}


def plain(value: Any) -> Any:
    """Return nested JSON without ids."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items() if k not in ("id", "__id__")}
    return [plain(v) for v in value] if isinstance(value, list) else value


def send(project: str, entity: str | None, names: Collection[str]) -> list[str]:
    """Send workspace and reports to W&B, as new ones, and return their addresses."""
    library()
    import wandb

    try:
        owner = entity or wandb.Api().default_entity
        if owner is None:
            raise InputError("--entity: this W&B account has none of its own; give one")
        shown: list[Any] = [workspace(project, owner, names), *reports(project, owner, names)]
        return [view.save().url for view in shown]
    except (wandb.errors.Error, ValueError) as error:
        raise InputError(f"--send: W&B: {error}") from error
