"""The frame of `grafts`: its commands, their options, and how answers are printed."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from skillgraft.runtime.errors import InputError
from skillgraft.store import index


class CommandGroup(TyperGroup):
    """The commands: an error of the user's is one line on the standard error, and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except InputError as error:
            typer.echo(f"grafts: {error}", err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=CommandGroup,
    help="Look at what `skillgraft` left behind.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def options(
    ctx: typer.Context,
    no_progress: Annotated[
        bool, typer.Option("--no-progress", help="No progress bars, on a terminal neither.")
    ] = False,
) -> None:
    """Make what holds for every command: a JobContext, as the commands' `ctx.obj`."""
    from skillgraft.cli import job_context

    ctx.obj = job_context.of_grafts(no_progress)


def complete(incomplete: str) -> list[str]:
    """Return what a shell may offer for a run: `runs/<id>`, or `<store>/<id>` once a store is given.

    The names come from the index. A folder that is no store is left alone.
    """
    folder = incomplete.rpartition("/")[0] or "runs"
    root = Path(folder).expanduser()
    if not any((root / name).is_dir() for name in (".cache", ".partial")):
        return []
    offered = (f"{folder}/{name}" for name in index.names(root))
    return [name for name in offered if name.startswith(incomplete)]


Root = Annotated[Path, typer.Argument(help="A store: the folder that holds the runs.")]
OneRun = Annotated[
    Path,
    typer.Argument(
        help="A run's folder, a graft file, or hub:OWNER/NAME[@REVISION].", autocompletion=complete
    ),
]
SeveralRuns = Annotated[
    list[Path],
    typer.Argument(
        help="Runs' folders, graft files, or hub:OWNER/NAME[@REVISION].", autocompletion=complete
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document, and everything else to stderr.")
]


@dataclass(frozen=True)
class CommandResult:
    """What a command found: `record` for --json, `text` for people; exit code 1 where it is `wrong`.

    Either may be a function: only one of them is asked for.
    """

    record: Any
    text: str | Callable[[], str]
    wrong: bool = False


def command(
    name: str | None = None,
) -> Callable[[Callable[..., CommandResult]], Callable[..., CommandResult]]:
    """Return what makes a function a command with --json: it returns its Answer, and prints nothing.

    What it, or a library, prints all the same goes to the standard error.
    """

    def register(function: Callable[..., CommandResult]) -> Callable[..., CommandResult]:
        @functools.wraps(function)
        def run(as_json: bool, **options: Any) -> None:
            with contextlib.redirect_stdout(sys.stderr):
                answer = function(**options)
            emit(answer, as_json)

        shape = inspect.signature(function, eval_str=True)
        option = inspect.Parameter(
            "as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=AsJson
        )
        every = [*shape.parameters.values(), option]
        # typer reads both: the parameters, and the types by name
        run.__signature__ = shape.replace(parameters=every, return_annotation=None)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in every}
        app.command(name)(run)
        return function

    return register


def emit(answer: CommandResult, as_json: bool) -> None:
    """Print an answer as one JSON document or as text. Raises typer.Exit(1) where something is wrong."""
    found = answer.record if as_json else answer.text
    found = found() if callable(found) else found
    if as_json or not (sys.stdout.isatty() and found.startswith("|")):
        typer.echo(json.dumps(found, indent=1, allow_nan=False) if as_json else found)
    else:
        draw(found)
    if answer.wrong:
        raise typer.Exit(1)


def draw(text: str) -> None:
    """Print a text that begins with a Markdown table, the table drawn where the terminal is wide enough.

    Drawn narrower it would be without the ends of ids.
    """
    from rich.console import Console
    from rich.markdown import Markdown

    console, lines = Console(), text.splitlines()
    rows = [line for line in lines if line.startswith("|")]
    if max(map(len, rows)) > console.width:
        return typer.echo(text)
    console.print(Markdown("\n".join(rows)))
    return typer.echo("\n".join(lines[len(rows) :]), nl=len(lines) > len(rows))
