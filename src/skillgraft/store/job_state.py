"""What has become of a job or a run: running, whole, failed or interrupted, in a record beside it."""

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
START = 120.0  # seconds after which a job that ought to have started by now counts as gone


@contextmanager
def recorded(path: Path, **values: Any) -> Iterator[Callable[..., None]]:
    """Keep a record up to date inside a `with` block: running, and then what became of it.

    What is yielded adds values to it. An exception is recorded by its class and message, and goes on.
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
    """Return the records of the runs that are not whole, or are being made again, by name."""
    found = []
    for file in sorted((store.root / ".partial").glob("*.json")):
        try:
            record = read_json(file)
        except FileNotFoundError:
            continue  # it has just become whole
        if leases.holder(store.lease(record["id"])):
            found.append(record)
        elif not checksums.is_complete(store.run(record["id"])):
            # killed, where it had no time to say anything else
            found.append(record | {"state": record["state"].replace(RUNNING, INTERRUPTED)})
    return found


def earlier(job: Path, store: Store) -> bool:
    """Return whether a job of a smaller number of the same sweep runs or is about to start.

    `job` is the folder of the asking one, whose record was written just now: by its time the
    others' are judged. Launchers start jobs in their order, so that whoever waits for earlier ones
    waits for one that does not wait.
    """
    own, numbers = job / names.RUN_FILE, range(int(job.name))
    now, begun = own.stat().st_mtime, read_json(own)["since"]
    if going(job.parent, numbers, store, now):
        return True
    files = (job.parent / str(number) / names.RUN_FILE for number in numbers)
    return now - begun < START and not all(file.is_file() for file in files)


def going(jobs: Path, numbers: Sequence[int], store: Store, now: float) -> bool:
    """Return whether any of a sweep's jobs runs at the time `now` of the file system.

    A job in a process that can be seen from here runs as long as that is there; another one has
    written its record within a minute, or holds the lease of its run.
    """
    for number in reversed(numbers):  # the last ones are the likeliest to run
        file = jobs / str(number) / names.RUN_FILE
        try:
            record, touched = read_json(file), file.stat().st_mtime
        except FileNotFoundError:
            continue
        if record["state"] != RUNNING or leases.is_gone(record):
            continue
        if record.get("machine") == leases.machine():  # its process is there
            return True
        name = record["id"]
        if now - touched < leases.STALE or (name and leases.holder(store.lease(name))):
            return True
    return False
