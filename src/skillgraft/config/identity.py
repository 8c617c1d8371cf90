"""What of a configuration can change a result."""

from __future__ import annotations

import dataclasses
from typing import Any

from skillgraft.config.choices import READ, UNSIZED, Kind, Selector, Trainable
from skillgraft.config.compose import plain
from skillgraft.config.keys import dotted_keys
from skillgraft.config.schema import RunConfig


def identity(cfg: RunConfig) -> dict[str, Any]:
    """Return dotted key → value of all that can change the result and is not the default.

    A value that equals the schema's default is left out, so that a key added later, whose default
    means "as before", renames no run.
    """
    values, everything = {}, plain(cfg)
    groups = {name.rpartition(".")[0] for name, _ in dotted_keys()}  # their keys come themselves
    hidden = [name for name, entry in dotted_keys() if entry.metadata.get("identity") is False]
    for name, entry in dotted_keys():
        if name in groups or any(name == h or name.startswith(h + ".") for h in hidden):
            continue
        value: Any = everything
        for part in name.split("."):
            value = value[part]
        default = (
            entry.default_factory()
            if entry.default_factory is not dataclasses.MISSING
            else entry.default
        )
        if value != default:
            values[name] = value
    unread = unread_keys(cfg)
    return {name: value for name, value in values.items() if name not in unread}


def unread_keys(cfg: RunConfig) -> set[str]:
    """Return the keys that the selector, or the kind of fine-tuning, never reads."""
    read = {"graft.selector", *(f"graft.{name}" for name in READ.get(cfg.graft.selector, ()))}
    unread = {name for name, _ in dotted_keys() if name.startswith("graft.") and name not in read}
    if cfg.graft.selector in UNSIZED:
        unread.add("sparsity")
    if cfg.finetune.kind is not Kind.linear:
        unread |= {"finetune.pool", "finetune.feature_norm", "finetune.head_lr"}
    if cfg.finetune.trainable is not Trainable.lora:
        unread |= {"finetune.rank", "finetune.alpha"}
    if cfg.continual.init_from is None:  # also at the first stage of a sequence
        unread.add("continual.carry")
    return unread


def described(cfg: RunConfig) -> str:
    """Return the selector with its sparsity, or with what it takes instead, for names of runs."""
    graft = cfg.graft
    if graft.selector not in UNSIZED:
        return f"{graft.selector.value}-s{cfg.sparsity:g}"
    part = {Selector.layer: graft.layer, Selector.module: graft.module}.get(graft.selector)
    return graft.selector.value + (f"-{part}".replace(" ", "_") if part else "")
