"""Commands about graft files: show, verify, overlap, combine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skillgraft.cli.output import described, loaded, markdown, save_graft
from skillgraft.cli.program import CommandResult, OneRun, SeveralRuns, command
from skillgraft.runtime.errors import InputError
from skillgraft.store import checksums
from skillgraft.store.names import GRAFT


@command()
def show(path: OneRun) -> CommandResult:
    """Show one graft: base model, size, and its share by layer and module kind.

    Example: grafts show runs/toy_film-…/graft.safetensors
    """
    from skillgraft.core.graft_facts import shares_by_layer, shares_by_module

    graft = loaded(path)
    shares = {"layer": shares_by_layer(graft), "module": shares_by_module(graft)}

    def text() -> str:
        lines = [f"{name}: {value}" for name, value in described(graft).items()]
        for kind, found in shares.items():
            parts = ", ".join(f"{name} {share:.1%}" for name, share in found.items())
            lines.append(f"share by {kind}: {parts}")
        return "\n".join(lines)

    return CommandResult({**described(graft), **shares}, text)


@command()
def verify(path: OneRun) -> CommandResult:
    """Check every checksum; exit code 1 where something is missing or altered.

    Example: grafts verify runs/toy_film-…
    """
    wrong = checksums.verify(path) if path.is_dir() else []
    try:
        loaded(path)
    except InputError as error:
        wrong.append(str(error))
    for line in wrong:
        typer.echo(line, err=True)
    record = {"path": str(path), "ok": not wrong, "wrong": wrong}
    if wrong:
        return CommandResult(record, f"{path}: damaged or incomplete", wrong=True)
    matched = "1 file matches its digest"
    if path.is_dir():
        matched = f"{len(checksums.recorded(path))} files match their checksums"
    return CommandResult(record, f"{path}: OK: {matched}")


@command("overlap")
def overlap_of(
    paths: SeveralRuns,
) -> CommandResult:
    """Show how much of every two regions of one base model is shared (IoU), and what chance would give.

    Example: grafts overlap runs/toy_film-… runs/toy_book-…
    """
    import itertools

    import pandas as pd

    grafts = [
        (path.parent.name if path.name == GRAFT else path.name, loaded(path)) for path in paths
    ]
    if len(grafts) < 2:
        raise InputError("give two grafts or more")
    lines = []
    for (one, a), (other, b) in itertools.combinations(grafts, 2):
        lines.append({"a": one, "b": other, **a.overlap(b)})
    return CommandResult(lines, lambda: markdown(pd.DataFrame(lines)))


@command()
def combine(
    paths: SeveralRuns,
    out: Annotated[Path, typer.Option(help="The file to write.")],
    rule: Annotated[str, typer.Option(help="union or intersection.")] = "union",
) -> CommandResult:
    """Make one graft of several of one base model; a parameter in several regions gets their mean value.

    Example: grafts combine runs/toy_film-… runs/toy_book-… --out both.safetensors
    """
    from skillgraft.core.graft import intersection, union

    rules = {"union": union, "intersection": intersection}
    if rule not in rules:
        raise InputError(f"--rule {rule}: expected union or intersection")
    if out.exists():
        raise InputError(f"--out {out}: already exists")
    return save_graft(rules[rule]([loaded(path) for path in paths]), out)
