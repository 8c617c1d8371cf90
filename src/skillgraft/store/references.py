"""Runs that a configuration names: paths of grafts, earlier stages, matched sizes."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from skillgraft.config.choices import Selector
from skillgraft.config.schema import RunConfig
from skillgraft.runtime.errors import InputError, NotThere
from skillgraft.runtime.files import read_json
from skillgraft.store import hub_files
from skillgraft.store.checksums import is_whole
from skillgraft.store.folders import Store
from skillgraft.store.identity import identify, left_by, region_of
from skillgraft.store.sequences import stage
from skillgraft.tasks.rows import SPLITS, TaskData


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
        if path.startswith(hub_files.SCHEME):
            found.append(hub_files.pinned(path))
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
