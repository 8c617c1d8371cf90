"""Commands for W&B: sync, dashboard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from skillgraft.cli.output import markdown
from skillgraft.cli.program import CommandResult, Root, command
from skillgraft.runtime import files
from skillgraft.store.folders import Store


@command("sync")
def send_offline(
    root: Root = Path("runs"),
    entity: Annotated[str | None, typer.Option(help="W&B's entity, in place of the runs'.")] = None,
    project: Annotated[
        str | None, typer.Option(help="W&B's project, in place of the runs'.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be sent, without a network.")
    ] = False,
) -> CommandResult:
    """Send the offline W&B runs of a store by sweep, wherever the store is now; those sent are skipped.

    Only files of a run are sent, never another file that its record names; --dry-run lists them.
    Exit code 1 where a record is damaged or not the run's own, a file is missing, or W&B refuses.
    Example: grafts sync runs --dry-run
    """
    import pandas as pd

    from skillgraft.tracking import sync

    lines = sync.deliver(Store(root), entity, project, dry_run)
    refused = [line["run"] for line in lines if line["state"] not in sync.FINE]
    if refused:
        typer.echo(f"{len(refused)} of {len(lines)} runs cannot be sent: {refused[0]} …", err=True)

    def shown() -> str:
        table = pd.DataFrame([{**line, "files": len(line["files"])} for line in lines])
        named = [file for line in lines for file in line["files"]] if dry_run else []
        return "\n".join([markdown(table), *named])

    return CommandResult(lines, shown, wrong=bool(refused))


@command()
def dashboard(
    project: Annotated[str, typer.Argument(help="The W&B project that the runs are in.")],
    entity: Annotated[str | None, typer.Option(help="Its entity; else the account's own.")] = None,
    root: Annotated[
        Path, typer.Option("--store", help="The panels of one task's names are for its runs.")
    ] = Path("runs"),
    out: Annotated[
        Path | None, typer.Option(help="The file to write the specification to.")
    ] = None,
    send: Annotated[
        bool, typer.Option("--send", help="Make workspace and reports on W&B, new ones each time.")
    ] = False,
) -> CommandResult:
    """Build a W&B workspace for comparing runs and a report a figure; print them, or send them.

    Example: grafts dashboard skillgraft --out dashboard.json
    Example: grafts dashboard skillgraft --entity me --send
    """
    from skillgraft.tracking import dashboard as dashboards
    from skillgraft.tracking.dashboard import names_of, specification

    if not (names := names_of(Store(root))):
        typer.echo(
            f"{root}: no run in it, so no panels on overlaps and shifted test sets", err=True
        )
    if send:
        places = dashboards.send(project, entity, names)
        return CommandResult(places, "\n".join(places))
    content = specification(project, entity or "", names)
    if out is None:
        return CommandResult(content, lambda: json.dumps(content, indent=1))
    files.write_json(out, content)
    return CommandResult({"file": str(out)}, str(out))
