"""What a run is: all that its configuration means, resolved once, before anything is made."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from omegaconf import OmegaConf

from skillgraft.config import compose, selectors, validation
from skillgraft.config.schema import ResolvedConfig, RunConfig, TaskConfig
from skillgraft.runtime import leases, shared_machine
from skillgraft.runtime.errors import RunNotFound
from skillgraft.runtime.job import JobContext
from skillgraft.store import job_cache, job_state, references, sequences
from skillgraft.store.folders import Store
from skillgraft.store.identity import Identity, identify
from skillgraft.tasks import loading
from skillgraft.tasks.rows import TaskData

log = logging.getLogger(__name__)

T = TypeVar("T")
Tell = Callable[..., None]  # adds values to the record of a job


def tell_nobody(**_: Any) -> None:
    """Add nothing: there is no record of this job."""


@dataclass(frozen=True)
class ResolvedRun:
    """A run before it is made: what the user's configuration means, with all that it reads.

    - `cfg`: the configuration, read-only: absolute paths, the words of all labels, the tasks that it
      names, the folders of grafts, and of the run that a stage of a sequence starts from;
    - `store`: where the run is kept;
    - `rows`: the examples of all its tasks;
    - `size`: the size of the region that `graft.size_from` names, or None without one;
    - `identity`: what names the run;
    - `read`: the stamps of the files from which it is named, from before they were read; None where
      nobody asked for them, or where one of them is on the hub.
    """

    cfg: ResolvedConfig
    store: Store
    rows: TaskData
    size: int | None
    identity: Identity
    read: Mapping[str, str | None] | None


def resolve(
    cfg: RunConfig, context: JobContext, tell: Tell = tell_nobody, *, stamped: bool = False
) -> ResolvedRun:
    """Return what a configuration means, and leave the configuration as it is.

    Where an earlier job of the sweep may still make a run that this one needs, it waits; `tell` then
    says that it is alive. With `stamped`, the stamps of all files that name the run are taken. Raises
    InputError for bad input, and RunNotFound for a run that cannot come.
    """
    written = from_files(cfg, context)
    store = Store(written.store)
    wait = partial(wait_for, store=store, context=context, tell=tell)
    staged = at_stage(written, wait(lambda: references.initial_run(written)))
    read = job_cache.reads(staged, context.config_folders) if stamped else None
    rows = loading.load(staged)
    paths = wait(lambda: references.graft_paths(staged, rows))
    resolved = compose.changed(staged, {"graft.paths": paths}) if paths else staged
    size = wait(lambda: references.matched_size(resolved, rows))
    return ResolvedRun(resolved, store, rows, size, identify(resolved, rows, size), read)


def from_files(cfg: RunConfig, context: JobContext) -> ResolvedConfig:
    """Return a valid configuration that says all that its files say.

    It has the tasks that it names, the words of all labels, its selector's options alone, and absolute
    paths.
    """
    validation.check(cfg)
    expanded = compose.expand(cfg, context.config_folders)
    filled = {
        "task.verbalizer": validation.verbalizer(expanded.task),
        "graft": selectors.own_options(expanded),
    }
    return compose.changed(expanded, {**filled, **references.absolute_paths(expanded)})


def at_stage(cfg: ResolvedConfig, initial_run: str | None) -> ResolvedConfig:
    """Return the configuration of a stage that starts from a run, with the tasks of the stages before."""
    started = compose.changed(cfg, {"continual.init_from": initial_run})
    earlier: dict[str, Any] = {}
    for stage in sequences.chain(started):
        if stage["task"] in (started.task.name, *started.other_tasks):
            continue  # a task that comes back is measured as the run's own
        task = OmegaConf.merge(OmegaConf.structured(TaskConfig), stage["config"].task)
        earlier[f"other_tasks[{stage['task']}]"] = task
    return compose.changed(started, earlier) if earlier else started


def wait_for(look: Callable[[], T], store: Store, context: JobContext, tell: Tell) -> T:
    """Return what a look for other runs in the store finds; earlier jobs of a sweep may still make them.

    Raises RunNotFound where none can come.
    """
    going, said = context.folder is not None and context.number is not None, False
    while True:
        try:
            return look()
        except RunNotFound as error:
            if context.folder is None or not going:
                raise
            tell()  # this job is alive, and this is its time
            if going := job_state.earlier(context.folder, store):
                if not said:
                    log.info("waiting for an earlier job of the sweep: %s", error)
                    said = True
                # else it may have come just now: a last look
                shared_machine.sleep_releasing_cpus(leases.POLL)
