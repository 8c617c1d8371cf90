"""A sweep: its record, written before its first job, and what it shows after its last.

The end is done by the process that was started, around Hydra's main, from the job folders and the
store: it comes whatever the launcher or a job did.
"""

from __future__ import annotations

import logging
import shlex
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from skillgraft.config import compose, launchers
from skillgraft.config.schema import ClaimConfig
from skillgraft.experiments.sweep_report import report, show_missing
from skillgraft.runtime import digests, files, leases
from skillgraft.store import folders, job_state, names
from skillgraft.store.names import ENDED, PLAN, RECORD
from skillgraft.store.sweep_records import jobs_of, run_ids

log = logging.getLogger(__name__)

GROUPS = ("paper", "embedded", "beyond", "sweep")  # of sweep files: conf/run.yaml
SILENT = ("store=", "force=", "logger", "hydra")  # overrides that do not make it another sweep
MANY = 50  # jobs, from which on a start takes long enough to be told of
# Folder and record of this process's sweep, once it has started: another process that starts the
# same sweep meanwhile writes a record of its own jobs there. Global, since Hydra makes the callback
# that begins a sweep and gives `cli`, which ends it, no way to reach that object.
begun: list[tuple[Path, dict[str, Any]]] = []


def begin(config: DictConfig, arguments: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    """Write `STORE/sweeps/<name>-<hash>/record.json`: overrides, sweep file, claim, job folders.

    `arguments` are those of the command line. Returns the folder and the
    record. What an earlier start of the same sweep has made is kept in it.
    """
    settings = config.hydra
    if (n_jobs := settings.launcher.get("n_jobs")) is not None:
        trainer = config.trainer
        warning = launchers.too_many(n_jobs, config.threads, trainer.accelerator, trainer.devices)
        if warning:
            log.warning(warning)
    choices = settings.runtime.choices
    name = "-".join(f"{g}-{choices[g]}" for g in GROUPS if choices.get(g)) or "sweep"
    overrides = identifying_overrides(settings.overrides.task)
    params = settings.sweeper.get("params")  # null where -m on the command line has all axes
    axes = cast(dict[str, str], OmegaConf.to_container(params)) if params else {}
    digest = digests.short_hash({"overrides": sorted(overrides), "axes": axes})
    folder = folders.Store(config.store).sweeps / f"{name}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    jobs, plan = Path(settings.sweep.dir).absolute(), planned(axes, settings.overrides.task)
    earlier = files.read_json(file) if (file := folder / RECORD).is_file() else {}
    ids = {tuple(identifying_overrides(job["overrides"])): job["id"] for job in jobs_of(earlier)}
    again = [argument for argument in arguments if not argument.startswith("force=")]
    record = {
        "name": name,
        "command": shlex.join(["skillgraft", *again]),
        "overrides": list(settings.overrides.task),
        "axes": axes,
        "claim": OmegaConf.to_container(
            OmegaConf.structured(ClaimConfig) if config.claim is None else config.claim
        ),
        "logger": compose.plain(config.logger),
        "jobs": str(jobs),
        "planned": plan,
        "ids": [ids.get(tuple(identifying_overrides(overrides))) for overrides in plan],
        "started": (started := time.time()),
        "runs": earlier.get("runs", []),
    }
    files.write_json(file, record)
    jobs.mkdir(parents=True, exist_ok=True)
    files.write_json(jobs / PLAN, {"total": len(plan), "started": started})
    if len(plan) >= MANY:
        log.info(
            "%d jobs: Hydra composes all, a tenth of a second each, before the first", len(plan)
        )
    return folder, record


def identifying_overrides(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that tell one sweep, or one of its jobs, from another."""
    return [o for o in overrides if not o.lstrip("+").startswith(SILENT)]


def planned(axes: Mapping[str, str], overrides: Sequence[str]) -> list[list[str]]:
    """Return the overrides of every job of a sweep, in the jobs' order: the product of its axes.

    As Hydra's basic sweeper makes them, which has no public way to ask: an override of a key takes
    the place of an earlier one.
    """
    given = [f"{name}={values}" for name, values in axes.items()]
    choices = {}
    for override in OverridesParser.create().parse_overrides([*given, *overrides]):
        key = override.get_key_element()
        values: Iterable[Any] = (
            override.sweep_string_iterator()
            if override.is_sweep_override()
            else [override.get_value_element_as_str()]
        )
        choices[key] = [f"{key}={value}" for value in values]
    return [list(job) for job in product(*choices.values())]


def progress(job: Path) -> None:
    """Say how far a sweep is, after one of its jobs: in the log of that job and on the terminal.

    The jobs of a sweep add to one list of what became of them, whichever process they are in.
    """
    record = files.read_json(job / names.RUN_FILE) if (job / names.RUN_FILE).is_file() else {}
    with (job.parent / ENDED).open("a") as ended:  # one short line: appended whole
        ended.write(f"{job.name} {record.get('state', job_state.FAILED)}\n")
    if not (job.parent / PLAN).is_file():
        return
    plan, lines = files.read_json(job.parent / PLAN), (job.parent / ENDED).read_text().splitlines()
    # of a job that was queued again, the last
    states = list(dict(line.rsplit(maxsplit=1) for line in lines).values())
    done = len(states)
    total = max(done, plan["total"])
    left = timedelta(seconds=round((time.time() - plan["started"]) / done * (total - done)))
    failed = done - states.count(job_state.COMPLETE)
    log.info("job %d of %d, %d failed, about %s left", done, total, failed, left)


def finish() -> bool:
    """Show what a sweep came to, if this process has started one, and return whether all of it is whole.

    What failed and how to make it again, the sweep's claim, and its summary on W&B.
    """
    if not begun:
        return True
    folder, record = begun.pop()
    jobs = jobs_of(record)
    record["ids"], record["runs"] = [job["id"] for job in jobs], run_ids(record, jobs)
    files.write_json(folder / RECORD, record)
    shown = True
    try:
        report(folder, record)
    except (
        Exception
    ):  # of W&B, or of a claim on half of its runs: what failed is listed all the same
        log.exception("the sweep's claim and summary")
        shown = False
    missing = [job for job in jobs if job["state"] != job_state.COMPLETE]
    print(f"{len(jobs) - len(missing)} of {len(jobs)} jobs complete; the sweep's record: {folder}")
    weights = Counter(job["finetuned"] for job in jobs)
    made, shared = weights[names.MADE], weights[names.SHARED]
    if made or shared:
        print(f"fine-tunings: {made} made, {shared} taken from the store")
    if missing:
        show_missing(missing, record["command"], folders.Store(folder.parents[1]))
    return shown and not missing


def wait_for_running_jobs() -> None:
    """Wait for the jobs of this process's sweep that still run.

    submitit's launcher gives up at the first that was killed, and leaves the others running.
    """
    if not begun:
        return
    folder, record = begun[-1]
    jobs, store = Path(record["jobs"]), folders.Store(folder.parents[1])
    numbers = range(len(record["planned"]))

    def going() -> bool:
        return job_state.going(jobs, numbers, store, leases.file_time(jobs / PLAN))

    if going():
        log.info("waiting for the jobs that still run")
    while going():
        time.sleep(leases.POLL)
