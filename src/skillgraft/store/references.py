"""Runs that a configuration names: paths of grafts, earlier stages, matched sizes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from skillgraft.config import selectors
from skillgraft.config.compose import changed
from skillgraft.config.schema import ResolvedConfig
from skillgraft.runtime.errors import InputError, RunNotFound
from skillgraft.runtime.files import read_json
from skillgraft.store import hub_files
from skillgraft.store.checksums import is_complete
from skillgraft.store.folders import Store
from skillgraft.store.identity import identify, outcome_of, region_of
from skillgraft.store.names import METRICS, STATUS
from skillgraft.store.sequences import stage
from skillgraft.tasks.rows import SPLITS, TaskData


def single_run(
    runs: list[dict[str, Any]],
    key: str,
    what: str,
    hint: str = "",
    same: Callable[[Mapping[str, Any]], str] = region_of,
) -> dict[str, Any]:
    """Return the one run that was found, or raise InputError: NotThere where there is none.

    Args:
        runs: the status records that were found.
        key: the configuration key and its value, for the message.
        what: what was looked for, for the message.
        hint: what to do, for the message; begins with its own punctuation.
        same: a record → a text; runs of equal texts count as one.
    """
    if len({same(run) for run in runs}) != 1:
        names = ", ".join(run["id"] for run in runs) or "none"
        kind = InputError if runs else RunNotFound
        raise kind(f"{key}: expected one complete run {what}, found {names}{hint}")
    return runs[0]


def graft_paths(cfg: ResolvedConfig, data: TaskData) -> list[str]:
    """Return for every path of `graft.paths` the folder or file of a graft.

    A task's name means the whole run in the store of the same fine-tuning and sparsity whose region
    the selector `graft.paths_selector` chose: for the tasks of a mixture. A graft on the hub gets its commit.
    """
    if cfg.graft.selector != "file":
        return []
    store, found = Store(cfg.store), []
    # the fine-tuning that is shared does not depend on the selector
    probe = changed(cfg, {"graft": selectors.blank_options("movement")})
    shared = identify(probe, data).finetuned
    options = cast(Any, cfg.graft)
    by = options.paths_selector
    for path in options.paths:
        if path.startswith(hub_files.SCHEME):
            found.append(hub_files.pinned(path))
            continue
        places = (Path(path).expanduser(), store.run(path))
        known = next((place.absolute() for place in places if place.exists()), None)
        if known is None:
            wanted, of = (path, by, cfg.sparsity), ("task", "selector", "sparsity")
            alike = store.runs("finetuned", shared)
            runs = [run for run in alike if tuple(run[name] for name in of) == wanted]
            known = store.run(
                single_run(
                    runs,
                    f"graft.paths: {path}: no file and no run",
                    f"of this fine-tuning for task {path} with graft={by} "
                    f"sparsity={cfg.sparsity:g} in {store.root}",
                )["id"]
            )
        found.append(str(known))
    return found


def initial_run(cfg: ResolvedConfig) -> str | None:
    """Return the folder of the run that a stage starts from, or None at the first stage."""
    store, sequence = Store(cfg.store), list(cfg.continual.tasks)
    if cfg.continual.init_from is not None:
        folders = (Path(cfg.continual.init_from).expanduser(), store.run(cfg.continual.init_from))
        found = next((f.absolute() for f in folders if is_complete(f)), None)
        if found is None:
            raise InputError(
                f"continual.init_from={cfg.continual.init_from}: no complete run of this name"
            )
        if (model := read_json(found / STATUS)["model"]) != cfg.model.name:
            raise InputError(
                f"continual.init_from={cfg.continual.init_from}: a run of another model, {model}"
            )
        return str(found)
    if earlier := sequence[: sequence.index(cfg.task.name)] if sequence else []:
        wanted = stage(cfg, earlier)
        run = single_run(
            list(store.runs("stage", wanted)),
            "continual.tasks",
            f"of this setting as the stage {' > '.join(earlier)} in {store.root}",
            "; run the tasks in their order, or name one with continual.init_from",
            outcome_of,
        )
        return str(store.run(run["id"]))
    return None


def matched_run(cfg: ResolvedConfig, data: TaskData) -> Path | None:
    """Return the run whose size `graft.size_from` names, by folder, id, or selector, or None without one.

    A selector's name means the whole run in the store that differs in the selector only; a run
    matches itself, so that one sweep can give `graft.size_from=learned` to all its selectors.
    """
    match, store = cfg.graft.size_from, Store(cfg.store)
    if match is None or match == cfg.graft.selector:
        return None
    if match not in selectors.modules():
        folder = next((f for f in (Path(match), store.root / match) if is_complete(f)), None)
        if folder is None:
            raise InputError(
                f"graft.size_from={match}: no complete run of this name in {store.root}"
            )
        if (model := read_json(folder / STATUS)["model"]) != cfg.model.name:
            raise InputError(f"graft.size_from={match}: a run of another model, {model}")
        return folder
    # a selector that has no size does not read `sparsity` either
    probe = changed(cfg, {"graft": selectors.blank_options(match, cfg.graft.size_from)})
    rivals = identify(probe, data).same_but_selector
    run = single_run(
        [run for run in store.runs("same_but_selector", rivals) if run["selector"] == match],
        f"graft.size_from={match}",
        f"in {store.root} that differs in the selector only",
        f"; run it first with graft={match}, or name one",
    )
    return store.run(run["id"])


def matched_size(cfg: ResolvedConfig, data: TaskData) -> int | None:
    """Return the size of the region of the run that `graft.size_from` names, or None without one."""
    run = matched_run(cfg, data)
    return None if run is None else int(read_json(run / METRICS)["region"]["size"])


def absolute_paths(cfg: ResolvedConfig) -> dict[str, str]:
    """Return every path of the configuration as an absolute one, by its dotted key.

    It then means the same from anywhere.
    """
    found = {"store": os.path.abspath(os.path.expanduser(cfg.store))}  # noqa: PTH100, PTH111
    tasks = {"task": cfg.task}
    for group, several in (("ood_tasks", cfg.ood_tasks), ("other_tasks", cfg.other_tasks)):
        tasks |= {f"{group}[{name}]": task for name, task in several.items()}
    given = {
        f"{key}.{split}": getattr(task, split)
        for key, task in tasks.items()
        for split in SPLITS
        if not OmegaConf.is_missing(task, split)
    }
    for key, path in {"data_dir": cfg.data_dir, **given}.items():
        if path is not None:
            found[key] = str(Path(path).expanduser().absolute())
    if cfg.graft.size_from is not None and is_complete(Path(cfg.graft.size_from)):
        found["graft.size_from"] = str(Path(cfg.graft.size_from).absolute())
    local = Path(cfg.model.path).expanduser()
    if not cfg.model.path.startswith("package:") and local.exists():
        found["model.path"] = str(local.absolute())
    return found
