"""Values that are missing, out of range, or do not fit each other."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from skillgraft.config import selectors
from skillgraft.config.choices import PRECISIONS, Kind, Metric, Strategy, Trainable
from skillgraft.config.keys import dotted_keys, keys_of, limits, unknown
from skillgraft.config.nearest import nearest
from skillgraft.config.schema import ResolvedConfig, RunConfig, TaskConfig
from skillgraft.runtime.errors import InputError


def check(cfg: RunConfig) -> None:
    """Raise InputError for the first value that is missing, out of range or does not fit another."""
    resolved = OmegaConf.get_type(cfg) is ResolvedConfig  # that of a run which is made again
    for key in unknown(cfg, ResolvedConfig if resolved else RunConfig):
        raise InputError(
            f"no key '{key}' in the configuration.{nearest(key, [name for name, _ in dotted_keys()])}"
        )
    if OmegaConf.is_missing(cfg.graft, "selector"):
        raise InputError("graft.selector: no value; give one with graft.selector=…")
    for name, entry in keys_of(cfg):
        node: Any = cast(DictConfig, cfg)
        for part in name.split("."):
            if node is None:  # without a claim, its keys have no values
                break
            if OmegaConf.is_missing(node, part):
                raise InputError(f"{name}: no value; give one with {name}=…")
            node = node[part]
        if isinstance(node, float) and not math.isfinite(node):
            raise InputError(f"{name}={node}: expected a finite value{limits(entry)}")
        low, high = entry.metadata.get("low"), entry.metadata.get("high")
        for value in node if OmegaConf.is_list(node) else [node]:
            if low is None or value is None or low <= value <= (high or float("inf")):
                continue
            raise InputError(f"{name}={value}: expected a value{limits(entry)}")
    if not cfg.store.strip():
        raise InputError("store: expected a folder, found nothing")
    for key, name in (("task.name", cfg.task.name), ("model.name", cfg.model.name)):
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", name):
            raise InputError(
                f"{key}={name}: it names a folder; expected letters, digits and any of _ . + -"
            )
    check_task(cfg.task)
    if cfg.trainer.accelerator not in ("cpu", "gpu"):
        raise InputError(f"trainer.accelerator={cfg.trainer.accelerator}: expected cpu or gpu")
    if cfg.trainer.precision not in PRECISIONS:
        raise InputError(
            f"trainer.precision={cfg.trainer.precision}: expected one of {', '.join(PRECISIONS)}"
        )
    if cfg.trainer.compile and (cfg.trainer.devices > 1 or cfg.trainer.strategy is Strategy.fsdp):
        raise InputError("trainer.compile=true: on one device only, and not with trainer=fsdp")
    check_finetune(cfg)
    check_graft(cfg)
    check_sequence(cfg)


def check_sequence(cfg: RunConfig) -> None:
    """Raise InputError where a stage of continual learning does not fit its sequence."""
    sequence = list(cfg.continual.tasks)
    if sequence and (cfg.task.name not in sequence or len(set(sequence)) != len(sequence)):
        raise InputError(
            f"continual.tasks={sequence}: expected different tasks, task.name={cfg.task.name} "
            "among them"
        )
    if (sequence or cfg.continual.init_from is not None) and cfg.finetune.kind is Kind.linear:
        key = "continual.tasks" if sequence else "continual.init_from"
        raise InputError(f"{key}: tasks do not share a linear head; use a prompt")


def check_finetune(cfg: RunConfig) -> None:
    """Raise InputError where the values of a fine-tuning do not fit together."""
    options = cfg.finetune
    if options.kind is Kind.linear and (options.pool is None or options.head_lr is None):
        raise InputError("finetune.pool and finetune.head_lr: finetune.kind=linear needs both")
    if options.trainable is Trainable.lora and (options.rank is None or options.alpha is None):
        raise InputError("finetune.rank and finetune.alpha: finetune.trainable=lora needs both")
    if options.l1 and options.trainable is Trainable.lora:
        raise InputError(
            "finetune.l1: not for finetune.trainable=lora, whose movement is not sparse"
        )
    if options.tasks is None:
        raise InputError("finetune.tasks: no value; give the tasks with finetune.tasks=[…]")
    tasks = list(options.tasks)
    if tasks and (cfg.task.name not in tasks or len(set(tasks)) != len(tasks)):
        raise InputError(
            f"finetune.tasks={tasks}: expected different tasks, task.name={cfg.task.name} among them"
        )
    if tasks and options.kind is Kind.linear:
        raise InputError("finetune.tasks: tasks do not share a linear head; use a prompt")


def check_graft(cfg: RunConfig) -> None:
    """Raise InputError where the selector lacks a value, or has one that it cannot follow."""
    selector, options = cfg.graft.selector, selectors.options(cfg)
    own = selectors.own_options(cfg)
    matched = f"graft.size_from={cfg.graft.size_from}: the {selector} selector"
    if cfg.graft.size_from not in (None, selector) and options.finds_size:
        raise InputError(f"{matched} finds its own size")
    if cfg.graft.size_from not in (None, selector) and not options.reads_sparsity:
        raise InputError(f"{matched} has no size")
    if hasattr(selectors.find(selector), "check_options"):
        selectors.find(selector).check_options(own)


def check_task(task: TaskConfig) -> None:
    """Raise InputError where labels, verbalizer and metric of a task do not fit together."""
    labels, where = list(task.labels), f"task {task.name}"
    if len(set(labels)) != len(labels) or len(labels) < 2:
        raise InputError(f"{where}: task.labels={labels}: expected two or more different names")
    if task.metric is Metric.f1 and len(labels) != 2:
        raise InputError(f"{where}: task.metric=f1 is for two labels, found {len(labels)}")
    words = verbalizer(task)
    for label, word in words.items():
        if not isinstance(word, str) or not word.strip():
            raise InputError(
                f"{where}: task.verbalizer: the word of '{label}' is {word!r}, not text: quote it"
            )
    if len(set(words.values())) != len(words):
        raise InputError(f"{where}: task.verbalizer={words}: two labels share a word")


def verbalizer(task: TaskConfig) -> dict[str, str]:
    """Return the word of each label, in the labels' order; a list of words goes with the labels."""
    labels, words = list(task.labels), task.verbalizer
    if OmegaConf.is_config(words):
        words = OmegaConf.to_container(words)
    if isinstance(words, list):
        if len(words) != len(labels):
            raise InputError(
                f"task {task.name}: task.verbalizer has {len(words)} words for {len(labels)} labels"
            )
        return dict(zip(labels, words, strict=True))
    if not isinstance(words, Mapping) or set(words) != set(labels):
        found = sorted(map(str, words)) if isinstance(words, Mapping) else words
        raise InputError(f"task {task.name}: task.verbalizer names {found}, task.labels {labels}")
    return {label: words[label] for label in labels}
