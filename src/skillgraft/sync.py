"""W&B's offline runs of a store, sent later, also from a store that was moved.

An offline record is a transaction log: messages in the log format of LevelDB. It names a run's media
relative to itself but its artifact files by absolute path. Where these paths are no longer true, a
copy of the record with the true ones is sent; the record itself stays as it is.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skillgraft import store, sweep
from skillgraft.errors import InputError
from skillgraft.store import Store

# Of the log: a preface (":W&B", a magic number, a version), then blocks; a record is cut into pieces
# that end with their block, each with a checksum, its length and its place in the record.
PREFACE, BLOCK, HEAD = 7, 2**15, struct.Struct("<IHB")
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4
BEFORE, LATER, SENT, REFUSED = "sent before", "to send", "sent", "not sent"  # what became of a run
FINE = (BEFORE, LATER, SENT)


@dataclass(frozen=True)
class Offline:
    """One offline run: its name, its record, and the folder of the artifact files that it names."""

    name: str
    record: Path
    staged: Path

    @property
    def synced(self) -> bool:
        """Whether W&B's own mark says that it was sent."""
        return mark(self.record).exists()


def mark(record: Path) -> Path:
    """Return the file that W&B puts beside the record of a run that was sent."""
    return record.with_name(f"{record.name}.synced")


@dataclass(frozen=True)
class Checked:
    """What a record refers to, and the log with true paths: None where the record's own are true.

    `wrong` says why it cannot be sent: it is damaged, or a file is missing.
    """

    files: list[Path]
    log: bytes | None
    wrong: str | None = None


# ---------------------------------------------------------------------------------------------
# The transaction log


def read_log(log: bytes) -> list[bytes]:
    """Return the records of a transaction log; raises ValueError where it is cut off or altered."""
    if log[:4] != b":W&B":
        raise ValueError("not a W&B record")
    records, begun, at = [], b"", PREFACE
    while at < len(log):
        if (left := BLOCK - at % BLOCK) < HEAD.size:
            at += left
            continue
        if at + HEAD.size > len(log):
            raise ValueError(f"cut off at byte {at}")
        checksum, size, kind = HEAD.unpack_from(log, at)
        part = log[at + HEAD.size : at + HEAD.size + size]
        if len(part) < size or checksum != zlib.crc32(bytes([kind]) + part):
            raise ValueError(f"cut off or altered at byte {at}")
        at += HEAD.size + size
        begun += part
        if kind in (WHOLE, LAST):
            records.append(begun)
            begun = b""
    if begun:
        raise ValueError("its last record has no end")
    return records


def write_log(preface: bytes, records: Sequence[bytes]) -> bytes:
    """Return the transaction log of some records: what read_log reads."""
    log = bytearray(preface)
    for record in records:
        rest, begun = record, False
        while True:
            if (left := BLOCK - len(log) % BLOCK) < HEAD.size:
                log += bytes(left)
                left = BLOCK
            part, rest = rest[: left - HEAD.size], rest[left - HEAD.size :]
            kind = (LAST if begun else WHOLE) if not rest else (MIDDLE if begun else FIRST)
            log += HEAD.pack(zlib.crc32(bytes([kind]) + part), len(part), kind) + part
            begun = True
            if not rest:
                break
    return bytes(log)


def check(run: Offline) -> Checked:
    """Return what an offline run's record refers to, as it is found now."""
    # its names are made when it is imported, by the version of protobuf
    from wandb.proto.wandb_internal_pb2 import Record

    log = run.record.read_bytes()
    try:
        records = read_log(log)
    except ValueError as error:
        return Checked([], None, f"damaged: {run.record}: {error}")
    named: list[Path] = []
    moved = False
    for n, content in enumerate(records):
        record = Record.FromString(content)
        match record.WhichOneof("record_type"):
            case "files":
                named += [run.record.parent / "files" / file.path for file in record.files.files]
            case "artifact":
                for entry in record.artifact.manifest.contents:
                    if not entry.local_path:  # a reference
                        continue
                    here = run.staged / "artifacts" / "staging" / Path(entry.local_path).name
                    if here.is_file() and str(here) != entry.local_path:
                        entry.local_path, moved = str(here), True
                    named.append(Path(entry.local_path))
                records[n] = record.SerializeToString() if moved else content
    files = list(dict.fromkeys(named))
    missing = [file for file in files if not file.is_file()]
    there = [file for file in files if file not in missing]
    return Checked(
        there,
        write_log(log[:PREFACE], records) if moved else None,
        f"missing: {missing[0]}" if missing else None,
    )


# ---------------------------------------------------------------------------------------------
# The offline runs of a store


def plan(place: Store) -> list[tuple[str | None, list[Offline]]]:
    """Return the offline runs of whole runs by sweep: a sweep's in its order, then its summary.

    The sweep that was started first comes first and has the runs that later ones share; runs of no
    sweep are the last group.
    """
    runs = {status["id"]: place.run(status["id"]) for status in place.runs()}
    records = [(store.read_json(f), f.parent) for f in place.sweeps.glob("*/record.json")]
    groups: list[tuple[str | None, list[Offline]]] = []
    for record, folder in sorted(records, key=lambda found: found[0]["started"]):
        ids = sweep.run_ids(record, sweep.jobs_of(record))
        own = {name: runs.pop(name) for name in ids if name in runs}
        found = [*offline(place, own), *of(folder.name, folder, folder / "wandb" / "staged")]
        groups.append((folder.name, found))
    groups.append((None, list(offline(place, runs))))
    return [(name, found) for name, found in groups if found]


def offline(place: Store, runs: dict[str, Path]) -> Iterator[Offline]:
    """Yield the offline runs of the folders of whole runs."""
    for name, folder in runs.items():
        yield from of(name, folder, place.staged(name.rpartition("-")[2]))


def of(name: str, folder: Path, staged: Path) -> list[Offline]:
    """Return the offline run in a folder, if there is one: an online one was sent when it was made."""
    found = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    return [Offline(name, record, staged) for record in found]


def deliver(
    place: Store, entity: str | None, project: str | None, dry_run: bool
) -> list[dict[str, Any]]:
    """Send the offline runs of a store sweep by sweep, or with `dry_run` only look, and return a line a run.

    `sweep`, `run`, `state` (one of FINE, or what is wrong) and `files`, how many it refers to. Raises
    InputError where there is none.
    """
    if not (groups := plan(place)):
        raise InputError(f"{place.root}: no offline W&B run in it")
    lines = []
    for name, runs in groups:
        checked = {run: check(run) for run in runs if not run.synced}
        ready = [(run, found) for run, found in checked.items() if not found.wrong]
        unsent = [] if dry_run or not ready else send(ready, entity, project)
        for run in runs:
            if (found := checked.get(run)) is None:
                state = BEFORE
            else:
                state = found.wrong or (LATER if dry_run else REFUSED if run in unsent else SENT)
            files = None if found is None else len(found.files)
            lines.append({"sweep": name, "run": run.name, "state": state, "files": files})
    return lines


def send(
    runs: Sequence[tuple[Offline, Checked]], entity: str | None, project: str | None
) -> list[Offline]:
    """Send offline runs by `wandb sync`, and return those that it did not mark as sent."""
    with tempfile.TemporaryDirectory(prefix="skillgraft-") as scratch:
        for run, checked in runs:
            home = run.record.parent
            copy = Path(scratch) / home.name
            if checked.log is None:
                copy.symlink_to(home)
                continue
            copy.mkdir()
            (copy / "files").symlink_to(home / "files")
            (copy / run.record.name).write_bytes(checked.log)
        options = {"--entity": entity, "--project": project}
        given = [word for name, value in options.items() if value for word in (name, value)]
        # its own program: W&B has no function for this that is public
        command = [sys.executable, "-m", "wandb", "sync", *given, scratch]
        subprocess.run(command, check=False)
        for run, checked in runs:
            sent = mark(Path(scratch) / run.record.parent.name / run.record.name)
            if checked.log is not None and sent.exists():
                shutil.copyfile(sent, mark(run.record))
    return [run for run, _ in runs if not run.synced]
