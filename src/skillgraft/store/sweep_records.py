"""The record of a sweep, and what has become of its jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from skillgraft.runtime import files
from skillgraft.store.names import RUN_FILE


def jobs_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what has become of every job of a sweep, in the jobs' order.

    `overrides`, `state` (None: never started), `id` (of one that has not been started this time: of
    an earlier start), `finetuned` (None: found whole), `error` and `message`.
    """
    found, ids = [], dict(enumerate(record.get("ids", ())))
    for number, overrides in enumerate(record.get("planned", ())):  # an older record has none
        file = Path(record["jobs"]) / str(number) / RUN_FILE
        known = files.read_json(file) if file.is_file() else {}
        names = ("state", "finetuned", "error", "message")
        job = {"overrides": overrides, "id": known.get("id") or ids.get(number)}
        found.append(job | {name: known.get(name) for name in names})
    return found


def run_ids(record: Mapping[str, Any], jobs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the ids of the runs that a sweep's jobs have made or found so far, in the jobs' order."""
    found = [job["id"] for job in jobs if job["id"] is not None]
    return list(dict.fromkeys(found or record["runs"]))  # a store that was moved has no job folders
