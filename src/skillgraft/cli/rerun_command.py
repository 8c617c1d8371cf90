"""The command that makes runs again."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skillgraft.cli.program import CommandResult, command, complete
from skillgraft.runtime.errors import InputError
from skillgraft.runtime.job import JobContext
from skillgraft.store.folders import Store

if TYPE_CHECKING:
    from skillgraft.experiments.rerun import Difference


@command()
def rerun(
    ctx: typer.Context,
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
    from skillgraft.experiments.rerun import find, runs_of_figure

    if out is not None and figure is None:
        raise InputError("--out: only with --figure")
    if keep is not None and keep.is_dir() and any(keep.iterdir()):
        raise InputError(f"--keep {keep}: not empty")
    with scratch_store(keep) as scratch:
        runs = runs_of_figure(figure, Path(path)) if figure else [find(path, Store(root))]
        named, changed, found = reproduced(runs, scratch, cached, anyway, ctx.obj)
        if figure:
            found += redrawn(Path(path), scratch, runs, out)
    record = {"runs": [f.name for f in runs], "cached": cached, "identical": not found}
    lists = {"environment": named, "inputs": changed, "differences": found}
    record |= {name: [vars(line) for line in lines] for name, lines in lists.items()}
    weights = ", with the fine-tuned weights of the store" if cached else ""
    same = f"bit-identical{weights}: {path}"
    return CommandResult(record, "\n".join(map(str, found)) or same, bool(found))


@contextlib.contextmanager
def scratch_store(keep: Path | None) -> Iterator[Store]:
    """Yield a store for the runs that are made again: in a folder that is kept, or in a temporary one."""
    if keep is not None:
        yield Store(keep)
        return
    with tempfile.TemporaryDirectory(prefix="skillgraft-") as folder:
        yield Store(folder)


def reproduced(
    runs: Sequence[Path], scratch: Store, cached: bool, anyway: bool, context: JobContext
) -> tuple[list[Difference], list[Difference], list[Difference]]:
    """Make runs again, and return what differs of the environment, of the inputs, and of the results.

    Args:
        runs: the folders of the stored runs.
        scratch: the store in which the runs are made again.
        cached: whether the fine-tuned weights are taken from the runs' own store.
        anyway: whether to go on where a file that a run reads has changed.
        context: what the new runs are told of their job.
    """
    from skillgraft.experiments.rerun import check, compare, reproduce

    named, changed = check(runs, scratch)
    for line in (*named, *changed):
        typer.echo(line, err=True)
    if changed and not anyway:
        raise InputError("what is read has changed; --anyway makes the run all the same")
    if cached:
        typer.echo("fine-tuned weights: from the store, not made again", err=True)
    made = {folder: reproduce(folder, scratch, cached, context) for folder in runs}
    return named, changed, compare(made)


def redrawn(
    sweep: Path, scratch: Store, runs: Sequence[Path], out: Path | None
) -> list[Difference]:
    """Draw a sweep's figure from its runs in the scratch store, and return how its data differ."""
    from skillgraft.experiments.rerun import redraw

    drawn, cells = redraw(sweep, scratch, [folder.name for folder in runs])
    if out is not None:
        shutil.copytree(drawn, out, dirs_exist_ok=True)
    return cells
