"""A sweep: its record, written before its first job, and what it shows after its last.

The end is done by the process that was started, around Hydra's main, from the job folders and the
store: it comes whatever the launcher or a job did.
"""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from skillgraft import bars, launch, lease, state, store
from skillgraft import config as configuration
from skillgraft.errors import InputError
from skillgraft.files import atomic_write

if TYPE_CHECKING:
    import pandas as pd

    from skillgraft.verdict import Outcome, Statement

log = logging.getLogger(__name__)
GROUPS = ("paper", "embedded", "beyond", "sweep")  # of sweep files: conf/run.yaml
SILENT = ("store=", "force=", "logger", "hydra")  # overrides that do not make it another sweep
MANY = 50  # jobs, from which on a start takes long enough to be told of
PLAN, ENDED = "plan.json", "ended.txt"  # in the folder of a sweep's jobs
# folder and record of this process's sweep, once it has started: another process that starts the
# same sweep meanwhile writes a record of its own jobs there
begun: list[tuple[Path, dict[str, Any]]] = []


class Record(Callback):
    """Hydra's callback: writes the record of a sweep when it starts."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Begin the sweep's record; where that fails no job is started."""
        try:
            begun.append(begin(config))
        except (InputError, OSError) as error:
            sys.exit(f"skillgraft: the sweep's record: {error}")  # Hydra only warns of an exception


def begin(config: DictConfig) -> tuple[Path, dict[str, Any]]:
    """Write `STORE/sweeps/<name>-<hash>/record.json`: overrides, sweep file, claim, job folders.

    Returns the folder and the record. What an earlier start of the same sweep has made is kept in it.
    """
    settings = config.hydra
    if (n_jobs := settings.launcher.get("n_jobs")) is not None:
        trainer = config.trainer
        warning = launch.too_many(n_jobs, config.threads, trainer.accelerator, trainer.devices)
        if warning:
            log.warning(warning)
    choices = settings.runtime.choices
    name = "-".join(f"{g}-{choices[g]}" for g in GROUPS if choices.get(g)) or "sweep"
    overrides = telling(settings.overrides.task)
    params = settings.sweeper.get("params")  # null where -m on the command line has all axes
    axes = cast(dict[str, str], OmegaConf.to_container(params)) if params else {}
    digest = store.short_hash({"overrides": sorted(overrides), "axes": axes})
    folder = store.Store(config.store).sweeps / f"{name}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    jobs, plan = Path(settings.sweep.dir).absolute(), planned(axes, settings.overrides.task)
    earlier = store.read_json(file) if (file := folder / "record.json").is_file() else {}
    ids = {tuple(telling(job["overrides"])): job["id"] for job in jobs_of(earlier)}
    again = [argument for argument in sys.argv[1:] if not argument.startswith("force=")]
    record = {
        "name": name,
        "command": shlex.join(["skillgraft", *again]),
        "overrides": list(settings.overrides.task),
        "axes": axes,
        "claim": OmegaConf.to_container(config.claim),
        "logger": configuration.plain(config.logger),
        "jobs": str(jobs),
        "planned": plan,
        "ids": [ids.get(tuple(telling(overrides))) for overrides in plan],
        "started": (started := time.time()),
        "runs": earlier.get("runs", []),
    }
    store.write_json(file, record)
    jobs.mkdir(parents=True, exist_ok=True)
    store.write_json(jobs / PLAN, {"total": len(plan), "started": started})
    if len(plan) >= MANY:
        log.info(
            "%d jobs: Hydra composes all, a tenth of a second each, before the first", len(plan)
        )
    return folder, record


def telling(overrides: Sequence[str]) -> list[str]:
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
    record = store.read_json(job / store.RUN_FILE) if (job / store.RUN_FILE).is_file() else {}
    with (job.parent / ENDED).open("a") as ended:  # one short line: appended whole
        ended.write(f"{job.name} {record.get('state', state.FAILED)}\n")
    if not (job.parent / PLAN).is_file():
        return
    plan, lines = store.read_json(job.parent / PLAN), (job.parent / ENDED).read_text().splitlines()
    # of a job that was queued again, the last
    states = list(dict(line.rsplit(maxsplit=1) for line in lines).values())
    done = len(states)
    total = max(done, plan["total"])
    left = timedelta(seconds=round((time.time() - plan["started"]) / done * (total - done)))
    failed = done - states.count(state.WHOLE)
    log.info("job %d of %d, %d failed, about %s left", done, total, failed, left)


def jobs_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what has become of every job of a sweep, in the jobs' order.

    `overrides`, `state` (None: never started), `id` (of one that has not been started this time: of
    an earlier start), `finetuned` (None: found whole), `error` and `message`.
    """
    found, ids = [], dict(enumerate(record.get("ids", ())))
    for number, overrides in enumerate(record.get("planned", ())):  # an older record has none
        file = Path(record["jobs"]) / str(number) / store.RUN_FILE
        known = store.read_json(file) if file.is_file() else {}
        names = ("state", "finetuned", "error", "message")
        job = {"overrides": overrides, "id": known.get("id") or ids.get(number)}
        found.append(job | {name: known.get(name) for name in names})
    return found


def run_ids(record: Mapping[str, Any], jobs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the ids of the runs that a sweep's jobs have made or found so far, in the jobs' order."""
    found = [job["id"] for job in jobs if job["id"] is not None]
    return list(dict.fromkeys(found or record["runs"]))  # a store that was moved has no job folders


def finish() -> bool:
    """Show what a sweep came to, if this process has started one, and return whether all of it is whole.

    What failed and how to make it again, the sweep's claim, and its summary on W&B.
    """
    if not begun:
        return True
    folder, record = begun.pop()
    jobs = jobs_of(record)
    record["ids"], record["runs"] = [job["id"] for job in jobs], run_ids(record, jobs)
    store.write_json(folder / "record.json", record)
    shown = True
    try:
        report(folder, record)
    except (
        Exception
    ):  # of W&B, or of a claim on half of its runs: what failed is listed all the same
        log.exception("the sweep's claim and summary")
        shown = False
    missing = [job for job in jobs if job["state"] != state.WHOLE]
    print(f"{len(jobs) - len(missing)} of {len(jobs)} jobs are whole; the sweep's record: {folder}")
    weights = Counter(job["finetuned"] for job in jobs)
    made, shared = weights[store.MADE], weights[store.SHARED]
    if made or shared:
        print(f"fine-tunings: {made} made, {shared} taken from the store")
    if missing:
        show_missing(missing, record["command"], store.Store(folder.parents[1]))
    return shown and not missing


def outlast() -> None:
    """Wait for the jobs of this process's sweep that still run.

    submitit's launcher gives up at the first that was killed, and leaves the others running.
    """
    if not begun:
        return
    folder, record = begun[-1]
    jobs, place = Path(record["jobs"]), store.Store(folder.parents[1])
    numbers = range(len(record["planned"]))

    def going() -> bool:
        return state.going(jobs, numbers, place, lease.file_time(jobs / PLAN))

    if going():
        log.info("waiting for the jobs that still run")
    while going():
        time.sleep(lease.POLL)


def report(folder: Path, record: Mapping[str, Any]) -> None:
    """Judge and show a sweep's claim, and log the sweep: what of it there is to be done."""
    from skillgraft import compare

    claimed = record["claim"]["name"] is not None
    logged = record["logger"]["mode"] != configuration.Mode.none
    if not record["runs"] or not (claimed or logged):
        return
    rows, outcome = compare.collect(store.Store(folder.parents[1]), record["runs"]), None
    if claimed:
        try:
            outcome = conclude(folder, record, rows)
            show(record["name"], outcome)
        except InputError as error:
            log.warning("%s: no verdict: %s", record["name"], error)
    if not logged or rows.empty:
        return
    try:
        summarize(folder, record, rows, outcome)
    except InputError as error:  # W&B refuses: the runs have their records all the same
        log.warning("%s: no summary on W&B: %s", record["name"], error)


def summarize(
    folder: Path, record: Mapping[str, Any], rows: pd.DataFrame, outcome: Outcome | None
) -> None:
    """Log the sweep as one W&B run: all its runs, their means over seeds, overlaps, figure and verdicts."""
    from skillgraft import claims, compare, figure, track

    measures = [name for name in store.MEASURES if name in rows]
    with track.summary(record, folder) as tracker:
        tracker.table(
            "runs", rows[["id", "task", "model", "selector", "sparsity", "seed", *measures]]
        )
        tracker.table("over_seeds", compare.over_seeds(rows, measures))
        pairs = claims.pairs_of(rows)
        if len(pairs):
            tracker.table("overlap", pairs)
            drawing = figure.heat_map(
                claims.square(pairs, "iou"), "overlap (IoU), mean of runs", "IoU"
            )
            tracker.image("overlap_map", figure.save(drawing, folder / "overlap.png"))
        if outcome is not None:
            tracker.table("claim", outcome.table)
            tracker.image("figure", folder / "figure.png")
            for statement in outcome.statements:
                if (measured := statement.measured) is not None:
                    values = {n: v for n, v in vars(measured).items() if v is not None}
                    tracker.summarize({f"claim/{statement.text}/{n}": v for n, v in values.items()})


def show_missing(jobs: Sequence[Mapping[str, Any]], command: str, place: store.Store) -> None:
    """Print the jobs that are not whole, and the command that makes just those."""
    for job in jobs:
        what = job["state"] or "not started"
        if what == state.RUNNING and (
            job["id"] is None or not lease.holder(place.lease(job["id"]))
        ):
            what = "killed"  # and had no time to say so; submitit leaves the others running
        why = ": ".join(job[name] for name in ("error", "message") if job[name])
        print(
            f"  {what}: {' '.join(job['overrides'])}{f' ({why})' if why else ''}", file=sys.stderr
        )
    print(f"the same command makes just these again: {command}", file=sys.stderr)


def judge(folder: Path, record: Mapping[str, Any], rows: pd.DataFrame) -> Outcome:
    """Return what the claim of a sweep comes to on its runs. Raises InputError without runs, or a claim."""
    from skillgraft import claims

    options = configuration.ClaimConfig(**record["claim"])
    if options.name not in claims.CLAIMS:
        raise InputError(f"claim.name={options.name}: expected one of {', '.join(claims.CLAIMS)}")
    if rows.empty:
        raise InputError(f"{folder}: none of its runs is whole")
    return claims.CLAIMS[options.name](rows, options)


def conclude(folder: Path, record: Mapping[str, Any], rows: pd.DataFrame) -> Outcome:
    """Judge the claim of a sweep, and write verdict, table and figure beside its record."""
    from skillgraft import figure

    outcome = judge(folder, record, rows)
    store.write_json(
        folder / "verdict.json",
        {
            "claim": record["claim"]["name"],
            "runs": len(rows),
            "statements": [statement.record() for statement in outcome.statements],
            "notes": outcome.notes,
        },
    )
    with atomic_write(folder / "table.csv") as scratch:
        outcome.table.to_csv(scratch, index=False)
    drawing = outcome.draw()
    for suffix in ("png", "svg"):
        figure.save(drawing, folder / f"figure.{suffix}")
    return outcome


def judged(place: store.Store, keep: bool) -> list[tuple[str, Statement]]:
    """Return the statements of every sweep of a store that has a claim, each with the sweep's name.

    Sweeps of one name have that of their folder. With `keep` verdict, table and figure are written
    beside each record. Of a claim that cannot be judged it is logged why.
    """
    from skillgraft import compare

    files = sorted(place.sweeps.glob("*/record.json"))  # a sweep that starts has none yet
    records = {file.parent: store.read_json(file) for file in files}
    known = Counter(record["name"] for record in records.values())
    found = []
    for folder, record in bars.over(records.items(), "claims", len(records), bars.shown()):
        if record["claim"]["name"] is None:
            continue
        name = record["name"] if known[record["name"]] == 1 else folder.name
        rows = compare.collect(place, run_ids(record, jobs_of(record)))
        try:
            outcome = (conclude if keep else judge)(folder, record, rows)
        except InputError as error:
            log.warning("%s: no verdict: %s", name, error)
            continue
        found += [(name, statement) for statement in outcome.statements]
    return found


def verdicts(found: Sequence[tuple[str, Statement]]) -> list[dict[str, str]]:
    """Return statements as the rows of a table: the paper's figure, mean [interval] and n, verdict."""
    return [
        {
            "sweep": name,
            "statement": one.text,
            "paper": one.paper,
            "measured": str(one.measured or "–"),
            "verdict": one.verdict,
        }
        for name, one in found
    ]


def show(name: str, outcome: Outcome) -> None:
    """Print a claim's table, and its statements with the paper's figures beside the measured ones."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 200)
    for title, columns, lines in (
        (
            name,
            list(map(str, outcome.table.columns)),
            outcome.table.astype(str).to_numpy().tolist(),
        ),
        (
            "Student's t intervals over seeds (95 %)",
            ["statement", "paper", "measured", "verdict"],
            [[s.text, s.paper, str(s.measured or "–"), s.verdict] for s in outcome.statements],
        ),
    ):
        table = Table(title=title, box=box.SIMPLE, title_justify="left", padding=(0, 1, 0, 0))
        for column in columns:
            table.add_column(column, overflow="fold")
        for line in lines:
            table.add_row(*line)
        console.print(table)
    for note in outcome.notes:
        console.print(note, highlight=False)
