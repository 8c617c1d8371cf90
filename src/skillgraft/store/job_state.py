"""The state of a job or a run (running, complete, failed or interrupted), kept in a record beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from skillgraft.runtime import leases
from skillgraft.runtime.files import read_json, write_json
from skillgraft.store import checksums, names
from skillgraft.store.folders import Store

RUNNING, COMPLETE, FAILED, INTERRUPTED = "running", "complete", "failed", "interrupted"
START = 120.0  # seconds within which an earlier job must have started; later it counts as gone


@contextmanager
def recorded(path: Path, **values: Any) -> Iterator[Callable[..., None]]:
    """Keep a record of the state inside a `with` block: running, then complete, failed or interrupted.

    The yielded function adds values to the record. An exception is recorded by its class and message,
    and then raised again.
    """
    record = {"state": RUNNING, **values, "since": time.time(), **leases.record_of_this_process()}

    def tell(**more: Any) -> None:
        record.update(more)
        write_json(path, record)

    tell()
    try:
        yield tell
    except BaseException as error:
        asked = isinstance(error, (KeyboardInterrupt, SystemExit))
        tell(state=INTERRUPTED if asked else FAILED, error=type(error).__name__, message=str(error))
        raise
    tell(state=COMPLETE)


def unfinished(store: Store) -> list[dict[str, Any]]:
    """Return the records of the runs that are incomplete or being replaced, by name."""
    found = []
    for file in sorted((store.root / ".partial").glob("*.json")):
        try:
            record = read_json(file)
        except FileNotFoundError:
            continue  # the run has just become complete
        if leases.holder(store.lease(record["id"])):
            found.append(record)
        elif not checksums.is_complete(store.run(record["id"])):
            # still "running" without a live process: the run was killed and could not write its state
            found.append(record | {"state": record["state"].replace(RUNNING, INTERRUPTED)})
    return found


def earlier(job: Path, store: Store) -> bool:
    """Return whether a job with a smaller number in the same sweep runs or may be about to start.

    `job` is the folder of the calling job, whose record was written just now and gives the present time
    of the file system. Launchers start jobs in order, and a job waits only for jobs with smaller numbers,
    so that no two jobs wait for each other.
    """
    own, numbers = job / names.RUN_FILE, range(int(job.name))
    now, begun = own.stat().st_mtime, read_json(own)["since"]
    if going(job.parent, numbers, store, now):
        return True
    files = (job.parent / str(number) / names.RUN_FILE for number in numbers)
    return now - begun < START and not all(file.is_file() for file in files)


def going(jobs: Path, numbers: Sequence[int], store: Store, now: float) -> bool:
    """Return whether any of some jobs of a sweep runs at the time `now`, in seconds of the file system.

    A job on this machine runs as long as its process exists. A job on another machine runs where it
    has written its record within the last `leases.STALE` seconds, or holds the lease of its run.
    """
    for number in reversed(numbers):  # the last jobs are the most likely to run
        file = jobs / str(number) / names.RUN_FILE
        try:
            record, touched = read_json(file), file.stat().st_mtime
        except FileNotFoundError:
            continue
        if record["state"] != RUNNING or leases.is_gone(record):
            continue
        if record.get("machine") == leases.machine():  # not gone: the process exists
            return True
        name = record["id"]
        if now - touched < leases.STALE or (name and leases.holder(store.lease(name))):
            return True
    return False
