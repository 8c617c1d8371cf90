"""What has become of a job or a run: running, whole, failed or interrupted, in a record beside it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from skillgraft import lease, store
from skillgraft.store import Store

RUNNING, WHOLE, FAILED, INTERRUPTED = "running", "whole", "failed", "interrupted"


@contextmanager
def recorded(path: Path, **values: Any) -> Iterator[Callable[..., None]]:
    """Keep a record up to date inside a `with` block: running, and then what became of it.

    What is yielded adds values to it. An exception is recorded by its class and message, and goes on.
    """
    record = {
        "state": RUNNING, **values, "host": socket.gethostname(), "pid": os.getpid(), "since": time.time(),
    }  # fmt: skip

    def tell(**more: Any) -> None:
        record.update(more)
        store.write_json(path, record)

    tell()
    try:
        yield tell
    except BaseException as error:
        asked = isinstance(error, (KeyboardInterrupt, SystemExit))
        tell(state=INTERRUPTED if asked else FAILED, error=type(error).__name__, message=str(error))
        raise
    tell(state=WHOLE)


def unfinished(place: Store) -> list[dict[str, Any]]:
    """Return the records of the runs that are not whole, or are being made again, by name."""
    found = []
    for file in sorted((place.root / ".partial").glob("*.json")):
        try:
            record = store.read_json(file)
        except FileNotFoundError:
            continue  # it has just become whole
        if lease.holder(place.lease(record["id"])):
            found.append(record)
        elif not store.is_whole(place.run(record["id"])):
            # killed, where it had no time to say anything else
            found.append(record | {"state": record["state"].replace(RUNNING, INTERRUPTED)})
    return found
