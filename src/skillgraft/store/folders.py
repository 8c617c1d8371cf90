"""The folders of a store."""

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
    """A folder of runs. `ROOT/<id>/` is whole or absent, and nothing writes to it again."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().absolute()
        self.cache = self.root / ".cache"
        self.sweeps = self.root / "sweeps"

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

    def unfinished(self, name: str) -> Path:
        """Return the file that says what has become of a run that is not whole."""
        return self.root / ".partial" / f"{name}.json"

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold the lease of a run or a fine-tuning; whoever else wants it waits."""
        with leases.hold(self.lease(name)):
            yield

    def lease(self, name: str) -> Path:
        """Return where the lease of a run or a fine-tuning is, for `lease.holder`."""
        return self.root / ".locks" / f"{name}.lock"

    def publish(self, partial: Path, target: Path, status: Mapping[str, Any]) -> None:
        """Write checksums and status, and rename: from here on the folder is whole.

        Raises lease.LeaseLost where another process has meanwhile taken over from this one.
        """
        write_checksums(partial)
        write_json(partial / STATUS, {"state": "complete", **status})
        target.parent.mkdir(parents=True, exist_ok=True)
        leases.check()
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

    def runs(self, key: str | None = None, value: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield the status record of every whole run, by name; with a key of index.KEYS, of some."""
        return index.runs(self.root, key, value)
