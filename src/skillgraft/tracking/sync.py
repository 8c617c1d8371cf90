"""Send a store's offline W&B runs, also after the store was moved.

`wandb sync` sends the record of an offline run: its curves, values and media. The record names media by
paths relative to itself and contains no artifact, so that it can be sent from any place. Afterwards the
graft is logged as an artifact, from the run's own file. Before anything is sent, W&B's own reader
(`wandb leet inspect`) lists the files that a record names: the store may come from somebody else, and a
record can name any file of this machine.
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

BEFORE, LATER, SENT, REFUSED = "sent before", "to send", "sent", "not sent"  # states of a run
FINE = (BEFORE, LATER, SENT)
READERS = 8  # the largest number of processes that read records at the same time


@dataclass(frozen=True)
class Offline:
    """An offline W&B run: its name, its id on W&B, its folder, and its record (a *.wandb file).

    The summary of a sweep is such a run too, without a graft.
    """

    name: str
    id: str
    folder: Path
    record: Path

    @property
    def graft(self) -> Path | None:
        """The graft file of the run, which is logged as an artifact, or None."""
        file = self.folder / GRAFT
        return file if file.is_symlink() or file.exists() else None

    @property
    def graft_mark(self) -> Path:
        """The file whose existence says that the graft was logged."""
        return self.record.with_name(f"{self.record.name}.graft-synced")

    @property
    def record_sent(self) -> bool:
        """Whether the record was sent, according to the mark that W&B leaves."""
        return wandb_names.sent_mark(self.record).exists()

    @property
    def graft_sent(self) -> bool:
        """Whether the graft was sent, or there is no graft."""
        return self.graft is None or self.graft_mark.exists()


@dataclass(frozen=True)
class Checked:
    """The content of a record: the destination, the machine that made the run, and the files to send.

    `wrong` says why the run cannot be sent: the record is damaged, the record names a file that is not
    the run's own, or a file is missing.
    """

    entity: str | None = None
    project: str | None = None
    host: str | None = None
    files: list[Path] = field(default_factory=list)
    wrong: str | None = None


def read_record(record: Path) -> list[dict[str, Any]]:
    """Return the entries of an offline run's record; raises ValueError for a truncated or altered record."""
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(record.absolute())],
        capture_output=True,
        text=True,
        check=False,
        cwd=tempfile.gettempdir(),  # W&B writes logs into a folder `wandb` of the present folder
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
    """Return what an offline run would send, after a check that all files are the run's own."""
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
                here = file.resolve()  # for an absolute name, `kept / name` is that name
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
    """Return what each of some offline runs would send; W&B's reader runs as one process per record."""
    with ThreadPoolExecutor(min(READERS, os.cpu_count() or 1)) as pool:
        return dict(zip(runs, pool.map(check, runs), strict=True))


def plan(store: Store) -> list[tuple[str | None, list[Offline]]]:
    """Return the offline W&B runs of complete runs, grouped by sweep.

    Sweeps are sorted by their start. A group holds the sweep's runs in the order of the jobs, and then the
    sweep's summary. A run of several sweeps is in the first of them. The last group has the runs of no
    sweep.
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
    """Yield the offline W&B runs in the folders of complete runs."""
    for name, folder in runs.items():
        yield from of(name, name.rpartition("-")[2], folder)


def of(name: str, id: str, folder: Path) -> list[Offline]:
    """Return the offline W&B runs in a folder: one, or none where the run was online or not tracked."""
    found = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    return [Offline(name, id, folder, record) for record in found]


def deliver(
    store: Store, entity: str | None, project: str | None, dry_run: bool
) -> list[dict[str, Any]]:
    """Send the offline W&B runs of a store, sweep by sweep, and return a record of each run.

    A record has `sweep`, `run`, `state` (one of FINE, or a text that says what is wrong), the destination
    as `entity` (None: the account's default) and `project`, and `files`, the files that are sent. With
    `dry_run` nothing is sent. Raises InputError where the store has no offline run.
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
            # as a program: W&B has no public function for this
            command = [sys.executable, "-m", "wandb", "sync", *given, scratch]
            # W&B writes logs into a folder `wandb` of the present folder
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
    """Log the graft of a run that W&B has, and mark the graft as sent; InputError where W&B refuses.

    Args:
        run: the run as its offline record has it.
        graft: the graft's file.
        entity: W&B's entity; None: the account's own.
        project: W&B's project; None: W&B's default.
        found: what was found when the record was checked, with the machine that made the run.
    """
    from skillgraft.core.graft import Graft
    from skillgraft.tracking import wandb_run

    about = Graft.load(graft).meta
    wandb_run.send_graft(graft, about, id=run.id, entity=entity, project=project, host=found.host)
    run.graft_mark.touch()
