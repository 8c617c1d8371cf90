"""The store's index: what the runs' folders say, in one file that can be made again at any time.

`STORE/.cache/index.sqlite` holds a row a whole run: its status record and its metrics by name. It is
brought up to date before every answer: a row counts as long as the `status.json` that it was read
from is the same file. A file that is damaged, or of another version, is made anew without a word.

It is SQLite in its rollback mode: one row more costs one row, several processes may write, and a
reader sees all of a change or nothing. Its other mode, WAL, needs memory that all share, so one
host. Where a file system has no locks, or a store may only be read, the index is in memory.
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

VERSION = 2  # of the tables
SETTLED = 2.0  # seconds: no file system has coarser times
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
    """Return what tells a file or folder from its next version, or None where there is none."""
    try:
        stat = os.stat(path)  # noqa: PTH116  for thousands of folders
    except (FileNotFoundError, NotADirectoryError):
        return None
    return f"{stat.st_mtime_ns} {stat.st_ino} {stat.st_size}"


def list_stamps(root: Path) -> dict[str, str]:
    """Return the stamp of every whole run by the name of its folder."""
    with os.scandir(root) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".")]
    found = {name: fingerprint(f"{root}/{name}/{STATUS}") for name in names}
    # None: not a run, or just being replaced by force=true
    return {name: value for name, value in found.items() if value is not None}


def entry(root: Path, name: str, stamped: str) -> tuple[str | None, ...] | None:
    """Return a run's row of the index, or None where the folder goes away at this moment."""

    def read(file: str) -> Any:
        return json.loads((root / name / file).read_bytes())

    try:
        status = read(STATUS)
    except FileNotFoundError:
        return None
    try:
        row = json.dumps(row_of(status, read(METRICS), read(OVERLAP)))
    except FileNotFoundError:  # a run by its status alone: nothing to show in a table
        row = None
    return (name, stamped, json.dumps(status), row, *(status.get(key) for key in KEYS))


def version(db: sqlite3.Connection) -> int:
    """Return the version of the tables, 0 of an empty file."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def update(db: sqlite3.Connection, root: Path, scanning: bool) -> None:
    """Bring the index up to date with the folders.

    Without `scanning` an index that has seen the root as it is now counts as up to date: runs come,
    go and are replaced by renames in the root, which change its time.
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
    # Two changes within one tick of the file system's clock have one time: it tells them apart only
    # when the tick was over before the folders were read.
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
    """Return the time in seconds by the clock of the store's file system, 0 where it is not known."""
    file = root / ".cache" / "clock"
    try:
        file.touch()
        return file_time(file)
    except OSError:  # a store that may only be read
        return 0.0


@functools.cache
def memory_index(root: Path) -> sqlite3.Connection:  # noqa: ARG001  one for each root
    """Return this process's own index of a store whose file cannot be used."""
    return sqlite3.connect(":memory:", check_same_thread=False)


def query(
    root: Path, what: str, arguments: Sequence[Any] = (), scanning: bool = True
) -> list[tuple[Any, ...]]:
    """Return the rows of the index that a SELECT finds, after bringing it up to date."""
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
    """Return name, stamp and status as JSON of the whole runs with this value of a key of KEYS."""
    what = f"SELECT name, stamp, status FROM runs WHERE {key} = ? ORDER BY name"
    found = query(root, what, (value,), scanning=False)
    if any(fingerprint(f"{root}/{name}/{STATUS}") != stamped for name, stamped, _ in found):
        found = query(root, what, (value,))  # altered by hand, below the root
    return cast(list[tuple[str, str, str]], found)


def runs(root: Path, key: str | None = None, value: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the status record of every whole run by name, or of those with this value of a key of KEYS."""
    if key is None:
        found = query(root, "SELECT status FROM runs ORDER BY name")
    else:
        found = [(status,) for _, _, status in rows_where(root, key, value or "")]
    for (status,) in found:
        yield json.loads(status)


def rows(root: Path) -> Iterator[tuple[str, str]]:
    """Yield the name of every whole run's folder and its row as JSON, by name."""
    yield from query(root, "SELECT name, row FROM runs WHERE row NOT NULL ORDER BY name")


def columns(root: Path, names: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return these columns of every whole run's row, by name, without reading the others."""
    paths = [f'$."{name}"' for name in names]
    chosen = ", ".join(["json_extract(row, ?)"] * len(names))
    return query(root, f"SELECT {chosen} FROM runs WHERE row NOT NULL ORDER BY name", paths)


def names(root: Path) -> list[str]:
    """Return the names of the whole runs, without looking into folders while nothing came or went."""
    return [name for (name,) in query(root, "SELECT name FROM runs ORDER BY name", scanning=False)]
