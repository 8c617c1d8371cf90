"""The experiment store: ids, run folders that are whole or absent, and the cache of fine-tunings."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from skillgraft import checkpoint
from skillgraft.config import RunConfig, Selector, identity
from skillgraft.data import SPLITS, TaskData
from skillgraft.errors import InputError

log = logging.getLogger(__name__)
SIZE = "graft.size"  # in an identity: the size that graft.match came to


@dataclass(frozen=True)
class Identity:
    """What a run is, as hashes of all that can change its result.

    `finetuned` names the fine-tuning it shares; `peers` is equal for runs that differ in task and
    data only; `rivals` for runs that differ in the selector and its options only; `setting` for
    runs that differ in the seed and the rows it draws.
    """

    id: str
    group: str
    hash: str
    finetuned: str
    peers: str
    rivals: str
    setting: str
    digests: Mapping[str, str]


def short_hash(values: Mapping[str, Any]) -> str:
    """Return ten hex digits that name a mapping of plain values."""
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def identify(cfg: RunConfig, data: TaskData, size: int | None = None) -> Identity:
    """Return the identity of a run from its configuration and the digests of what it reads."""
    store = Store(cfg.store)
    digests = {"data": data.digest(), **checkpoint.digests(cfg.model, store.cache / "digests")}
    device = "cuda" if cfg.trainer.accelerator == "gpu" else "cpu"
    values = {**identity(cfg), **{f"digest.{k}": v for k, v in digests.items()}, "device": device}
    if size is not None:
        values[SIZE] = size

    def without(*prefixes: str) -> dict[str, Any]:
        return {name: v for name, v in values.items() if not name.startswith(prefixes)}

    selector = cfg.graft.selector.value
    name = f"{cfg.task.name}-{cfg.model.name}-{selector}-s{cfg.sparsity:g}"
    whole = short_hash(values)
    return Identity(
        id=f"{name}-seed{cfg.seed}-{whole}",
        group=name,
        hash=whole,
        finetuned=short_hash(without("graft.", "sparsity")),
        peers=short_hash(without("task.", "digest.data", SIZE)),
        rivals=short_hash(without("graft.")),
        setting=short_hash({**without("seed", "digest.data", SIZE), "matched": size is not None}),
        digests=digests,
    )


def matched_size(cfg: RunConfig, data: TaskData) -> int | None:
    """Return the size that `graft.match` names: that of a run by folder, id, or selector.

    A selector's name means the whole run in the store that differs in the selector only; a run
    matches itself, so that one sweep can give `graft.match=learned` to all its selectors.
    """
    match, store = cfg.graft.match, Store(cfg.store)
    if match is None or match == cfg.graft.selector.value:
        return None
    if match not in Selector.__members__:
        folder = next((f for f in (Path(match), store.root / match) if is_whole(f)), None)
        if folder is None:
            raise InputError(f"graft.match={match}: no whole run of this name in {store.root}")
        if (model := read_json(folder / "status.json")["model"]) != cfg.model.name:
            raise InputError(f"graft.match={match}: a run of another model, {model}")
        return int(read_json(folder / "metrics.json")["region"]["size"])
    rivals = identify(cfg, data).rivals
    found = [run for run in store.runs() if run["rivals"] == rivals and run["selector"] == match]
    if len(found) != 1:
        names = ", ".join(run["id"] for run in found) or "none"
        raise InputError(
            f"graft.match={match}: expected one whole run in {store.root} that differs in the "
            f"selector only, found {names}; run it first with graft={match}, or name one"
        )
    return int(read_json(store.root / found[0]["id"] / "metrics.json")["region"]["size"])


class Store:
    """A folder of runs. `ROOT/<id>/` is whole or absent, and nothing writes to it again."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().absolute()
        self.cache = self.root / ".cache"

    def run(self, name: str) -> Path:
        """Return the folder of a whole run."""
        return self.root / name

    def finetuned(self, digest: str) -> Path:
        """Return the folder of a whole fine-tuning."""
        return self.root / ".finetuned" / digest

    def partial(self, name: str) -> Path:
        """Return the folder where a run or a fine-tuning is being made, and make it."""
        folder = self.root / ".partial" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold the lock of a run or a fine-tuning; whoever else wants it waits."""
        folder = self.root / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("waiting: another process is making %s", name)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def publish(self, partial: Path, target: Path, status: Mapping[str, Any]) -> None:
        """Write checksums and status, and rename: from here on the folder is whole."""
        write_checksums(partial)
        write_json(partial / "status.json", {"state": "whole", **status})
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            old = partial.with_name(f"{partial.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
            partial.rename(target)
            shutil.rmtree(old)
        else:
            partial.rename(target)

    def mend(self, name: str) -> None:
        """Put back the run that a kill left aside while `publish` replaced it; its lock is held."""
        old = self.root / ".partial" / f"{name}.old"
        if old.is_dir():
            if self.run(name).exists():
                shutil.rmtree(old)
            else:
                old.rename(self.run(name))

    def runs(self) -> Iterator[dict[str, Any]]:
        """Yield the status record of every whole run, by name."""
        if not self.root.is_dir():
            return
        for folder in sorted(self.root.iterdir()):
            if folder.name.startswith("."):
                continue
            try:
                status = read_json(folder / "status.json")
            except (FileNotFoundError, NotADirectoryError):
                continue  # not a run, or just being replaced by force=true
            yield status


def is_whole(folder: Path) -> bool:
    """Return whether a run or fine-tuning is whole: its status is written last, before the rename."""
    return (folder / "status.json").is_file()


def write_json(path: Path, content: Any) -> None:
    """Write strict JSON: NaN is an error, never a value."""
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_checksums(folder: Path) -> None:
    """Write checksums.txt as `sha256sum -c` reads it, over every file of a folder."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and not f.is_symlink())
    lines = [
        f"{checkpoint.file_digest(file)}  {file.relative_to(folder).as_posix()}\n"
        for file in files
        if file.name not in ("checksums.txt", "status.json")
    ]
    (folder / "checksums.txt").write_text("".join(lines), encoding="utf-8")


def verify(folder: Path) -> list[str]:
    """Return what is wrong with a whole folder's files: missing or altered; empty where all is well."""
    listing = folder / "checksums.txt"
    if not is_whole(folder) or not listing.is_file():
        return [f"{folder}: not a whole run"]
    wrong = []
    for line in listing.read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        file = folder / name
        if not file.is_file():
            wrong.append(f"{file}: missing")
        elif checkpoint.file_digest(file) != digest:
            wrong.append(f"{file}: altered")
    return wrong


def absolute_paths(cfg: RunConfig) -> None:
    """Make every path of the configuration absolute: it then means the same from anywhere."""
    cfg.store = os.path.abspath(os.path.expanduser(cfg.store))  # noqa: PTH100, PTH111
    for node, name in (
        (cfg, "data_dir"),
        *((task, s) for task in (cfg.task, *cfg.ood.values()) for s in SPLITS),
    ):
        value = None if OmegaConf.is_missing(node, name) else getattr(node, name)
        if value is not None:
            setattr(node, name, str(Path(value).expanduser().absolute()))
    if cfg.graft.match is not None and is_whole(Path(cfg.graft.match)):
        cfg.graft.match = str(Path(cfg.graft.match).absolute())
    folder = Path(cfg.model.path).expanduser()
    if not cfg.model.path.startswith("package:") and folder.is_dir():
        cfg.model.path = str(folder.absolute())
