"""What a sweep shows at its end."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skillgraft.config import choices
from skillgraft.runtime import leases
from skillgraft.runtime.errors import InputError
from skillgraft.store import folders, job_state, metric_names
from skillgraft.store.names import FIGURE, OVERLAP_MAP

if TYPE_CHECKING:
    import pandas as pd

    from skillgraft.analysis.claims.statements import ClaimResult

log = logging.getLogger(__name__)


def report(folder: Path, record: Mapping[str, Any]) -> None:
    """Judge and show a sweep's claim, and log the sweep: what of it there is to be done."""
    from skillgraft.analysis import collect
    from skillgraft.analysis.claims.judging import conclude

    claimed = record["claim"]["name"] is not None
    logged = record["logger"]["mode"] != choices.Mode.none
    if not record["runs"] or not (claimed or logged):
        return
    rows, outcome = collect.collect(folders.Store(folder.parents[1]), record["runs"]), None
    if claimed:
        try:
            outcome = conclude(folder, record, rows)
            show(record["name"], outcome)
        except InputError as error:
            log.warning("%s: no verdict: %s", record["name"], error)
    if not logged or rows.empty:
        return
    try:
        summarize(folder, record, rows, outcome)
    except InputError as error:  # W&B refuses: the runs have their records all the same
        log.warning("%s: no summary on W&B: %s", record["name"], error)


def summarize(
    folder: Path, record: Mapping[str, Any], rows: pd.DataFrame, outcome: ClaimResult | None
) -> None:
    """Log the sweep as one W&B run: all its runs, their means over seeds, overlaps, figure and verdicts."""
    from skillgraft.analysis import overlaps, plots, tables
    from skillgraft.tracking import wandb_run

    measures = [name for name in metric_names.MEASURES if name in rows]
    with wandb_run.summary(record, folder) as tracker:
        tracker.table(
            "runs", rows[["id", "task", "model", "selector", "sparsity", "seed", *measures]]
        )
        tracker.table("over_seeds", tables.over_seeds(rows, measures))
        pairs = overlaps.pairs_of(rows)
        if len(pairs):
            tracker.table("overlap", pairs)
            drawing = plots.heat_map(
                overlaps.square(pairs, "iou"), "overlap (IoU), mean of runs", "IoU"
            )
            tracker.image("overlap_map", plots.save(drawing, folder / OVERLAP_MAP))
        if outcome is not None:
            tracker.table("claim", outcome.table)
            tracker.image("figure", folder / FIGURE)
            for statement in outcome.statements:
                if (measured := statement.measured) is not None:
                    values = {n: v for n, v in vars(measured).items() if v is not None}
                    tracker.summarize({f"claim/{statement.text}/{n}": v for n, v in values.items()})


def show_missing(jobs: Sequence[Mapping[str, Any]], command: str, store: folders.Store) -> None:
    """Print the jobs that are not complete, and the command that makes just those."""
    for job in jobs:
        what = job["state"] or "not started"
        if what == job_state.RUNNING and (
            job["id"] is None or not leases.holder(store.lease(job["id"]))
        ):
            what = "killed"  # and had no time to say so; submitit leaves the others running
        why = ": ".join(job[name] for name in ("error", "message") if job[name])
        print(
            f"  {what}: {' '.join(job['overrides'])}{f' ({why})' if why else ''}", file=sys.stderr
        )
    print(f"run the same command to complete only these jobs: {command}", file=sys.stderr)


def show(name: str, outcome: ClaimResult) -> None:
    """Print a claim's table, and its statements with the paper's figures beside the measured ones."""
    import pandas as pd
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from skillgraft.analysis.claims import results

    records = [statement.record() for statement in outcome.statements]
    lines = results.statement_rows([{"sweep": name, "statements": records}])
    statements = pd.DataFrame(lines).drop(columns="sweep")
    console = Console(width=None if sys.stdout.isatty() else 200)
    for title, frame in (
        (name, outcome.table),
        ("Student's t intervals over seeds (95 %)", statements),
    ):
        table = Table(title=title, box=box.SIMPLE, title_justify="left", padding=(0, 1, 0, 0))
        for column in map(str, frame.columns):
            table.add_column(column, overflow="fold")
        for line in frame.astype(str).to_numpy().tolist():
            table.add_row(*line)
        console.print(table)
    for note in outcome.notes:
        console.print(note, highlight=False)
