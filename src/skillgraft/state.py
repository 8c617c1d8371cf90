"""What has become of a job or a run: running, whole, failed or interrupted, in a record beside it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from skillgraft import store

RUNNING, WHOLE, FAILED, INTERRUPTED = "running", "whole", "failed", "interrupted"


def write(path: Path, **values: Any) -> None:
    """Write a record under another name and rename it: a reader never sees half of it."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    store.write_json(scratch, values)
    scratch.replace(path)


@contextmanager
def recorded(path: Path, **values: Any) -> Iterator[dict[str, Any]]:
    """Keep a record up to date inside a `with` block: running, and then what became of it.

    What is put into the mapping that is yielded goes into the record. An exception is recorded by
    its class and message, and goes on.
    """
    record = {
        "state": RUNNING, **values, "host": socket.gethostname(), "pid": os.getpid(), "since": time.time(),
    }  # fmt: skip
    write(path, **record)
    try:
        yield record
    except BaseException as error:
        asked = isinstance(error, (KeyboardInterrupt, SystemExit))
        record["state"] = INTERRUPTED if asked else FAILED
        record |= {"error": type(error).__name__, "message": str(error)}
        write(path, **record)
        raise
    write(path, **record | {"state": WHOLE})
