"""What a run is made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skillgraft.config.schema import ResolvedConfig
from skillgraft.experiments.resolve import ResolvedRun
from skillgraft.runtime.job import JobContext
from skillgraft.store.folders import Store
from skillgraft.store.identity import Identity
from skillgraft.tasks.rows import TaskData


@dataclass(frozen=True)
class RunInputs:
    """A checked configuration, the examples that it names, and the run that comes of them.

    `size` is the size of the region that `graft.size_from` names, or None; `folder` is the partial
    folder in which the run is made, and `context` the job that makes the run.
    """

    cfg: ResolvedConfig
    rows: TaskData
    identity: Identity
    store: Store
    size: int | None
    folder: Path
    context: JobContext

    @classmethod
    def of(cls, resolved: ResolvedRun, context: JobContext) -> RunInputs:
        """Return the inputs of a resolved run, with its partial folder."""
        folder = resolved.store.partial(resolved.identity.id)
        return cls(
            resolved.cfg,
            resolved.rows,
            resolved.identity,
            resolved.store,
            resolved.size,
            folder,
            context,
        )

    @property
    def bars(self) -> bool:
        """Whether progress bars are shown."""
        return self.context.shows_progress(self.cfg.trainer.progress)

    def facts(self) -> dict[str, Any]:
        """Return what names a run in every table, complete or not."""
        cfg = self.cfg
        return {
            "id": self.identity.id,
            "task": cfg.task.name,
            "model": cfg.model.name,
            "selector": cfg.graft.selector,
            "sparsity": cfg.sparsity,
            "seed": cfg.seed,
        }
