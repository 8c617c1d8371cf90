"""A store: the folder that holds all runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from skillgraft.runtime import leases
from skillgraft.runtime.files import write_json
from skillgraft.store import index
from skillgraft.store.checksums import write_checksums
from skillgraft.store.names import STATUS


class Store:
    """A folder of runs, in which `ROOT/<id>/` is complete or absent, and does not change once complete."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().absolute()
        self.cache = self.root / ".cache"
        self.sweeps = self.root / "sweeps"

    def run(self, name: str) -> Path:
        """Return the folder of a complete run."""
        return self.root / name

    def finetuned(self, digest: str) -> Path:
        """Return the folder of a complete fine-tuning."""
        return self.root / ".finetuned" / digest

    def partial(self, name: str) -> Path:
        """Make and return the folder in which a run or a fine-tuning is being made."""
        folder = self.root / ".partial" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def unfinished(self, name: str) -> Path:
        """Return the file that records the state of an incomplete run."""
        return self.root / ".partial" / f"{name}.json"

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold the lease of a run or a fine-tuning inside a `with` block; other processes wait for it."""
        with leases.hold(self.lease(name)):
            yield

    def lease(self, name: str) -> Path:
        """Return the path of the lease of a run or a fine-tuning, for `leases.holder`."""
        return self.root / ".locks" / f"{name}.lock"

    def publish(self, partial: Path, target: Path, status: Mapping[str, Any]) -> None:
        """Write checksums and status into a partial folder, and rename the folder to its final name.

        Raises leases.LeaseLost where another process has meanwhile taken over the run.
        """
        write_checksums(partial)
        write_json(partial / STATUS, {"state": "complete", **status})
        target.parent.mkdir(parents=True, exist_ok=True)
        leases.check()
        if target.exists():
            # Two renames, since a folder cannot be replaced in one. `mend` repairs a kill between them.
            old = partial.with_name(f"{partial.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
            partial.rename(target)
            shutil.rmtree(old)
        else:
            partial.rename(target)

    def mend(self, name: str) -> None:
        """Restore a run that `publish` was replacing when it was killed; the caller holds the run's lock."""
        old = self.root / ".partial" / f"{name}.old"
        if old.is_dir():
            if self.run(name).exists():
                shutil.rmtree(old)
            else:
                old.rename(self.run(name))

    def runs(self, key: str | None = None, value: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield the status records of all complete runs by name, or of those with a value of a key.

        `key` is one of `index.KEYS`.
        """
        return index.runs(self.root, key, value)
