"""One run, left to right: rows → model → fine-tuning → region → metrics → store."""

from __future__ import annotations

import logging
from pathlib import Path

from skillgraft.config.schema import RunConfig
from skillgraft.experiments import pipeline
from skillgraft.experiments.resolve import ResolvedRun, Tell, resolve, tell_nobody
from skillgraft.experiments.stages.inputs import RunInputs
from skillgraft.experiments.summary import show
from skillgraft.runtime import signals
from skillgraft.runtime.job import JobContext
from skillgraft.store import checksums, job_cache, job_state, names

log = logging.getLogger(__name__)

FROM_PYTHON = JobContext()  # the job of a run that Python code asks for


def run(cfg: RunConfig, context: JobContext = FROM_PYTHON) -> Path:
    """Make one run, or find it complete, and return its folder; `cfg` stays as it is.

    In the folder of the context's job, where there is one, a record says what became of the job.
    Raises InputError for bad input before any training starts, and Interrupted where a signal asked
    for an end.
    """
    with signals.watching():
        if context.folder is None:
            return find_or_make(cfg, context, tell_nobody)
        try:
            with job_state.recorded(context.folder / names.RUN_FILE, id=None) as tell:
                return find_or_make(cfg, context, tell)
        except signals.Interrupted as error:
            log.warning("interrupted (%s); run the same command to resume", error.cause)
            raise


def find_or_make(cfg: RunConfig, context: JobContext, tell: Tell) -> Path:
    """Return the folder of a run, found complete or made; `tell` is told its id."""
    answer = job_cache.entry(cfg, context.config_folders)
    if answer is not None and (folder := job_cache.recall(answer)) is not None:
        tell(id=folder.name)
        return report_existing(folder, context)
    resolved = resolve(cfg, context, tell, stamped=answer is not None)
    tell(id=resolved.identity.id)  # so that a sweep knows its runs, under any launcher
    if answer is not None and resolved.read is not None:
        job_cache.remember(
            answer,
            resolved.read,
            resolved.cfg,
            resolved.rows,
            resolved.size,
            resolved.identity,
        )
    if is_made(resolved):
        return report_existing(resolved.store.run(resolved.identity.id), context)
    return make(resolved, context, tell)


def is_made(resolved: ResolvedRun) -> bool:
    """Return whether the run is complete already, and is not to be made again."""
    complete = checksums.is_complete(resolved.store.run(resolved.identity.id))
    return complete and not resolved.cfg.force


def make(resolved: ResolvedRun, context: JobContext, tell: Tell) -> Path:
    """Make a run, unless another process makes it first, and return its folder."""
    store, name = resolved.store, resolved.identity.id
    for note in resolved.rows.notes:
        log.warning("%s", note)
    with store.lock(name):
        store.mend(name)
        if is_made(resolved):
            return report_existing(store.run(name), context)
        inputs, unfinished = RunInputs.of(resolved, context), store.unfinished(name)
        job = str(context.folder) if context.folder else None
        with job_state.recorded(unfinished, **inputs.facts(), job=job):
            pipeline.make_run(inputs, tell)
        unfinished.unlink()  # what is complete says so itself
    show(store.run(name))
    return store.run(name)


def report_existing(folder: Path, context: JobContext) -> Path:
    """Say that a run is there already, and show it; one line alone where it is one of many."""
    if context.multirun:
        log.info("already complete: %s", folder.name)
        return folder
    log.info("already complete, nothing to do (force=true runs it again)")
    show(folder)
    return folder
