"""What of a configuration can change a result."""

from __future__ import annotations

import dataclasses
from typing import Any

from omegaconf import OmegaConf

from skillgraft.config import selectors
from skillgraft.config.choices import Kind, Trainable
from skillgraft.config.compose import plain
from skillgraft.config.keys import dotted_keys, keys_of
from skillgraft.config.schema import RunConfig


def identity(cfg: RunConfig) -> dict[str, Any]:
    """Return dotted key → value of all that can change the result and is not the default.

    A value that equals the schema's default is left out, so that a key added later, whose default
    means "as before", renames no run.
    """
    values, everything, unread = {}, plain(cfg), unread_keys(cfg)
    groups = {name.rpartition(".")[0] for name, _ in dotted_keys()}  # their keys come themselves
    hidden = [name for name, entry in keys_of(cfg) if entry.metadata.get("identity") is False]
    for name, entry in keys_of(cfg):
        if name in groups or name in unread:
            continue
        if any(name == h or name.startswith(h + ".") for h in hidden):
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
    return values


def unread_keys(cfg: RunConfig) -> set[str]:
    """Return the keys that the selector, or the kind of fine-tuning, never reads."""
    unread = set()
    if not selectors.options(cfg).reads_sparsity:
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
    name, options = cfg.graft.selector, selectors.options(cfg)
    if options.reads_sparsity:
        return f"{name}-s{cfg.sparsity:g}"
    key, part = options.named_by, None
    if key is not None and not OmegaConf.is_missing(cfg.graft, key):
        part = getattr(cfg.graft, key)
    return name + (f"-{part}".replace(" ", "_") if part else "")
