"""The experiment store: ids, run folders that are whole or absent, and the cache of fine-tunings."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from safetensors import SafetensorError, safe_open

from skillgraft import checkpoint, hub, index, lease
from skillgraft.config import RunConfig, Selector, TaskConfig, described, identity, verbalizer
from skillgraft.data import SPLITS, TaskData
from skillgraft.errors import InputError, NotThere
from skillgraft.files import write_text

log = logging.getLogger(__name__)
RUN_FILE = "run.json"  # in a job's folder: which run it made or found, and what became of it
MADE, SHARED = "made", "shared"  # in it: what the job did for the fine-tuned weights
# What every table shows unless it is told otherwise: the names of metrics.json joined by '/'.
MEASURES = (
    "pretrained/test/accuracy", "finetuned/test/accuracy", "graft/test/accuracy",
    "pretrained/test/ece", "finetuned/test/ece", "graft/test/ece",
    "graft/test/agreement", "graft/test/relative_gain", "region/size",
)  # fmt: skip
SIZE = "graft.size"  # in an identity: the size that graft.match came to


@dataclass(frozen=True)
class Identity:
    """What a run is, as hashes of all that can change its result.

    `finetuned` names the fine-tuning it shares; `peers` is equal for runs that differ in task and
    data only; `rivals` for runs that differ in the selector and its options only; `setting` for
    runs that differ in the seed and the rows it draws; `region` for runs whose region is the same,
    since they differ in comparison models only; `left` for runs that leave the next stage of a
    sequence the same, since they differ in these or in what they are measured on; `stage` names a
    place in a sequence of tasks.
    """

    id: str
    group: str
    hash: str
    finetuned: str
    peers: str
    rivals: str
    setting: str
    region: str
    left: str
    stage: str
    digests: Mapping[str, str]


def short_hash(values: Mapping[str, Any]) -> str:
    """Return ten hex digits that name a mapping of plain values."""
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def identify(cfg: RunConfig, data: TaskData, size: int | None = None) -> Identity:
    """Return the identity of a run from its configuration and the digests of what it reads."""
    digests, origins = {"data": data.digest(), **base_digests(cfg)}, []
    if cfg.graft.selector is Selector.file:
        files = [checkpoint.file_digest(graft_file(path)) for path in cfg.graft.paths]
        digests["grafts"] = short_hash({"files": files})
        origins = [made_of(graft_meta(graft_file(path))) for path in cfg.graft.paths]
    values = {**base_values(cfg), **{f"digest.{k}": v for k, v in digests.items()}}
    if size is not None:
        values[SIZE] = size
    own: tuple[str, ...] = ("task.", "digest.data")
    if cfg.model.after is not None:
        before = read_json(Path(cfg.model.after) / "status.json")
        rows = {name: part.digest() for name, part in data.others.items()}
        # what the last stage left, and what is measured again
        values["digest.after"] = short_hash({"left": left_by(before), **rows})
    if cfg.finetune.tasks:
        tasks = {**cfg.others, cfg.task.name: cfg.task}
        rows = {name: part.digest() for name, part in data.others.items()}
        rows[cfg.task.name] = data.digest()
        mixed = {name: [definition(tasks[name]), rows[name]] for name in cfg.finetune.tasks}
        values["digest.mixture"] = short_hash(mixed)

    def without(*prefixes: str) -> dict[str, Any]:
        return {name: v for name, v in values.items() if not name.startswith(prefixes)}

    beside = "compare."
    name = f"{cfg.task.name}-{cfg.model.name}-{described(cfg)}"
    whole = short_hash(values)
    mixture = own if cfg.finetune.tasks else ()
    return Identity(
        id=f"{name}-seed{cfg.seed}-{whole}",
        group=name,
        hash=whole,
        finetuned=short_hash(without("graft.", "sparsity", beside, "digest.grafts", *mixture)),
        peers=short_hash(
            {
                **without(*own, SIZE, beside, "digest.after"),
                **({"matched": True} if size is not None else {}),  # of another size than asked
            }
        ),
        rivals=short_hash(without("graft.", beside)),
        setting=short_hash(
            {
                **without(
                    "seed", "digest.data", SIZE, "digest.after", "digest.mixture", "digest.grafts"
                ),
                "matched": size is not None,
                **({"grafts": origins} if origins else {}),
            }
        ),
        region=short_hash(without(beside)),
        left=short_hash(
            {**without(beside, "digest.data", "task.ood"), "train": data.training_digest()}
        ),
        stage=stage(cfg, [*(c["task"] for c in chain(cfg)), cfg.task.name]),
        digests=digests,
    )


def region_of(run: Mapping[str, Any]) -> str:
    """Return a name of a run's region by its status; a record of an older version has the run's own."""
    return str(run.get("region", run["id"]))


def left_by(run: Mapping[str, Any]) -> str:
    """Return a name of what a run leaves the next stage of a sequence, by its status."""
    return str(run.get("left", region_of(run)))


def the_one(
    runs: list[dict[str, Any]],
    key: str,
    what: str,
    hint: str = "",
    same: Callable[[Mapping[str, Any]], str] = region_of,
) -> dict[str, Any]:
    """Return the one run that was found, or raise InputError: NotThere where there is none.

    Runs whose regions, or what `same` names, are the same count as one.
    """
    if len({same(run) for run in runs}) != 1:
        names = ", ".join(run["id"] for run in runs) or "none"
        kind = InputError if runs else NotThere
        raise kind(f"{key}: expected one whole run {what}, found {names}{hint}")
    return runs[0]


def base_digests(cfg: RunConfig) -> dict[str, str]:
    """Return the digests of the base model's weights and tokenizer."""
    return checkpoint.digests(cfg.model, Store(cfg.store).cache / "digests")


def base_values(cfg: RunConfig) -> dict[str, Any]:
    """Return what of the configuration can change the result, and the device."""
    device = "cuda" if cfg.trainer.accelerator == "gpu" else "cpu"
    return {**identity(cfg), "device": device}


def definition(task: TaskConfig) -> list[Any]:
    """Return what of a task, beside its rows, can change a fine-tuning."""
    return [task.template, verbalizer(task), list(task.labels), task.metric.value, task.max_length]


def graft_file(path: str) -> Path:
    """Return the graft file of a run's folder, of hub:OWNER/NAME[@REVISION], or the file itself."""
    if path.startswith(hub.SCHEME):
        return hub.fetch_named(path)
    file = Path(path) / "graft.safetensors" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise InputError(f"{path}: no run's folder, and no graft file")
    return file


def graft_meta(file: Path) -> dict[str, Any]:
    """Return what a graft file says of itself, from its header alone."""
    try:
        with safe_open(file, framework="numpy") as content:
            header = json.loads((content.metadata() or {}).get("skillgraft", "null"))
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise InputError(f"graft.paths: {file}: not a whole safetensors file ({error})") from error
    if not isinstance(header, dict) or not isinstance(header.get("meta"), dict):
        raise InputError(f"graft.paths: {file}: a safetensors file, but no graft")
    return header["meta"]


def made_of(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a graft was made, the same for every seed: task, selector and size, or parents."""
    kept = {name: meta.get(name) for name in ("task", "selector", "asked_sparsity", "rule")}
    return {**kept, "parents": [made_of(parent) for parent in meta.get("parents", ())]}


def resolve_paths(cfg: RunConfig, data: TaskData) -> None:
    """Make every path of `graft.paths` the folder or file of a graft.

    A task's name means the whole run in the store of the same fine-tuning and sparsity whose region
    the selector `graft.by` chose: for the tasks of a mixture. A graft on the hub gets its commit.
    """
    if cfg.graft.selector is not Selector.file:
        return
    place, found = Store(cfg.store), []
    probe = copy.deepcopy(cfg)  # the fine-tuning that is shared does not depend on the selector
    probe.graft.selector = Selector.movement
    shared = identify(probe, data).finetuned
    by = cfg.graft.by.value if cfg.graft.by is not None else None
    for path in cfg.graft.paths:
        if path.startswith(hub.SCHEME):
            found.append(hub.pinned(path))
            continue
        options = (Path(path).expanduser(), place.run(path))
        known = next((option.absolute() for option in options if option.exists()), None)
        if known is None:
            wanted, of = (path, by, cfg.sparsity), ("task", "selector", "sparsity")
            alike = place.runs("finetuned", shared)
            runs = [run for run in alike if tuple(run[name] for name in of) == wanted]
            known = place.run(
                the_one(
                    runs,
                    f"graft.paths: {path}: no file and no run",
                    f"of this fine-tuning for task {path} with graft={by} "
                    f"sparsity={cfg.sparsity:g} in {place.root}",
                )["id"]
            )
        found.append(str(known))
    cfg.graft.paths = found


# ---------------------------------------------------------------------------------------------
# Sequences of tasks (method: section 7)


def stage(cfg: RunConfig, tasks: list[str]) -> str:
    """Return the name of a place in a sequence: the same for runs that differ in data only.

    What a stage takes of the one before it counts from the second on.
    """
    values = {**base_values(cfg), **base_digests(cfg)}
    kept = {
        n: v for n, v in values.items() if not n.startswith(("task.", "compare.", "model.take"))
    }
    take = cfg.model.take.value if len(tasks) > 1 else None
    return f"{short_hash({**kept, 'take': take})}:{'>'.join(tasks)}"


def resolve_after(cfg: RunConfig) -> None:
    """Make `model.after` the folder of the run that a stage starts from, or leave it null at the first."""
    place, sequence = Store(cfg.store), list(cfg.model.sequence)
    if cfg.model.after is not None:
        folders = (Path(cfg.model.after).expanduser(), place.run(cfg.model.after))
        found = next((f.absolute() for f in folders if is_whole(f)), None)
        if found is None:
            raise InputError(f"model.after={cfg.model.after}: no whole run of this name")
        if (model := read_json(found / "status.json")["model"]) != cfg.model.name:
            raise InputError(f"model.after={cfg.model.after}: a run of another model, {model}")
        cfg.model.after = str(found)
    elif earlier := sequence[: sequence.index(cfg.task.name)] if sequence else []:
        wanted = stage(cfg, earlier)
        run = the_one(
            list(place.runs("stage", wanted)),
            "model.sequence",
            f"of this setting as the stage {' > '.join(earlier)} in {place.root}",
            "; run the tasks in their order, or name one with model.after",
            left_by,
        )
        cfg.model.after = str(place.run(run["id"]))


def chain(cfg: RunConfig) -> list[dict[str, Any]]:
    """Return what was run before a stage, the first stage first: `folder`, `task` and `config`."""
    stages: list[dict[str, Any]] = []
    after = cfg.model.after
    while after is not None:
        folder = Path(after)
        if not is_whole(folder) and stages:  # a store that was moved: runs lie side by side
            folder = stages[-1]["folder"].parent / folder.name
        if not is_whole(folder):
            raise InputError(f"model.after: {after}: no whole run, though a later stage names it")
        config = OmegaConf.load(folder / "config.yaml")
        stages.append({"folder": folder, "task": config.task.name, "config": config})
        after = config.model.after
    return stages[::-1]


# ---------------------------------------------------------------------------------------------
# Sizes


def matched_run(cfg: RunConfig, data: TaskData) -> Path | None:
    """Return the run whose size `graft.match` names, by folder, id, or selector, or None without one.

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
        return folder
    probe = copy.deepcopy(cfg)  # a selector that has no size does not read `sparsity` either
    probe.graft.selector = Selector(match)
    rivals = identify(probe, data).rivals
    run = the_one(
        [run for run in store.runs("rivals", rivals) if run["selector"] == match],
        f"graft.match={match}",
        f"in {store.root} that differs in the selector only",
        f"; run it first with graft={match}, or name one",
    )
    return store.run(run["id"])


def matched_size(cfg: RunConfig, data: TaskData) -> int | None:
    """Return the size of the region of the run that `graft.match` names, or None without one."""
    run = matched_run(cfg, data)
    return None if run is None else int(read_json(run / "metrics.json")["region"]["size"])


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
        with lease.hold(self.lease(name)):
            yield

    def lease(self, name: str) -> Path:
        """Return where the lease of a run or a fine-tuning is, for `lease.holder`."""
        return self.root / ".locks" / f"{name}.lock"

    def publish(self, partial: Path, target: Path, status: Mapping[str, Any]) -> None:
        """Write checksums and status, and rename: from here on the folder is whole.

        Raises lease.LeaseLost where another process has meanwhile taken over from this one.
        """
        write_checksums(partial)
        write_json(partial / "status.json", {"state": "whole", **status})
        target.parent.mkdir(parents=True, exist_ok=True)
        lease.check()
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


def is_whole(folder: Path) -> bool:
    """Return whether a run or fine-tuning is whole: its status is written last, before the rename."""
    return (folder / "status.json").is_file()


def write_json(path: Path, content: Any) -> None:
    """Write strict JSON, complete or not at all: NaN is an error, never a value."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


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


def recorded_digest(folder: Path, name: str) -> str | None:
    """Return the sha256 of a file as a whole folder's checksums.txt has it, or None."""
    listing = folder / "checksums.txt"
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else []
    return next((d for d, _, n in (line.partition("  ") for line in lines) if n == name), None)


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
        *(
            (task, s)
            for task in (cfg.task, *cfg.ood.values(), *cfg.others.values())
            for s in SPLITS
        ),
    ):
        value = None if OmegaConf.is_missing(node, name) else getattr(node, name)
        if value is not None:
            setattr(node, name, str(Path(value).expanduser().absolute()))
    if cfg.graft.match is not None and is_whole(Path(cfg.graft.match)):
        cfg.graft.match = str(Path(cfg.graft.match).absolute())
    local = Path(cfg.model.path).expanduser()
    if not cfg.model.path.startswith("package:") and local.exists():
        cfg.model.path = str(local.absolute())
