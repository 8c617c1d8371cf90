"""Leases: one process at a time makes a run or a fine-tuning, among all hosts of one file system.

A lease is a folder that holds one file, the record of the owner. The name of the file is a token
that no later owner uses again:

    .locks/NAME.lock/TOKEN    {"host": …, "pid": …, …}; the owner touches the file while the owner lives

Why two processes never own a lease, and why a waiter never removes a fresh lease as a stale one:

- A process acquires a lease by renaming a folder that already holds the record onto NAME.lock. The
  file system renames onto a folder only where that folder is absent or empty, in one step. One of
  many processes therefore wins, and no process reads half a record.
- A process takes a stale lease over, or releases its own, by removing NAME.lock/TOKEN. A waiter that
  judged TOKEN stale and acts late removes nothing, because the lease that stands there by then has
  another token. Nothing has to be put back.
- A process that dies between two steps leaves an empty folder, which is a free lease.

Leases use rename alone. Rename is atomic on network file systems too; advisory locks may not work there.

filelock.SoftFileLease does not replace this module. Found with filelock 4.2.12 and 4.3.1 on Linux:
- Where the file system refuses RENAME_EXCHANGE, as NFS does, no waiter takes over from a killed owner.
- An owner that is killed between creating its file and writing the record blocks the lease for ever.
- While the parent of a killed owner has not waited for the owner, waiters wait the whole lease duration.
- A live owner on another machine with the same host name loses its lease at once.
- A live owner whose record is damaged loses its lease after 2 s.
- A process that does not wait never takes over a silent lease of another host. `owner` does not say
  whether the owner lives, and `force_break` removes a fresh lease too.
- `compromise` tells a paused owner of its loss only at a second heartbeat; no call renews a lease.
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
STALE = 60.0  # seconds without a touch after which waiters count the owner as gone
POLL = 0.5  # seconds between two looks of a waiter at the lease
held: list[Lease] = []  # the leases that this process holds now


class LeaseLost(RuntimeError):
    """Another process took the lease over, because the owner did not touch the lease for too long."""


def machine() -> str:
    """Return a name that two processes share exactly if each can see whether the other is alive."""
    try:  # containers can share a host name without seeing each other's processes
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return socket.gethostname()


def start_ticks(pid: int) -> int | None:
    """Return the start of a process in kernel ticks since the boot; None where unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:  # not Linux, or no such process
        return None
    return int(stat.rpartition(b")")[2].split()[19])  # field 22; a process name can hold blanks


def record_of_this_process() -> dict[str, Any]:
    """Return the record of this process; the start tells this process from a later one with the same pid."""
    return {
        "host": socket.gethostname(),
        "machine": machine(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "ticks": start_ticks(os.getpid()),
    }


def is_gone(record: dict[str, Any]) -> bool:
    """Return whether the owner has certainly ended: its process ran on this machine and no longer exists."""
    if record.get("machine") != machine():
        return False
    try:
        process = psutil.Process(record["pid"])
        # the kernel lists a killed child until its parent process has waited for the child
        if process.status() == psutil.STATUS_ZOMBIE:
            return True
        ticks = start_ticks(process.pid)
        if ticks is not None and record.get("ticks") is not None:
            return ticks != record["ticks"]
        # psutil counts from the time of the boot, and a step of the clock moves that time
        return abs(process.create_time() - record["started"]) > 2
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


def file_time(file: Path) -> float:
    """Touch a file and return the present time of the file system's clock, in seconds."""
    os.utime(file)
    return file.stat().st_mtime


def look(path: Path) -> tuple[Path, dict[str, Any], float] | None:
    """Return the file of a lease's record, the record, and its last touch; None for a free lease."""
    try:
        # NFS keeps removed files as .nfs…, and answers from its cache unless the file is opened
        file = next(f for f in path.iterdir() if not f.name.startswith("."))
        with file.open(encoding="utf-8") as stream:
            touched = os.fstat(stream.fileno()).st_mtime
            record = json.load(stream)
    except (FileNotFoundError, NotADirectoryError, StopIteration):
        return None
    except ValueError:  # damaged: the last touch alone decides whether the lease is stale
        record = {}
    return file, record, touched


def is_stale(record: dict[str, Any], touched: float, now: float) -> bool:
    """Return whether the owner of a lease is gone; both times come from the file system, in seconds."""
    return now - touched > STALE or is_gone(record)


def holder(path: Path) -> dict[str, Any] | None:
    """Return the record of the live owner of a lease, or None where no live process owns the lease."""
    found = look(path)
    if found is None:
        return None
    _, record, touched = found
    scratch = path.parent / uuid.uuid4().hex
    try:
        scratch.touch()
        now = file_time(scratch)
        scratch.unlink()
    except OSError:  # a read-only store
        now = time.time()
    return None if is_stale(record, touched, now) else record


def enter(own: Path, path: Path) -> bool:
    """Rename the own folder to the lease, and return whether the lease was free."""
    try:
        own.rename(path)
    except NotADirectoryError:  # an earlier version left an empty file here
        path.unlink(missing_ok=True)
        return False
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def acquire(own: Path, path: Path, wait: bool) -> bool:
    """Rename the own folder to the lease as soon as no live process owns the lease.

    Returns True. With `wait` false, returns False instead where a live process owns the lease.
    """
    (record,) = own.iterdir()
    said = False
    while not enter(own, path):
        now = file_time(record)
        if (found := look(path)) is None:  # free again, or NFS is still removing the file
            time.sleep(POLL / 10)
            continue
        file, other, touched = found
        if is_stale(other, touched, now):
            with suppress(FileNotFoundError):  # another waiter was first
                file.unlink()
                log.warning("%s: took over from a process that has ended or is silent", path.stem)
            continue
        if not wait:
            return False
        if not said:
            log.info("waiting: another process is making %s", path.stem)
            said = True
        time.sleep(POLL)
    return True


class Lease:
    """A lease that this process holds; a thread touches the record until the lease is released."""

    def __init__(self, path: Path, token: str) -> None:
        self.path, self.file, self.pid = path, path / token, os.getpid()
        self.check()  # a process that was suspended just now may have lost the lease already
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.beat, name=f"lease {path.stem}", daemon=True)
        self.thread.start()
        held.append(self)

    def beat(self) -> None:
        """Touch the record until this process releases or loses the lease."""
        while not self.done.wait(BEAT):
            try:
                self.check()
            except LeaseLost as error:
                log.error("%s", error)
                return
            except OSError as error:  # the file system does not answer for a moment
                log.warning("cannot touch %s (%s)", self.file, error)

    def check(self) -> None:
        """Touch the record. Raises LeaseLost where this process no longer owns the lease."""
        try:
            os.utime(self.file)
        except FileNotFoundError:
            raise LeaseLost(
                f"{self.path.stem}: another process took over, because this process was silent for "
                f"more than {STALE:g} s; run the same command to wait for the other process"
            ) from None

    def release(self) -> None:
        """Release the lease if this process still owns it; a forked child leaves its parent's lease."""
        if os.getpid() != self.pid:
            return
        held.remove(self)
        self.done.set()
        self.thread.join()
        with suppress(FileNotFoundError):
            self.file.unlink()
        with suppress(OSError):  # not empty: the next owner holds the lease already
            self.path.rmdir()


def check() -> None:
    """Touch all leases of this process. Raises LeaseLost where this process has lost one of them."""
    for lease in tuple(held):
        lease.check()


def take(path: Path, wait: bool) -> Lease | None:
    """Return the lease at `path`; with `wait` false, None where a live process owns the lease."""
    token = uuid.uuid4().hex
    own = path.parent / token
    own.mkdir(parents=True)
    try:
        (own / token).write_text(json.dumps(record_of_this_process()), encoding="utf-8")
        return Lease(path, token) if acquire(own, path, wait) else None
    except BaseException:  # interrupts too: the process of a notebook lives on
        with suppress(OSError):
            (path / token).unlink()
        raise
    finally:
        shutil.rmtree(own, ignore_errors=True)  # absent where the folder became the lease


@contextmanager
def hold(path: Path) -> Iterator[Lease]:
    """Hold the lease at `path`; other processes that want the lease wait."""
    lease = take(path, wait=True)
    assert lease is not None
    try:
        yield lease
    finally:
        lease.release()


@contextmanager
def at_once(path: Path) -> Iterator[bool]:
    """Hold the lease at `path` if no live process owns the lease, and yield whether this process holds it."""
    lease = take(path, wait=False)
    try:
        yield lease is not None
    finally:
        if lease is not None:
            lease.release()
