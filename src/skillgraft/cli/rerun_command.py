"""The command that makes runs again."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Annotated

import typer

from skillgraft.cli.program import CommandResult, command, complete
from skillgraft.runtime.errors import InputError
from skillgraft.store.folders import Store


@command()
def rerun(
    path: Annotated[
        str,
        typer.Argument(
            help="A run's folder, id, or W&B path; with --figure a sweep's folder.",
            autocompletion=complete,
        ),
    ],
    figure: Annotated[
        str | None, typer.Option(help="Make the runs behind this figure of the sweep, and draw it.")
    ] = None,
    root: Annotated[Path, typer.Option("--store", help="Where an id is looked up.")] = Path("runs"),
    cached: Annotated[
        bool, typer.Option("--cached", help="Take the fine-tuned weights from the store.")
    ] = False,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Go on where a file that is read has changed.")
    ] = False,
    keep: Annotated[
        Path | None, typer.Option(help="An empty folder for the scratch store, which is kept.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A folder for the new figure.")] = None,
) -> CommandResult:
    """Make a run again from nothing and compare: bit-identical, or all that differs and exit code 1.

    Changed files, models and libraries are named first.
    Example: grafts rerun runs/toy_film-…
    Example: grafts rerun --figure calibration runs/sweeps/embedded-calibration-…
    """
    import tempfile

    from skillgraft.experiments.rerun import check, compare, find, redraw, reproduce, runs_of_figure

    if out is not None and figure is None:
        raise InputError("--out: only with --figure")
    if keep is not None and keep.is_dir() and any(keep.iterdir()):
        raise InputError(f"--keep {keep}: not empty")
    with contextlib.ExitStack() as stack:
        scratch = Store(
            keep or stack.enter_context(tempfile.TemporaryDirectory(prefix="skillgraft-"))
        )
        runs = runs_of_figure(figure, Path(path)) if figure else [find(path, Store(root))]
        named, changed = check(runs, scratch)
        for line in (*named, *changed):
            typer.echo(line, err=True)
        if changed and not anyway:
            raise InputError("what is read has changed; --anyway makes the run all the same")
        if cached:
            typer.echo("fine-tuned weights: from the store, not made again", err=True)
        made = {folder: reproduce(folder, scratch, cached) for folder in runs}
        found = compare(made)
        if figure:
            drawn, cells = redraw(Path(path), scratch, [f.name for f in made.values()])
            found += cells
            if out is not None:
                shutil.copytree(drawn, out, dirs_exist_ok=True)
    record = {"runs": [f.name for f in runs], "cached": cached, "identical": not found}
    lists = {"environment": named, "inputs": changed, "differences": found}
    record |= {name: [vars(line) for line in lines] for name, lines in lists.items()}
    weights = ", with the fine-tuned weights of the store" if cached else ""
    same = f"bit-identical{weights}: {path}"
    return CommandResult(record, "\n".join(map(str, found)) or same, bool(found))
