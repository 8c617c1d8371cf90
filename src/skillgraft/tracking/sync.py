"""W&B's offline runs of a store, sent later, also from a store that was moved.

`wandb sync` sends the record of an offline run: its curves, values and media. The record names its
media relative to itself and has no artifact, so it can be sent from wherever the store is now. The
graft is logged as an artifact afterwards, from the run's own file. Before anything is sent, W&B's own
reader (`wandb leet inspect`) says what a record names: a store may be a stranger's, and a record can
name any file of this machine.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skillgraft.runtime.errors import InputError
from skillgraft.runtime.files import read_json
from skillgraft.store import sweep_records
from skillgraft.store.folders import Store
from skillgraft.store.names import GRAFT, RECORD
from skillgraft.tracking import wandb_names

log = logging.getLogger(__name__)

BEFORE, LATER, SENT, REFUSED = "sent before", "to send", "sent", "not sent"  # what became of a run
FINE = (BEFORE, LATER, SENT)
READERS = 8  # processes at most that read records at a time


@dataclass(frozen=True)
class Offline:
    """One offline run: its name, its id on W&B, its folder, and its record; a sweep has no graft."""

    name: str
    id: str
    folder: Path
    record: Path

    @property
    def graft(self) -> Path | None:
        """The graft to log as an artifact, if the run has one."""
        file = self.folder / GRAFT
        return file if file.is_symlink() or file.exists() else None

    @property
    def graft_mark(self) -> Path:
        """The file that says that the graft was logged."""
        return self.record.with_name(f"{self.record.name}.graft-synced")

    @property
    def record_sent(self) -> bool:
        """Whether W&B's own mark says that the record was sent."""
        return wandb_names.sent_mark(self.record).exists()

    @property
    def graft_sent(self) -> bool:
        """Whether there is no graft that still has to be sent."""
        return self.graft is None or self.graft_mark.exists()


@dataclass(frozen=True)
class Checked:
    """What a record says: the destination, the machine that made the run, and the files to send.

    `wrong` says why the run cannot be sent: its record is damaged or names what is not the run's own,
    or a file is missing.
    """

    entity: str | None = None
    project: str | None = None
    host: str | None = None
    files: list[Path] = field(default_factory=list)
    wrong: str | None = None


def read_record(record: Path) -> list[dict[str, Any]]:
    """Return the entries of an offline run's record; raises ValueError where it is cut off or altered."""
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(record.absolute())],
        capture_output=True,
        text=True,
        check=False,
        cwd=tempfile.gettempdir(),  # W&B writes its logs into a folder `wandb`, if there is one here
        env={**os.environ, "WANDB_ERROR_REPORTING": "false"},  # a dry run needs no network
    )
    said = (done.stderr.strip().splitlines() or ["cut off"])[-1]
    if done.returncode:
        raise ValueError(said)
    entries = [json.loads(line) for line in done.stdout.splitlines()]
    whole = [entry.get("num") for entry in entries] == list(range(1, len(entries) + 1))
    if not whole or not entries or entries[-1]["type"] != "exit":
        raise ValueError(said)
    return entries


def check(run: Offline) -> Checked:
    """Return what an offline run would send, as it is found now: only files of the run itself."""
    home = run.record.parent
    links = (path for path in (run.record, *home.rglob("*")) if path.is_symlink())
    for path in (*links, *(path for path in (home, run.graft) if path)):
        if path.resolve() != run.folder.resolve() / path.relative_to(run.folder):
            return Checked(wrong=f"a symbolic link, which is not sent: {path}")
    try:
        entries = read_record(run.record)
    except ValueError as error:
        return Checked(wrong=f"damaged: {run.record}: {error}")
    about = [entry["run"] for entry in entries if entry["type"] == "run"]
    if len(about) != 1 or about[0].get("run_id") != run.id:
        return Checked(wrong=f"the record of another run: {run.record}")
    (told,) = about
    target = (told.get("entity") or None, told.get("project") or None, told.get("host"))
    kept, wrong = home / "files", None
    inside = kept.resolve()
    files: dict[Path, None] = {}
    for entry in entries:
        if entry["type"] == "files":
            for name in (file["path"] for file in entry["files"].get("files", ())):
                file = kept / name
                here = file.resolve()  # `/` with an absolute name is that name alone
                if here != inside / name or not here.is_relative_to(inside):
                    wrong = wrong or f"not a file of the run: {name}"
                elif not file.is_file():
                    wrong = wrong or f"missing: {file}"
                else:
                    files[file] = None
        elif entry["type"] not in wandb_names.HARMLESS:
            wrong = wrong or f"may name files that are not the run's: {entry['type']}"
    if run.graft is not None:
        files[run.graft] = None
    return Checked(*target, list(files), wrong)


def check_all(runs: Sequence[Offline]) -> dict[Offline, Checked]:
    """Return what each of some offline runs would send; W&B's reader needs a process a record."""
    with ThreadPoolExecutor(min(READERS, os.cpu_count() or 1)) as pool:
        return dict(zip(runs, pool.map(check, runs), strict=True))


def plan(store: Store) -> list[tuple[str | None, list[Offline]]]:
    """Return the offline runs of whole runs by sweep: a sweep's in its order, then its summary.

    The sweep that was started first comes first and has the runs that later ones share; runs of no
    sweep are the last group.
    """
    runs = {status["id"]: store.run(status["id"]) for status in store.runs()}
    records = [(read_json(f), f.parent) for f in store.sweeps.glob(f"*/{RECORD}")]
    groups: list[tuple[str | None, list[Offline]]] = []
    for record, folder in sorted(records, key=lambda found: found[0]["started"]):
        ids = sweep_records.run_ids(record, sweep_records.jobs_of(record))
        own = {name: runs.pop(name) for name in ids if name in runs}
        digest = folder.name.rpartition("-")[2]
        found = [*offline(own), *of(folder.name, f"sweep-{digest}", folder)]
        groups.append((folder.name, found))
    groups.append((None, list(offline(runs))))
    return [(name, found) for name, found in groups if found]


def offline(runs: Mapping[str, Path]) -> Iterator[Offline]:
    """Yield the offline runs of the folders of whole runs."""
    for name, folder in runs.items():
        yield from of(name, name.rpartition("-")[2], folder)


def of(name: str, id: str, folder: Path) -> list[Offline]:
    """Return the offline run in a folder, if there is one: an online one was sent when it was made."""
    found = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    return [Offline(name, id, folder, record) for record in found]


def deliver(
    store: Store, entity: str | None, project: str | None, dry_run: bool
) -> list[dict[str, Any]]:
    """Send the offline runs of a store sweep by sweep, or with `dry_run` only look, and return a line a run.

    `sweep`, `run`, `state` (one of FINE, or what is wrong), `entity` (None: the account's own) and
    `project` that it goes to, and `files`, those that are sent. Raises InputError where there is none.
    """
    if not (groups := plan(store)):
        raise InputError(f"{store.root}: no offline W&B run in it")
    waiting = [
        run for _, runs in groups for run in runs if not (run.record_sent and run.graft_sent)
    ]
    checked = check_all(waiting)
    lines = []
    for name, runs in groups:
        ready = {run: checked[run] for run in runs if run in checked and not checked[run].wrong}
        if not dry_run:
            send(ready, entity, project)
        for run in runs:
            found = checked.get(run)
            if found is None:
                state = BEFORE
            elif found.wrong or dry_run:
                state = found.wrong or LATER
            else:
                state = SENT if run.record_sent and run.graft_sent else REFUSED
            to = found or Checked()
            lines.append(
                {
                    "sweep": name,
                    "run": run.name,
                    "state": state,
                    "entity": entity or to.entity if found else None,
                    "project": project or to.project if found else None,
                    "files": [str(file) for file in to.files],
                }
            )
    return lines


def send(runs: Mapping[Offline, Checked], entity: str | None, project: str | None) -> None:
    """Send offline runs: the records by `wandb sync`, then the graft of each run that W&B has."""
    if records := [run.record.parent for run in runs if not run.record_sent]:
        with tempfile.TemporaryDirectory(prefix="skillgraft-") as scratch:
            for home in records:
                (Path(scratch) / home.name).symlink_to(home.absolute())
            options = {"--entity": entity, "--project": project}
            given = [word for name, value in options.items() if value for word in (name, value)]
            # its own program: W&B has no function for this that is public
            command = [sys.executable, "-m", "wandb", "sync", *given, scratch]
            # W&B writes its logs into a folder `wandb`, if there is one here
            subprocess.run(command, check=False, cwd=scratch)
    for run, found in runs.items():
        if run.record_sent and not run.graft_sent and run.graft is not None:
            try:
                send_graft(run, run.graft, entity or found.entity, project or found.project, found)
            except InputError as error:
                log.warning("%s", error)


def send_graft(
    run: Offline, graft: Path, entity: str | None, project: str | None, found: Checked
) -> None:
    """Log the graft of a run that W&B has, and mark it as sent; raises InputError where W&B refuses."""
    from skillgraft.core.graft import Graft
    from skillgraft.tracking import wandb_run

    about = Graft.load(graft).meta
    wandb_run.send_graft(graft, about, id=run.id, entity=entity, project=project, host=found.host)
    run.graft_mark.touch()
