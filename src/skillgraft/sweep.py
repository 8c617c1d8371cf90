"""A sweep: its record, written before its first job, and what it shows after its last.

The end is done by the process that was started, around Hydra's main, from the job folders and the
store: it comes whatever the launcher or a job did.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from skillgraft import store
from skillgraft.errors import InputError

if TYPE_CHECKING:
    from skillgraft.claims import Outcome

log = logging.getLogger(__name__)
GROUPS = ("paper", "embedded", "beyond")  # of multirun_sweeps/
SILENT = ("store=", "force=", "logger", "hydra")  # overrides that do not make it another sweep
begun: list[Path] = []  # the record's folder of this process's sweep, once it has started


class Record(Callback):
    """Hydra's callback: writes the record of a sweep when it starts."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Write `STORE/sweeps/<name>-<hash>/record.json`: overrides, sweep file, claim, job folders."""
        settings = config.hydra
        choices = settings.runtime.choices
        name = "-".join(f"{g}-{choices[g]}" for g in GROUPS if choices.get(g)) or "sweep"
        overrides = [o for o in settings.overrides.task if not o.lstrip("+").startswith(SILENT)]
        axes = OmegaConf.to_container(settings.sweeper.get("params") or {})
        digest = store.short_hash({"overrides": sorted(overrides), "axes": axes})
        folder = store.Store(config.store).sweeps / f"{name}-{digest}"
        folder.mkdir(parents=True, exist_ok=True)
        record = {
            "name": name,
            "overrides": list(settings.overrides.task),
            "axes": axes,
            "claim": OmegaConf.to_container(config.claim),
            "jobs": str(Path(settings.sweep.dir).absolute()),
            "runs": [],
        }
        store.write_json(folder / "record.json", record)
        begun.append(folder)


def run_ids(record: Mapping[str, Any]) -> list[str]:
    """Return the ids of the runs that a sweep's jobs have made or found so far, in the jobs' order."""
    files = Path(record["jobs"]).glob(f"*/{store.RUN_FILE}")
    ordered = sorted(files, key=lambda file: (len(file.parent.name), file.parent.name))
    found = [str(store.read_json(file)["id"]) for file in ordered]
    return list(dict.fromkeys(found or record["runs"]))  # a store that was moved has no job folders


def finish() -> None:
    """Show what a sweep came to, if this process has started one: its claim, or where its runs are."""
    if not begun:
        return
    folder = begun.pop()
    record = store.read_json(folder / "record.json")
    record["runs"] = run_ids(record)
    store.write_json(folder / "record.json", record)
    if record["claim"]["name"] is None or not record["runs"]:
        return
    try:
        outcome = conclude(folder)
    except InputError as error:
        log.warning("%s: no verdict: %s", record["name"], error)
        return
    show(record["name"], outcome)
    print(folder)


def conclude(folder: Path) -> Outcome:
    """Judge the claim of a sweep by its whole runs, and write verdict, table and figure beside its record."""
    from skillgraft import claims, compare, figure
    from skillgraft.config import ClaimConfig

    record = store.read_json(folder / "record.json")
    options = ClaimConfig(**record["claim"])
    rows = compare.collect(store.Store(folder.parents[1]), run_ids(record))
    if rows.empty:
        raise InputError(f"{folder}: none of its runs is whole")
    if options.name not in claims.CLAIMS:
        raise InputError(f"claim.name={options.name}: expected one of {', '.join(claims.CLAIMS)}")
    outcome = claims.CLAIMS[options.name](rows, options)
    statements = [statement.record() for statement in outcome.statements]
    store.write_json(
        folder / "verdict.json",
        {
            "claim": options.name,
            "runs": len(rows),
            "statements": statements,
            "notes": outcome.notes,
        },
    )
    outcome.table.to_csv(folder / "table.csv", index=False)
    drawing = outcome.draw()
    for suffix in ("png", "svg"):
        figure.save(drawing, folder / f"figure.{suffix}")
    return outcome


def show(name: str, outcome: Outcome) -> None:
    """Print a claim's table, and its statements with the paper's figures beside the measured ones."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 200)
    for title, columns, lines in (
        (
            name,
            list(map(str, outcome.table.columns)),
            outcome.table.astype(str).to_numpy().tolist(),
        ),
        (
            "Student's t intervals over seeds (95 %)",
            ["statement", "paper", "measured", "verdict"],
            [[s.text, s.paper, str(s.measured or "–"), s.verdict] for s in outcome.statements],
        ),
    ):
        table = Table(title=title, box=box.SIMPLE, title_justify="left", padding=(0, 1, 0, 0))
        for column in columns:
            table.add_column(column, overflow="fold")
        for line in lines:
            table.add_row(*line)
        console.print(table)
    for note in outcome.notes:
        console.print(note, highlight=False)
