"""Read files of examples: JSON lines, CSV and parquet."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from skillgraft.runtime.errors import InputError

# where a record stands, for error messages, and its fields:
# ("file.jsonl, row 3", {"text": …, "label": …})
Record = tuple[str, dict[str, Any]]


def read_jsonl(path: Path) -> Iterator[Record]:
    """Yield the objects of a JSON-lines file, without its blank lines."""
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}, row {number}"
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(
                    f"{where}: not JSON ({error.msg} at column {error.colno}); "
                    "expected one object a line"
                ) from error
            except (ValueError, RecursionError) as error:  # thousands of digits or brackets
                raise InputError(f"{where}: not readable JSON ({error})") from error
            if not isinstance(record, dict):
                raise InputError(f"{where}: expected an object, found {type(record).__name__}")
            yield where, record


def read_csv(path: Path) -> Iterator[Record]:
    """Yield the records of a CSV file with a header; row 1 is the first record below the header."""
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        twice = [name for name, n in Counter(reader.fieldnames or ()).items() if n > 1]
        if twice:
            raise InputError(f"{path}: two columns are named '{twice[0]}'")
        try:
            for number, record in enumerate(reader, 1):
                if None in record:  # DictReader's key for fields beyond the header
                    raise InputError(
                        f"{path}, row {number}: more fields than the header has columns"
                    )
                yield f"{path}, row {number}", record
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num}: not CSV ({error})") from error


def read_parquet(path: Path) -> Iterator[Record]:
    """Yield the records of a parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a parquet file ({str(error).splitlines()[0]})") from error
    for number, record in enumerate(table.to_pylist(), 1):
        yield f"{path}, row {number}", record


READERS = {".jsonl": read_jsonl, ".json": read_jsonl, ".csv": read_csv, ".parquet": read_parquet}


def read_file(path: Path, key: str) -> list[Record]:
    """Return the records of a jsonl, csv or parquet file; `key` names the setting in an error."""
    if not path.is_file():
        raise InputError(f"{key}: no file {path}")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{key}: {path}: expected one of {', '.join(READERS)}")
    try:
        return list(reader(path))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start}: {error.reason})") from error
