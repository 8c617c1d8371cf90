"""Find and delete parts of a store that can be rebuilt or are unused.

These are caches, fine-tuned weights, partial runs, locks of killed processes, and folders of finished jobs.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from skillgraft.runtime import leases
from skillgraft.runtime.files import read_json
from skillgraft.store import checksums
from skillgraft.store.folders import Store
from skillgraft.store.names import RECORD, RUN_FILE

READ_BY_RUNS = ("cache", "fine-tuned weights")  # kinds of items that any run may read


@dataclass(frozen=True)
class Item:
    """A folder that can be deleted, its size in bytes, and the name of the lock that guards the folder."""

    kind: str
    folder: Path
    bytes: int
    lock: str | None = None


def freeable(store: Store) -> list[Item]:
    """Return the folders that can be deleted now.

    Complete runs, sweeps, and the folders of live processes are left out. While any run is being made,
    fine-tuned weights and the cache of digests are left out too, since the run may read them next.
    """
    found: list[tuple[str, Path, str | None]] = []
    if not busy(store):
        found += [("cache", folder, "cache") for folder in [store.cache] if folder.is_dir()]
        found += [
            ("fine-tuned weights", folder, f"finetuned-{folder.name}")
            for folder in below(store.root / ".finetuned")
        ]
    found += [
        ("partial run", folder, guard)
        for folder in below(store.root / ".partial")
        if not held(store, guard := folder.name.removesuffix(".old"))
        and not set_aside(store, folder)
    ]
    found += [
        ("lock", path, path.stem)  # of a killed process, whose partial run may be deleted already
        for path in below(store.root / ".locks")
        if path.suffix == ".lock" and not held(store, path.stem)
    ]
    found += [
        ("lock", folder, None)  # of a process that was killed while it waited for the lock
        for folder in below(store.root / ".locks")
        if folder.suffix != ".lock" and leases.look(folder) and leases.holder(folder) is None
    ]
    found += [
        ("job folder", job, None) for job in below(store.root / ".jobs") if is_finished(store, job)
    ]
    return [Item(kind, folder, size(folder), guard) for kind, folder, guard in found]


def free(store: Store, item: Item) -> bool:
    """Delete a folder, and return whether the folder was deleted.

    A folder that another process has meanwhile locked, or may read, is kept.
    """
    if item.lock is None:
        remove(item.folder)
        return True
    with leases.at_once(store.lease(item.lock)) as mine:
        # a process that comes after this check waits for the lock, or repeats the fine-tuning
        if not mine or (item.kind in READ_BY_RUNS and busy(store, but=item.lock)):
            return False
        if item.kind != "lock":  # releasing a lock deletes its folder
            remove(item.folder)
        if item.kind == "partial run" and item.folder.name == item.lock:
            store.unfinished(item.lock).unlink(missing_ok=True)
    return True


def remove(folder: Path) -> None:
    """Delete a folder and its content, if the folder still exists."""
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)


def below(folder: Path) -> list[Path]:
    """Return the folders directly inside a folder, sorted by name."""
    return sorted(f for f in folder.glob("*") if f.is_dir())


def size(folder: Path) -> int:
    """Return the size of all files below a folder, in bytes."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and not f.is_symlink())


def held(store: Store, name: str) -> bool:
    """Return whether a live process holds the lock of the run or fine-tuning of a name."""
    return leases.holder(store.lease(name)) is not None


def busy(store: Store, but: str | None = None) -> bool:
    """Return whether a live process holds any lock of the store, other than the lock named `but`."""
    locks = (store.root / ".locks").glob("*.lock")
    return any(path.stem != but and leases.holder(path) is not None for path in locks)


def set_aside(store: Store, folder: Path) -> bool:
    """Return whether a folder is the only copy of a complete run.

    `Store.publish` moves a run to NAME.old while it replaces the run, and may be killed then.
    """
    name = folder.name.removesuffix(".old")
    return name != folder.name and checksums.is_complete(folder) and not store.run(name).exists()


def is_finished(store: Store, job: Path) -> bool:
    """Return whether all runs of a job folder are complete, and listed in the record of their sweep."""
    jobs = [f for f in below(job) if f.name.isdigit()] or [job]  # numbers: the jobs of a sweep
    files = [folder / RUN_FILE for folder in jobs]
    if not all(file.is_file() for file in files):
        return False
    names = [read_json(file)["id"] or "" for file in files]  # null: failed before it had an id
    records = [read_json(file) for file in store.sweeps.glob(f"*/{RECORD}")]
    known = [set(r["runs"]) for r in records if Path(r["jobs"]).name == job.name]
    whole = all(name and checksums.is_complete(store.run(name)) for name in names)
    return whole and all(runs >= set(names) for runs in known)
