"""Atomic writes: a file is complete or absent, and no reader sees a part of a file."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_write(path: Path, scratch: Path | None = None) -> Iterator[Path]:
    """Yield the path of a scratch file, and rename the scratch file to `path` when the block ends.

    Where the block raises, the scratch file is removed and `path` stays as it was. The file gets the
    permissions that `open` gives, whatever the writer set.

    Args:
        path: The file to write, which may exist. Its folder must exist.
        scratch: The scratch file, on the file system of `path`. By default its name is unique, so that
            several processes and hosts may write one file. A fixed name suits a single writer: the
            next write then removes what a killed one left.
    """
    scratch = scratch or path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        scratch.unlink(missing_ok=True)
        scratch.touch()
        mode = scratch.stat().st_mode
        yield scratch
        if scratch.stat().st_mode != mode:  # safetensors creates files that only the owner can read
            scratch.chmod(mode)
        scratch.replace(path)
    except BaseException:  # interrupts too: a notebook's process goes on after an interrupt
        scratch.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, complete or not at all."""
    with atomic_write(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a file of strict JSON, complete or not at all; NaN and infinity raise ValueError."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
