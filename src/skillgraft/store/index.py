"""The index of a store: the records of all complete runs in one file, which can be rebuilt at any time.

`STORE/.cache/index.sqlite` holds one row per complete run: its status record and its metrics by name.
The index is updated before every answer. A row is valid as long as the run's `status.json` is the same
file. A damaged index, or an index of another version, is rebuilt without a message.

The index is an SQLite file in rollback mode: adding a run writes one row, several processes may write,
and a reader sees a change completely or not at all. SQLite's WAL mode is not used, because WAL needs
shared memory, and so a single host. Where the file system has no locks, or the store is read-only, the
index is kept in memory.
"""

from __future__ import annotations

import functools
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

from skillgraft.runtime.leases import file_time
from skillgraft.store.metric_names import row_of
from skillgraft.store.names import METRICS, OVERLAP, STATUS

VERSION = 2  # version of the tables below
SETTLED = 2.0  # seconds: the coarsest resolution of a file system's times (FAT)
KEYS = (
    "same_but_task",
    "same_but_selector",
    "finetuned",
    "region",
    "stage",
)  # by which jobs look for other runs
TABLES = (
    "DROP TABLE IF EXISTS runs",
    "DROP TABLE IF EXISTS seen",
    "CREATE TABLE runs (name TEXT PRIMARY KEY, stamp TEXT, status TEXT, row TEXT,"
    f" {', '.join(f'{key} TEXT' for key in KEYS)}) WITHOUT ROWID",
    "CREATE TABLE seen (root TEXT)",
    *(f"CREATE INDEX by_{key} ON runs ({key})" for key in KEYS),
    f"PRAGMA user_version = {VERSION}",
)


def fingerprint(path: str | Path) -> str | None:
    """Return the modification time, inode and size of a file or folder as text, or None where it is missing.

    A file that is replaced gets another fingerprint.
    """
    try:
        stat = os.stat(path)  # noqa: PTH116  for thousands of folders
    except (FileNotFoundError, NotADirectoryError):
        return None
    return f"{stat.st_mtime_ns} {stat.st_ino} {stat.st_size}"


def list_stamps(root: Path) -> dict[str, str]:
    """Return the fingerprint of `status.json` of every complete run, by the name of the run's folder."""
    with os.scandir(root) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".")]
    found = {name: fingerprint(f"{root}/{name}/{STATUS}") for name in names}
    # None: not a run, or a run that force=true is replacing at this moment
    return {name: value for name, value in found.items() if value is not None}


def entry(root: Path, name: str, stamped: str) -> tuple[str | None, ...] | None:
    """Return a run's row for the table `runs`, or None where the folder disappears at this moment."""

    def read(file: str) -> Any:
        return json.loads((root / name / file).read_bytes())

    try:
        status = read(STATUS)
    except FileNotFoundError:
        return None
    try:
        row = json.dumps(row_of(status, read(METRICS), read(OVERLAP)))
    except FileNotFoundError:  # a run with a status and no metrics has no row in result tables
        row = None
    return (name, stamped, json.dumps(status), row, *(status.get(key) for key in KEYS))


def version(db: sqlite3.Connection) -> int:
    """Return the version of the tables in a database, 0 for an empty file."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def update(db: sqlite3.Connection, root: Path, scanning: bool) -> None:
    """Update the index from the folders of the store.

    Without `scanning`, the index counts as up to date when the modification time of the root has not
    changed, since every new, deleted or replaced run is a rename inside the root.
    """
    if version(db) != VERSION:
        with db:
            db.execute("BEGIN IMMEDIATE")
            if version(db) != VERSION:  # else another process was first
                for statement in TABLES:
                    db.execute(statement)
    time = root.stat().st_mtime_ns
    seen = db.execute("SELECT root FROM seen").fetchone()
    if not scanning and seen == (str(time),):
        return
    # Two changes within one tick of the file system's clock have the same time. The time is reliable only
    # where the tick had ended before the folders were read.
    settled = clock(root) - time / 1e9 > SETTLED
    found, known = list_stamps(root), dict(db.execute("SELECT name, stamp FROM runs"))
    gone = [(name,) for name in known.keys() - found.keys()]
    new = [name for name, value in found.items() if known.get(name) != value]
    note = (str(time),) if settled else None
    if not gone and not new and seen == note:
        return
    rows = filter(None, (entry(root, name, found[name]) for name in new))
    marks = ", ".join("?" * (4 + len(KEYS)))
    with db:
        db.executemany("DELETE FROM runs WHERE name = ?", gone)
        db.executemany(f"INSERT OR REPLACE INTO runs VALUES ({marks})", rows)
        db.execute("DELETE FROM seen")
        db.executemany("INSERT INTO seen VALUES (?)", [note] if note else [])


def clock(root: Path) -> float:
    """Return the time in seconds by the clock of the store's file system, or 0 where it cannot be read.

    A network file system's clock may differ from the clock of this machine.
    """
    file = root / ".cache" / "clock"
    try:
        file.touch()
        return file_time(file)
    except OSError:  # a read-only store
        return 0.0


@functools.cache
def memory_index(root: Path) -> sqlite3.Connection:  # noqa: ARG001  one for each root
    """Return this process's index in memory, for a store whose index file cannot be used."""
    return sqlite3.connect(":memory:", check_same_thread=False)


def query(
    root: Path, what: str, arguments: Sequence[Any] = (), scanning: bool = True
) -> list[tuple[Any, ...]]:
    """Return the rows that a SELECT statement finds in the updated index."""
    if not root.is_dir():
        return []
    file = root / ".cache" / "index.sqlite"
    for _ in range(2):
        try:
            file.parent.mkdir(exist_ok=True)
            with closing(sqlite3.connect(file, timeout=60)) as db:
                update(db, root, scanning)
                return db.execute(what, arguments).fetchall()
        except (sqlite3.OperationalError, OSError):  # read-only, full, no locks
            break
        except sqlite3.DatabaseError:  # damaged
            for path in (file, file.with_name(f"{file.name}-journal")):
                path.unlink(missing_ok=True)
    update(memory_index(root), root, scanning)
    return memory_index(root).execute(what, arguments).fetchall()


def rows_where(root: Path, key: str, value: str) -> list[tuple[str, str, str]]:
    """Return (name, fingerprint, status as JSON) of the complete runs with a value of a key of KEYS."""
    what = f"SELECT name, stamp, status FROM runs WHERE {key} = ? ORDER BY name"
    found = query(root, what, (value,), scanning=False)
    if any(fingerprint(f"{root}/{name}/{STATUS}") != stamped for name, stamped, _ in found):
        # a status was edited by hand, which does not change the root's time
        found = query(root, what, (value,))
    return cast(list[tuple[str, str, str]], found)


def runs(root: Path, key: str | None = None, value: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the status records of all complete runs by name, or of the runs with a value of a key of KEYS."""
    if key is None:
        found = query(root, "SELECT status FROM runs ORDER BY name")
    else:
        found = [(status,) for _, _, status in rows_where(root, key, value or "")]
    for (status,) in found:
        yield json.loads(status)


def rows(root: Path) -> Iterator[tuple[str, str]]:
    """Yield the folder's name and the row of metrics as JSON of every complete run, by name."""
    yield from query(root, "SELECT name, row FROM runs WHERE row NOT NULL ORDER BY name")


def columns(root: Path, names: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return some columns of the row of every complete run, by the run's name, and read no others."""
    paths = [f'$."{name}"' for name in names]
    chosen = ", ".join(["json_extract(row, ?)"] * len(names))
    return query(root, f"SELECT {chosen} FROM runs WHERE row NOT NULL ORDER BY name", paths)


def names(root: Path) -> list[str]:
    """Return the names of all complete runs; folders are read only where the root's time has changed."""
    return [name for (name,) in query(root, "SELECT name FROM runs ORDER BY name", scanning=False)]
