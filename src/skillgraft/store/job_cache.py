"""Jobs whose run is known: which run a configuration is, without reading its data again.

To name a run takes its rows and digests, a fifth of a second; a sweep that is started again asks it of
thousands of whole runs. `STORE/.cache/jobs/` remembers the answer under the configuration and the
program, with what was read to find it. The answer counts as long as all of that is as it was.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf.errors import OmegaConfBaseException

from skillgraft.config import compose, packages, selectors
from skillgraft.config.choices import Source
from skillgraft.config.schema import ResolvedConfig, RunConfig, TaskConfig
from skillgraft.models import checkpoint_files
from skillgraft.runtime.errors import InputError
from skillgraft.runtime.files import write_json
from skillgraft.store import index
from skillgraft.store.checksums import is_complete
from skillgraft.store.folders import Store
from skillgraft.store.identity import Identity
from skillgraft.store.references import matched_size
from skillgraft.tasks.rows import TaskData
from skillgraft.tasks.sources import local_folder


@functools.cache
def program() -> str:
    """Return a digest of this program: its files' times, where imports come from, and versions."""
    files = sorted(
        f for f in packages.PACKAGE.rglob("*") if f.is_file() and "__pycache__" not in f.parts
    )
    stamps = [[str(file), index.fingerprint(file)] for file in files]
    content = [stamps, sys.path, sys.version, np.__version__]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def entry(cfg: RunConfig, folders: Sequence[Path]) -> Path | None:
    """Return where a job's answer is kept, before anything of it is filled in, or None.

    None: it is made again anyway, is not valid, or what it means depends on more than files and runs
    of the same setting.
    """
    try:
        match = cfg.graft.size_from
        if (
            cfg.force
            or cfg.graft.selector == "file"
            or cfg.continual.tasks
            or cfg.continual.init_from is not None
            or not (match is None or match in selectors.modules())
            or (match is not None and not selectors.options_of(match).reads_sparsity)
        ):
            return None
        everything = compose.plain(cfg)
    except OmegaConfBaseException:
        return None
    # a relative path, or ~, means something else elsewhere
    place = [os.getcwd(), os.path.expanduser("~"), *map(str, folders)]  # noqa: PTH109, PTH111
    content = json.dumps([everything, place, program()], sort_keys=True, default=str)
    return Store(cfg.store).cache / "jobs" / hashlib.sha256(content.encode()).hexdigest()


def recall(file: Path) -> Path | None:
    """Return the folder of a job's run where that is known and whole."""
    try:
        known = json.loads(file.read_bytes())
    except (OSError, ValueError):  # not there, or damaged
        return None
    if any(index.fingerprint(path) != was for path, was in known["read"].items()):
        return None
    root = file.parents[2]
    if (sought := known["sought"]) is not None and candidates(root, *sought) != known["found"]:
        return None
    folder = Store(root).run(known["id"])
    return folder if is_complete(folder) else None


def candidates(root: Path, rivals: str, match: str) -> list[list[str]]:
    """Return the runs from which `graft.size_from` chooses, each with its stamp."""
    found = index.rows_where(root, "same_but_selector", rivals)
    return [[name, stamp] for name, stamp, run in found if json.loads(run)["selector"] == match]


def reads(cfg: ResolvedConfig, folders: Sequence[Path]) -> dict[str, str | None] | None:
    """Return the stamps of all files and folders that a run is named from; None where the hub is one.

    To be taken before they are read: what changes meanwhile is then seen the next time.
    """
    found: dict[str, str | None] = {}
    for place in places_of(cfg, folders):
        if place is None:
            return None
        # a folder's own time tells of files that come and go
        inner = place.iterdir() if place.is_dir() else ()
        found |= {str(path): index.fingerprint(path) for path in (place, *inner)}
    return found


def remember(
    file: Path,
    read: Mapping[str, str | None],
    cfg: ResolvedConfig,
    rows: TaskData,
    size: int | None,
    identity: Identity,
) -> None:
    """Keep which run a job is, with what was read to find it.

    Args:
        file: where the answer is kept, as `entry` returned it.
        read: the stamps of all that was read, as `reads` returned them.
        cfg: the resolved configuration.
        rows: the data of its tasks.
        size: the size of the region that `graft.size_from` named; None without it.
        identity: which run the job is.
    """
    known: dict[str, Any] = {"id": identity.id, "read": read, "sought": None}
    if size is not None:
        sought = (identity.same_but_selector, str(cfg.graft.size_from))
        known |= {"sought": sought, "found": candidates(file.parents[2], *sought)}
        if matched_size(cfg, rows) != size:  # another run came between the two looks
            return
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, known)


def places_of(cfg: ResolvedConfig, folders: Sequence[Path]) -> Iterator[Path | None]:
    """Yield every file and folder that a run is named from; None for what is on the hub."""
    for name in (*cfg.ood_tasks, *cfg.other_tasks):
        try:
            parts = [part for part, _ in compose.task_parts(name, folders)]
        except InputError:  # stored with a run that is made again: there may be no file
            parts = [name]
        for part in parts:
            yield from (folder / "task" / f"{part}.yaml" for folder in folders)
    tasks: list[TaskConfig] = [cfg.task, *cfg.ood_tasks.values(), *cfg.other_tasks.values()]
    for task in tasks:
        if task.source is Source.files:
            files = (task.train, task.validation, task.test)
            yield from (Path(file) for file in files if file is not None)
        elif task.source is Source.hub:
            yield local_folder(task, cfg.data_dir)
    path = cfg.model.path
    local = path.startswith("package:") or Path(path).expanduser().exists()
    yield checkpoint_files.locate(cfg.model) if local else None
