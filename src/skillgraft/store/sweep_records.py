"""The record of a sweep, and the states of its jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from skillgraft.runtime import files
from skillgraft.store.names import RUN_FILE


def jobs_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the state of every job of a sweep, in the order of the jobs.

    Each job has its `overrides`, `state` (None: never started), `id` (for a job that was not started this
    time, the id of an earlier start), `finetuned` (None: the run was complete already), `error` and
    `message`.
    """
    found, ids = [], dict(enumerate(record.get("ids", ())))
    for number, overrides in enumerate(record.get("planned", ())):  # older records lack `planned`
        file = Path(record["jobs"]) / str(number) / RUN_FILE
        known = files.read_json(file) if file.is_file() else {}
        names = ("state", "finetuned", "error", "message")
        job = {"overrides": overrides, "id": known.get("id") or ids.get(number)}
        found.append(job | {name: known.get(name) for name in names})
    return found


def run_ids(record: Mapping[str, Any], jobs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the ids of the runs that a sweep's jobs have made or found so far, in the order of the jobs."""
    found = [job["id"] for job in jobs if job["id"] is not None]
    return list(dict.fromkeys(found or record["runs"]))  # a moved store lacks the job folders
