"""SHA-256 digests of files and of plain values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skillgraft.runtime.files import write_text


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def cached_digest(path: Path, cache: Path) -> str:
    """Return a file's SHA-256, kept in the folder `cache` under the file's path, size and modification time.

    A checkpoint of many gigabytes is then read once and not for every run.
    """
    stat = path.stat()
    key = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    entry = cache / hashlib.sha256(key.encode()).hexdigest()
    if entry.is_file():
        return entry.read_text()
    digest = file_digest(path)
    cache.mkdir(parents=True, exist_ok=True)
    write_text(entry, digest)
    return digest


def short_hash(values: Mapping[str, Any]) -> str:
    """Return the first ten hexadecimal digits of the SHA-256 of a mapping of plain values."""
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]
