"""Grafts and tables as commands print them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from skillgraft.cli.program import CommandResult
from skillgraft.store import graft_files

if TYPE_CHECKING:
    import pandas as pd

    from skillgraft.core.graft import Graft


def loaded(path: Path) -> Graft:
    """Return the graft of a run's folder, a file, or a reference to the hub."""
    from skillgraft.core.graft import Graft

    return Graft.load(graft_files.graft_file(str(path)))


def records(frame: pd.DataFrame) -> list[Any]:
    """Return a table's rows, None where a value is missing."""
    return defined(frame).to_dict(orient="records")


def markdown(frame: pd.DataFrame) -> str:
    """Return a table for people."""
    return defined(frame).to_markdown(index=False, missingval="–")


def defined(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table with None where a value is missing."""
    return frame.astype(object).where(frame.notna(), None)


def described(graft: Graft) -> dict[str, Any]:
    """Return what a graft is as plain values: what its file says of itself, its base and its size."""
    own = {"base": graft.base, "size": graft.size, "graftable": graft.graftable}
    return {**graft.meta, **own, "sparsity": graft.sparsity}


def save_graft(graft: Graft, out: Path) -> CommandResult:
    """Write a graft to a file, and say so."""
    file = graft.save(out)
    return CommandResult({"file": str(file), **described(graft)}, f"{file}: {graft}")
