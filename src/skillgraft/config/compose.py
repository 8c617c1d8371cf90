"""How a configuration is composed: the schema, its resolvers, and task files."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from skillgraft.config import launchers
from skillgraft.config.keys import dotted
from skillgraft.config.messages import explain
from skillgraft.config.nearest import nearest
from skillgraft.config.packages import SWEEPS
from skillgraft.config.schema import ResolvedConfig, RunConfig, TaskConfig
from skillgraft.runtime.errors import InputError

# What local/default.yaml may have: where things are on a machine, and nothing of what is computed.
MACHINE = (
    "store", "data_dir", "model.path", "trainer.progress", "logger",
    "hydra.run", "hydra.sweep", "hydra.launcher",
)  # fmt: skip
MACHINE_GROUPS = ("override /logger", "override /hydra/launcher")


def register() -> None:
    """Make the schema, the search path of the sweep files and what launchers ask known to Hydra."""
    ConfigStore.instance().store(name="schema", node=RunConfig)
    OmegaConf.register_new_resolver("skillgraft.sweeps", lambda: SWEEPS.as_uri(), replace=True)
    OmegaConf.register_new_resolver("skillgraft.jobs", launchers.jobs, replace=True)
    OmegaConf.register_new_resolver("skillgraft.gpus", launchers.gpus, replace=True)
    OmegaConf.register_new_resolver("skillgraft.cpus", launchers.cpus, replace=True)


def expand(cfg: RunConfig, folders: Sequence[Path]) -> ResolvedConfig:
    """Return a configuration with the tasks that a user's names, from files found as Hydra finds groups.

    The user's own is left as it is. The tasks of a stored configuration are kept.
    """
    check_local(folders)
    expanded = editable(cfg)
    if expanded.finetune.tasks:
        expanded.task.ood = []  # a mixture is measured on its tasks
    for name in expanded.task.ood:
        if name not in expanded.ood_tasks:
            expanded.ood_tasks[name] = task_file(name, "task.ood", folders)
    for name in expanded.finetune.tasks or ():
        if name not in (expanded.task.name, *expanded.other_tasks):
            other = task_file(name, "finetune.tasks", folders)
            other.max_test_examples = expanded.task.max_test_examples
            expanded.other_tasks[name] = other
    return expanded


def editable(cfg: RunConfig) -> ResolvedConfig:
    """Return a copy of a configuration that can be written to, as the type that runs are made from."""
    if OmegaConf.get_type(cfg) is ResolvedConfig:
        copied = cast(DictConfig, copy.deepcopy(cfg))
    else:  # as plain values: OmegaConf merges a type into its bases alone
        values = OmegaConf.to_container(cast(DictConfig, cfg), resolve=False)
        copied = cast(DictConfig, OmegaConf.merge(OmegaConf.structured(ResolvedConfig), values))
    OmegaConf.set_readonly(copied, None)
    OmegaConf.set_struct(copied, None)
    return cast(ResolvedConfig, copied)


def changed(cfg: RunConfig, values: Mapping[str, Any]) -> ResolvedConfig:
    """Return a read-only copy of a configuration in which some dotted keys have other values."""
    copied = editable(cfg)
    for name, value in values.items():
        OmegaConf.update(cast(DictConfig, copied), name, value, merge=False)
    OmegaConf.set_readonly(cast(DictConfig, copied), True)
    return copied


def check_local(folders: Sequence[Path]) -> None:
    """Raise InputError where local/default.yaml has more than a machine's paths: it would rename runs."""
    files = (folder / "local" / "default.yaml" for folder in folders)
    if (file := next((file for file in files if file.is_file()), None)) is None:
        return
    content = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(file)))
    chosen = [
        next(iter(base)) if isinstance(base, dict) else base
        for base in content.pop("defaults", None) or []
    ]
    found = [base for base in chosen if base not in ("_self_", *MACHINE_GROUPS)]
    found += [
        key
        for key in dotted(content)
        if not any(key == name or key.startswith(f"{name}.") for name in MACHINE)
    ]
    for key in found:
        raise InputError(
            f"{file}: {key}: only a machine's paths may stand there ({', '.join(MACHINE)})"
        )


def task_file(name: str, key: str, folders: Sequence[Path]) -> TaskConfig:
    """Return the task of a configuration file of the group `task`, without its own OOD sets."""
    found = in_group(name, folders)
    if found is None:
        known = {f.stem for folder in folders for f in (folder / "task").glob("[!_]*.yaml")}
        raise InputError(f"{key}: no task '{name}'.{nearest(name, sorted(known))}")
    try:
        parts = [content for _, content in task_parts(name, folders)]
        task = OmegaConf.merge(OmegaConf.structured(TaskConfig), *parts)
    except OmegaConfBaseException as error:
        raise InputError(f"{found}: {explain(error)}") from error
    task.ood = []
    return cast(TaskConfig, task)


def in_group(name: str, folders: Sequence[Path]) -> Path | None:
    """Return the file of a task: as Hydra searches, that of the first folder which has it."""
    files = (folder / "task" / f"{name}.yaml" for folder in folders)
    return next((file for file in files if file.is_file()), None)


def task_parts(
    name: str, folders: Sequence[Path], above: tuple[str, ...] = ()
) -> Iterator[tuple[str, DictConfig]]:
    """Yield the names and contents of a task's file and its bases, in the order in which they are merged.

    Hydra composes the task of a run, but only that one. Of a defaults list this knows what a task
    needs: names of files of the group `task`, and `_self_`, last where it is not named. Raises
    InputError for anything else.
    """
    file = in_group(name, folders)
    if file is None or name in above:
        user = in_group(above[-1], folders) if above else "task"
        raise InputError(f"{user}: defaults: {'a circle' if file else 'no task'} '{name}'")
    content = OmegaConf.load(file)
    if not isinstance(content, DictConfig):
        raise InputError(f"{file}: expected keys with values")
    bases = content.pop("defaults", None) or []
    for base in bases if "_self_" in bases else [*bases, "_self_"]:
        if base == "_self_":
            yield name, content
        elif isinstance(base, str) and re.fullmatch(r"[\w.+-]+", base):
            yield from task_parts(base, folders, (*above, name))
        else:
            raise InputError(
                f"{file}: defaults: {base}: a task that is named in task.ood or finetune.tasks may "
                "only have names of files of its own folder there, and _self_"
            )


def plain(cfg: Any) -> dict[str, Any]:
    """Return a resolved configuration as plain containers, enums by their value."""
    container = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    return cast(dict[str, Any], container)
