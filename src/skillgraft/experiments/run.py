"""One run, left to right: rows → model → fine-tuning → region → metrics → store."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from skillgraft.config import compose, validation
from skillgraft.config.schema import RunConfig, TaskConfig
from skillgraft.experiments.making import Making, job_number
from skillgraft.experiments.summary import show
from skillgraft.runtime import leases, shared_machine, signals
from skillgraft.runtime.errors import RunNotFound
from skillgraft.store import checksums, job_cache, job_state, names, references, sequences
from skillgraft.store.folders import Store
from skillgraft.store.identity import identify
from skillgraft.tasks import loading

log = logging.getLogger(__name__)

T = TypeVar("T")


def run(cfg: RunConfig, folders: Sequence[Path] = (), job: Path | None = None) -> Path:
    """Make one run, or find it whole, and return its folder.

    `folders` are the configuration folders, in which OOD tasks are looked up; `job` is Hydra's
    folder of this job, where a record says what became of it. Raises InputError for bad input
    before any training starts, and Interrupted where a signal asked for an end.
    """
    with signals.watching():
        if job is None:
            return find_or_make(cfg, folders, None, lambda **_: None)
        try:
            with job_state.recorded(job / names.RUN_FILE, id=None) as tell:
                return find_or_make(cfg, folders, job, tell)
        except signals.Interrupted as error:
            log.warning("interrupted (%s); run the same command to resume", error.cause)
            raise


def find_or_make(
    cfg: RunConfig, folders: Sequence[Path], job: Path | None, tell: Callable[..., None]
) -> Path:
    """Return the folder of a run, found whole or made; `tell` is told its id."""
    answer = job_cache.entry(cfg, folders)
    if answer is not None and (folder := job_cache.recall(answer)) is not None:
        tell(id=folder.name)
        return report_existing(folder)
    validation.check(cfg)
    cfg.task.verbalizer = validation.verbalizer(cfg.task)
    compose.expand(cfg, list(folders))
    references.absolute_paths(cfg)
    store = Store(cfg.store)
    there = partial(wait_for, store=store, job=job, tell=tell)
    there(lambda: references.resolve_after(cfg))
    for stage in sequences.chain(cfg):
        if stage["task"] in (cfg.task.name, *cfg.others):
            continue  # a task that comes back is measured as the run's own
        task = OmegaConf.merge(OmegaConf.structured(TaskConfig), stage["config"].task)
        cfg.others[stage["task"]] = cast(TaskConfig, task)
    read = job_cache.reads(cfg, folders) if answer is not None else None
    rows = loading.load(cfg)
    there(lambda: references.resolve_paths(cfg, rows))
    size = there(lambda: references.matched_size(cfg, rows))
    identity = identify(cfg, rows, size)
    tell(id=identity.id)  # so that a sweep knows its runs, under any launcher
    if answer is not None and read is not None:
        job_cache.remember(answer, read, cfg, rows, size, identity)
    if checksums.is_complete(store.run(identity.id)) and not cfg.force:
        return report_existing(store.run(identity.id))
    for note in rows.notes:
        log.warning("%s", note)
    with store.lock(identity.id):
        store.mend(identity.id)
        if checksums.is_complete(store.run(identity.id)) and not cfg.force:
            return report_existing(store.run(identity.id))
        making, unfinished = Making(cfg, rows, identity, store, size), store.unfinished(identity.id)
        try:
            with job_state.recorded(unfinished, **making.facts(), job=str(job) if job else None):
                making.make(job)
        finally:
            tell(finetuned=making.weights)
        unfinished.unlink()  # what is whole says so itself
    show(store.run(identity.id))
    return store.run(identity.id)


def wait_for(look: Callable[[], T], store: Store, job: Path | None, tell: Callable[..., None]) -> T:
    """Return what a look for other runs in the store finds; earlier jobs of a sweep may still make them.

    Raises NotThere where none can come.
    """
    going, said = job is not None and job_number() is not None, False
    while True:
        try:
            return look()
        except RunNotFound as error:
            if job is None or not going:
                raise
            tell()  # this job is alive, and this is its time
            if going := job_state.earlier(job, store):
                if not said:
                    log.info("waiting for an earlier job of the sweep: %s", error)
                    said = True
                shared_machine.sleep_releasing_cpus(
                    leases.POLL
                )  # else it may have come just now: a last look


def report_existing(folder: Path) -> Path:
    """Say that a run is there already, and show it; one line alone where it is one of many."""
    if HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN:
        log.info("already complete: %s", folder.name)
        return folder
    log.info("already complete, nothing to do (force=true runs it again)")
    show(folder)
    return folder
