"""Reruns: stored runs made again from nothing in a scratch store, and compared with what was stored."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from skillgraft.config import compose, messages, selectors
from skillgraft.config.choices import Mode
from skillgraft.config.schema import ResolvedConfig
from skillgraft.experiments import provenance
from skillgraft.runtime import digests, files
from skillgraft.runtime.errors import InputError
from skillgraft.runtime.job import JobContext
from skillgraft.store import checksums, identity, references
from skillgraft.store.folders import Store
from skillgraft.store.names import (
    CONFIG,
    GRAFT,
    METRICS,
    PROVENANCE,
    RECORD,
    STATUS,
    TABLE,
    VERDICT,
)
from skillgraft.tasks import loading

MISSING = "nothing"


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it was recorded."""

    what: str
    recorded: Any
    found: Any

    def __str__(self) -> str:
        """Return it in one line."""
        return f"{self.what}: recorded {self.recorded}, found {self.found}"


def unequal(prefix: str, recorded: Mapping[str, Any], found: Mapping[str, Any]) -> list[Difference]:
    """Return the names whose values differ exactly, or that one of two mappings lacks."""
    pairs = [
        Difference(prefix + name, recorded.get(name, MISSING), found.get(name, MISSING))
        for name in {**recorded, **found}
    ]
    return [pair for pair in pairs if pair.recorded != pair.found]


def find(name: str, store: Store) -> Path:
    """Return the folder of a whole run: given, named by its id, or by a W&B path `entity/project/id`.

    A W&B run has a run's hash as its id. Raises InputError where the store does not have the run.
    """
    for folder in (Path(name), store.run(name)):
        if checksums.is_complete(folder):
            return folder.absolute()
    digest = name.rstrip("/").rpartition("/")[2]
    found = [run["id"] for run in store.runs() if run["id"].endswith(f"-{digest}")]
    if len(found) != 1:
        raise InputError(f"{name}: no complete run, and none in {store.root} of this id (--store)")
    return store.run(found[0])


def runs_of_figure(figure: str, sweep: Path) -> list[Path]:
    """Return the runs behind the figure of a sweep, in their order.

    Raises InputError where the sweep draws another figure, has not drawn it, or lost one of its runs.
    """
    from skillgraft.store.sweep_records import jobs_of, run_ids

    if not (sweep / RECORD).is_file():
        raise InputError(f"{sweep}: no sweep; expected a folder STORE/sweeps/NAME")
    record = files.read_json(sweep / RECORD)
    if (known := record["claim"]["name"]) != figure:
        raise InputError(f"--figure {figure}: the figure of {sweep.name} is {known or 'none'}")
    if not (sweep / TABLE).is_file():
        raise InputError(f"{sweep}: not drawn yet; `grafts claims {sweep.parents[1]}` draws it")
    store = Store(sweep.parents[1])
    # those that failed are not in the figure either, and `conclude` counts them
    drawn = [
        f
        for name in run_ids(record, jobs_of(record))
        if checksums.is_complete(f := store.run(name))
    ]
    judged = files.read_json(sweep / VERDICT)["runs"]
    if len(drawn) != judged:
        raise InputError(f"{sweep}: drawn from {judged} runs, of which the store has {len(drawn)}")
    return drawn


def prepare(folder: Path, scratch: Store) -> ResolvedConfig:
    """Return a run's stored configuration for a scratch store. Raises InputError where it no longer fits."""
    file = folder / CONFIG
    try:
        merged = OmegaConf.merge(OmegaConf.structured(ResolvedConfig), OmegaConf.load(file))
    except OmegaConfBaseException as error:
        raise InputError(f"{file}: {messages.explain(error)}") from error
    cfg = cast(ResolvedConfig, merged)
    cfg.store, cfg.force, cfg.logger.mode = str(scratch.root), False, Mode.none

    def at(path: str) -> str:
        """Return where another run that this one reads is now: made again, beside it, or where it was."""
        name = Path(path).name
        places = (scratch.run(name), folder.parent / name)
        return next((str(place) for place in places if checksums.is_complete(place)), path)

    if cfg.continual.init_from is not None:
        cfg.continual.init_from = at(cfg.continual.init_from)
    options = cast(Any, cfg.graft)
    if options.paths is not None:
        options.paths = [at(path) for path in options.paths]
    match = cfg.graft.size_from
    if match in selectors.modules() and match != cfg.graft.selector:
        # The scratch store may lack the run that is matched: the size is that of the run which
        # the original store has, so that one run can be made again without all the others.
        probe = compose.changed(cfg, {"store": str(folder.parent)})
        match = str(references.matched_run(probe, loading.load(cfg)))
    if match is not None and match not in selectors.modules():
        cfg.graft.size_from = at(match)
    return cfg


def environment(folder: Path) -> list[Difference]:
    """Return what differs between the versions, code and device of a run and those of today."""
    facts = files.read_json(folder / PROVENANCE)
    return [
        *unequal("version of ", facts["versions"], provenance.versions()),
        *unequal("skillgraft's ", facts.get("code") or {}, provenance.code() or {}),
        *unequal("device ", facts.get("device", {}), provenance.device(facts["accelerator"])),
    ]


def inputs(folder: Path, scratch: Store) -> list[Difference]:
    """Return the files, and the digests of rows, tokenizer and base weights, that have changed."""
    facts = files.read_json(folder / PROVENANCE)
    # A file that is elsewhere now is no difference as long as the digests below are the same.
    there = {
        name: digest for name, digest in facts.get("files", {}).items() if Path(name).is_file()
    }
    found = {name: digests.file_digest(Path(name)) for name in there}
    changed = unequal("file ", there, found)
    try:
        cfg = prepare(folder, scratch)
        rows = loading.load(cfg)
        found = provenance.digests(identity.identify(cfg, rows), rows)
    except InputError as error:
        return [*changed, Difference("what the run reads", "readable", str(error))]
    recorded = facts["digests"]  # without a mixture's other tasks in runs of an earlier version
    now = {name: digest for name, digest in found.items() if name in recorded}
    return [*changed, *unequal("digest of ", recorded, now)]


def check(folders: Sequence[Path], scratch: Store) -> tuple[list[Difference], list[Difference]]:
    """Return what differs of the runs' environment, and of what they read, each once."""
    around = [different for folder in folders for different in environment(folder)]
    read = [different for folder in folders for different in inputs(folder, scratch)]
    return list(dict.fromkeys(around)), list(dict.fromkeys(read))


def reproduce(
    folder: Path, scratch: Store, cached: bool = False, context: JobContext | None = None
) -> Path:
    """Make a run again in a scratch store and return its folder there; what it prints goes to stderr.

    With `cached` the fine-tuned weights are those of the run's own store. The context says what the
    new run is told of its job. Raises InputError for bad
    input, and for weights that are not there.
    """
    from skillgraft.experiments.run import run

    if cached:
        copy_finetuned(folder, scratch)
    with redirect_stdout(sys.stderr):
        return run(prepare(folder, scratch), context or JobContext())


def copy_finetuned(folder: Path, scratch: Store) -> None:
    """Copy a run's fine-tuned weights into the scratch store. Raises InputError where there are none."""
    name = files.read_json(folder / STATUS)["finetuned"]
    source, target = Store(folder.parent).finetuned(name), scratch.finetuned(name)
    if not checksums.is_complete(source):
        raise InputError(f"--cached: no fine-tuned weights in {source}")
    if not target.is_dir():
        shutil.copytree(source, target)


def compare(made: Mapping[Path, Path]) -> list[Difference]:
    """Return in what runs differ from those made again, each under its id where there are several."""
    found = []
    for stored, new in made.items():
        prefix = f"{stored.name}: " if len(made) > 1 else ""
        found += [replace(d, what=prefix + d.what) for d in differences(stored, new)]
    return found


def differences(stored: Path, made: Path) -> list[Difference]:
    """Return every metric, prediction file, weight digest and identity value in which two runs differ."""
    from skillgraft.store.metric_names import flatten

    old, new = (files.read_json(f / STATUS) for f in (stored, made))
    metrics = [flatten(files.read_json(f / METRICS)) for f in (stored, made)]
    names = sorted({f.name for place in (stored, made) for f in place.glob("predictions*.parquet")})
    return [
        *unequal("", {"id": old["id"]}, {"id": new["id"]}),
        *unequal("identity ", old["config"], new["config"]),
        *unequal("metric ", *metrics),
        *(different for name in names for different in rows(name, stored / name, made / name)),
        *unequal("digest of ", tensors(stored), tensors(made)),
    ]


def rows(name: str, stored: Path, made: Path) -> Iterator[Difference]:
    """Yield how two tables of predictions differ, if they do."""
    import pandas as pd

    if not (stored.is_file() and made.is_file()):
        yield Difference(name, *("there" if f.is_file() else MISSING for f in (stored, made)))
        return
    old, new = pd.read_parquet(stored), pd.read_parquet(made)
    if list(old.columns) != list(new.columns) or len(old) != len(new):
        yield Difference(name, f"{len(old)} rows", f"{len(new)} rows or other columns")
    elif count := int(((old != new) & ~(old.isna() & new.isna())).any(axis=1).sum()):
        yield Difference(name, f"{len(old)} rows", f"{count} of them with other values")


def tensors(folder: Path) -> dict[str, str | None]:
    """Return the digests of a run's region, grafted values, head and fine-tuned weights."""
    from skillgraft.core import digests as tensor_digests
    from skillgraft.core.graft import Graft

    graft = Graft.load(folder / GRAFT)
    facts = files.read_json(folder / PROVENANCE)
    return {
        "region": tensor_digests.digest(graft.indices),
        "grafted values": tensor_digests.digest(graft.values),
        "head": tensor_digests.digest(graft.head),
        "fine-tuned weights": facts.get("finetuned", {}).get("weights"),
    }


def redraw(sweep: Path, scratch: Store, names: Sequence[str]) -> tuple[Path, list[Difference]]:
    """Draw a sweep's figure from runs of a scratch store; return its folder and how its data differ."""
    from skillgraft.analysis import collect
    from skillgraft.analysis.claims.judging import conclude

    folder = scratch.sweeps / sweep.name
    folder.mkdir(parents=True)
    record = files.read_json(sweep / RECORD)
    # no job folders: the runs are those that were made again
    record |= {"jobs": str(folder), "ids": [], "runs": list(names)}
    files.write_json(folder / RECORD, record)
    conclude(folder, record, collect.collect(scratch, record["runs"]))
    verdicts = [cells(f / VERDICT) for f in (sweep, folder)]
    tables = [cells(f / TABLE) for f in (sweep, folder)]
    return folder, [*unequal("table.csv ", *tables), *unequal("verdict.json ", *verdicts)]


def cells(file: Path) -> dict[str, str]:
    """Return every cell of a table, or every value of a verdict, as text by its place."""
    import pandas as pd

    if file.suffix == ".csv":
        frame = pd.read_csv(file, dtype=str, keep_default_na=False)
        lines = frame.to_dict(orient="records")
        return {f"row {n} {c}": v for n, line in enumerate(lines, 1) for c, v in line.items()}
    content = files.read_json(file)
    lines = content.pop("statements")
    named = {f"{line['statement']} {k}": v for line in lines for k, v in line.items()}
    return {name: json.dumps(value) for name, value in {**content, **named}.items()}
