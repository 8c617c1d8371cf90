"""Sequences of tasks: the stages that a run builds on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from skillgraft.config.identity import identity
from skillgraft.config.schema import RunConfig
from skillgraft.models import checkpoint_files
from skillgraft.runtime.digests import short_hash
from skillgraft.runtime.errors import InputError
from skillgraft.store.checksums import is_complete
from skillgraft.store.folders import Store
from skillgraft.store.names import CONFIG


def base_digests(cfg: RunConfig) -> dict[str, str]:
    """Return the digests of the base model's weights and tokenizer."""
    return checkpoint_files.digests(cfg.model, Store(cfg.store).cache / "digests")


def base_values(cfg: RunConfig) -> dict[str, Any]:
    """Return what of the configuration can change the result, and the device."""
    device = "cuda" if cfg.trainer.accelerator == "gpu" else "cpu"
    return {**identity(cfg), "device": device}


def stage(cfg: RunConfig, tasks: list[str]) -> str:
    """Return the name of a place in a sequence: the same for runs that differ in data only.

    What a stage takes of the one before it counts from the second on.
    """
    values = {**base_values(cfg), **base_digests(cfg)}
    kept = {
        n: v
        for n, v in values.items()
        if not n.startswith(("task.", "compare.", "continual.carry"))
    }
    take = cfg.continual.carry.value if len(tasks) > 1 else None
    return f"{short_hash({**kept, 'take': take})}:{'>'.join(tasks)}"


def chain(cfg: RunConfig) -> list[dict[str, Any]]:
    """Return what was run before a stage, the first stage first: `folder`, `task` and `config`."""
    stages: list[dict[str, Any]] = []
    after = cfg.continual.init_from
    while after is not None:
        folder = Path(after)
        if not is_complete(folder) and stages:  # a store that was moved: runs lie side by side
            folder = stages[-1]["folder"].parent / folder.name
        if not is_complete(folder):
            raise InputError(
                f"continual.init_from: {after}: no complete run, though a later stage names it"
            )
        config = OmegaConf.load(folder / CONFIG)
        stages.append({"folder": folder, "task": config.task.name, "config": config})
        after = config.continual.init_from
    return stages[::-1]
