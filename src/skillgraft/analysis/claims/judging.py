"""Verdicts on the claims of sweeps."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skillgraft.analysis.claims import results
from skillgraft.config import schema
from skillgraft.runtime import progress
from skillgraft.runtime.errors import InputError
from skillgraft.runtime.files import atomic_write, read_json, write_json
from skillgraft.store import folders
from skillgraft.store.names import FIGURE, RECORD, TABLE, VERDICT
from skillgraft.store.sweep_records import jobs_of, run_ids

if TYPE_CHECKING:
    import pandas as pd

    from skillgraft.analysis.claims.statements import ClaimResult

log = logging.getLogger(__name__)


def judge_sweep(folder: Path, record: Mapping[str, Any], rows: pd.DataFrame) -> ClaimResult:
    """Return what the claim of a sweep comes to on its runs. Raises InputError without runs, or a claim."""
    from skillgraft.analysis.claims.finding import find_claim

    options = schema.ClaimConfig(**record["claim"])
    judge = find_claim(str(options.name))
    if rows.empty:
        raise InputError(f"{folder}: none of its runs is complete")
    return judge(rows, options)


def conclude(folder: Path, record: Mapping[str, Any], rows: pd.DataFrame) -> ClaimResult:
    """Judge the claim of a sweep, and write verdict, table and figure beside its record."""
    from skillgraft.analysis import plots

    outcome = judge_sweep(folder, record, rows)
    write_json(folder / VERDICT, results.verdict(record, outcome, len(rows)))
    with atomic_write(folder / TABLE) as scratch:
        outcome.table.to_csv(scratch, index=False)
    drawing = outcome.draw()
    for suffix in (".png", ".svg"):
        plots.save(drawing, (folder / FIGURE).with_suffix(suffix))
    return outcome


def judged(store: folders.Store, keep: bool, bars: bool = False) -> list[dict[str, Any]]:
    """Return the verdict of every sweep of a store that has a claim, with the sweep's name and folder.

    Sweeps of one name have that of their folder. With `keep` verdict, table and figure are written
    beside each record; `bars` shows a progress bar. Of a claim that cannot be judged it is logged why.
    """
    from skillgraft.analysis import collect

    files = sorted(store.sweeps.glob(f"*/{RECORD}"))  # a sweep that starts has none yet
    records = {file.parent: read_json(file) for file in files}
    known = Counter(record["name"] for record in records.values())
    found = []
    for folder, record in progress.bar(records.items(), "claims", len(records), bars):
        if record["claim"]["name"] is None:
            continue
        name = record["name"] if known[record["name"]] == 1 else folder.name
        rows = collect.collect(store, run_ids(record, jobs_of(record)))
        try:
            outcome = (conclude if keep else judge_sweep)(folder, record, rows)
        except InputError as error:
            log.warning("%s: no verdict: %s", name, error)
            continue
        verdict = results.verdict(record, outcome, len(rows))
        found.append({"sweep": name, "folder": folder.name, **verdict})
    return found
