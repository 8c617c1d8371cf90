"""Leases: who makes a run or a fine-tuning, among processes and hosts on one file system.

A lease is a folder with one file in it, the owner's record, whose name is a token that is never
used again:

    .locks/NAME.lock/TOKEN    {"host": …, "pid": …, …}; the owner touches it as long as it lives

Why no two own it, and no fresh lease is ever taken for a stale one:

- It is acquired by renaming a folder that already holds the record onto NAME.lock. A rename onto a
  folder succeeds only where that is absent or empty, in one step, so of many one wins, and nobody
  sees half a record.
- It is taken over, and released, by removing NAME.lock/TOKEN, and then acquired as ever. The path has
  the token in it: whoever decided that TOKEN is stale and comes late removes nothing, since the lease
  that stands there meanwhile has another token. So nothing need be put back.
- Whoever dies in between leaves an empty folder, which is free.

This needs rename alone, which is atomic on network file systems too, where advisory locks may not be.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

log = logging.getLogger(__name__)
BEAT = 10.0  # seconds between two touches of the owner
STALE = 60.0  # seconds without a touch after which the owner counts as gone
POLL = 0.5  # seconds between two looks of a waiter
held: list[Lease] = []  # by this process at this moment


class LeaseLost(RuntimeError):
    """The process did not touch its lease for so long that another one has taken it over."""


def machine() -> str:
    """Return what two processes share exactly if each can see whether the other is alive."""
    try:  # containers may share a host name and still not see each other's processes
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # no Linux
        return socket.gethostname()


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in the kernel's ticks since the boot; None where that is not told."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:  # no Linux, or no such process
        return None
    return int(stat.rpartition(b")")[2].split()[19])  # 22nd of all; a name may have blanks


def own_record() -> dict[str, Any]:
    """Return what a lease says of this process; its start tells it from a later one of the same pid."""
    return {
        "host": socket.gethostname(),
        "machine": machine(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "ticks": start_ticks(os.getpid()),
    }


def is_gone(record: dict[str, Any]) -> bool:
    """Return whether the owner is known to have ended: its process was on this machine and is no more."""
    if record.get("machine") != machine():
        return False
    try:
        process = psutil.Process(record["pid"])
        # a killed child that nobody has waited for is still listed
        if process.status() == psutil.STATUS_ZOMBIE:
            return True
        ticks = start_ticks(process.pid)
        if ticks is not None and record.get("ticks") is not None:
            return ticks != record["ticks"]
        # counted from the boot, whose own time moves with the clock
        return abs(process.create_time() - record["started"]) > 2
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


def file_time(file: Path) -> float:
    """Touch a file and return its time in seconds: now, by the clock of the file system."""
    os.utime(file)
    return file.stat().st_mtime


def look(path: Path) -> tuple[Path, dict[str, Any], float] | None:
    """Return the record's file of a lease, the record and its last touch, or None where it is free."""
    try:
        file = next(f for f in path.iterdir() if not f.name.startswith("."))  # .nfs…: being removed
        with file.open(encoding="utf-8") as stream:  # opened: else NFS may answer from its memory
            touched = os.fstat(stream.fileno()).st_mtime
            record = json.load(stream)
    except (FileNotFoundError, NotADirectoryError, StopIteration):
        return None
    except ValueError:  # damaged: only its time is left to judge it by
        record = {}
    return file, record, touched


def is_stale(record: dict[str, Any], touched: float, now: float) -> bool:
    """Return whether a lease has outlived its owner; both times are the file system's, in seconds."""
    return now - touched > STALE or is_gone(record)


def holder(path: Path) -> dict[str, Any] | None:
    """Return the record of the live owner of a lease, or None where there is none."""
    found = look(path)
    if found is None:
        return None
    _, record, touched = found
    scratch = path.parent / uuid.uuid4().hex
    try:
        scratch.touch()
        now = file_time(scratch)
        scratch.unlink()
    except OSError:  # a store that may only be read
        now = time.time()
    return None if is_stale(record, touched, now) else record


def enter(own: Path, path: Path) -> bool:
    """Return whether the lease was free and now has this process's folder in its place."""
    try:
        own.rename(path)
    except NotADirectoryError:  # the empty file that an earlier version left here
        path.unlink(missing_ok=True)
        return False
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def acquire(own: Path, path: Path, wait: bool) -> bool:
    """Rename the own folder to the lease, as soon as nobody alive has it, and return whether that was done.

    Not to `wait` is to leave it where somebody has it.
    """
    (record,) = own.iterdir()
    said = False
    while not enter(own, path):
        now = file_time(record)
        if (found := look(path)) is None:  # free again, or NFS still removes its file
            time.sleep(POLL / 10)
            continue
        file, other, touched = found
        if is_stale(other, touched, now):
            with suppress(FileNotFoundError):  # another waiter was first
                file.unlink()
                log.warning("%s: taken over from a process that is gone or silent", path.stem)
            continue
        if not wait:
            return False
        if not said:
            log.info("waiting: another process is making %s", path.stem)
            said = True
        time.sleep(POLL)
    return True


class Lease:
    """A lease that this process has, touched by a thread until it is released."""

    def __init__(self, path: Path, token: str) -> None:
        self.path, self.file, self.pid = path, path / token, os.getpid()
        self.check()  # a process that was suspended just now may be late already
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.beat, name=f"lease {path.stem}", daemon=True)
        self.thread.start()
        held.append(self)

    def beat(self) -> None:
        """Touch the record until the lease is released or turns out to be another's."""
        while not self.done.wait(BEAT):
            try:
                self.check()
            except LeaseLost as error:
                log.error("%s", error)
                return
            except OSError as error:  # a file system that is away for a moment
                log.warning("%s: cannot be touched (%s)", self.file, error)

    def check(self) -> None:
        """Touch the record; raises LeaseLost where the lease is no longer this process's."""
        try:
            os.utime(self.file)
        except FileNotFoundError:
            raise LeaseLost(
                f"{self.path.stem}: another process took over, since this one was silent for "
                f"more than {STALE:g} s"
            ) from None

    def release(self) -> None:
        """Give the lease up if it is still this process's; a forked child leaves its parent's alone."""
        if os.getpid() != self.pid:
            return
        held.remove(self)
        self.done.set()
        self.thread.join()
        with suppress(FileNotFoundError):
            self.file.unlink()
        with suppress(OSError):  # not empty: the next owner is there already
            self.path.rmdir()


def check() -> None:
    """Touch all leases of this process; raises LeaseLost where one of them is no longer its own."""
    for lease in tuple(held):
        lease.check()


def take(path: Path, wait: bool) -> Lease | None:
    """Return the lease at `path`, or None where somebody has it and one is not to wait."""
    token = uuid.uuid4().hex
    own = path.parent / token
    own.mkdir(parents=True)
    try:
        (own / token).write_text(json.dumps(own_record()), encoding="utf-8")
        return Lease(path, token) if acquire(own, path, wait) else None
    except BaseException:  # interrupted, too: in a notebook the process lives on
        with suppress(OSError):
            (path / token).unlink()
        raise
    finally:
        shutil.rmtree(own, ignore_errors=True)  # not there where it became the lease


@contextmanager
def hold(path: Path) -> Iterator[Lease]:
    """Hold the lease at `path`; whoever else wants it waits."""
    lease = take(path, wait=True)
    assert lease is not None
    try:
        yield lease
    finally:
        lease.release()


@contextmanager
def at_once(path: Path) -> Iterator[bool]:
    """Hold the lease at `path` if nobody alive has it; yield whether it is held."""
    lease = take(path, wait=False)
    try:
        yield lease is not None
    finally:
        if lease is not None:
            lease.release()
