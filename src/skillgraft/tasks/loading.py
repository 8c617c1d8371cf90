"""All examples that a run reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from skillgraft.config.choices import Source
from skillgraft.config.schema import Columns, ResolvedConfig, RunConfig, TaskConfig
from skillgraft.runtime.errors import InputError
from skillgraft.tasks.leaks import contamination
from skillgraft.tasks.parsing import parse_rows
from skillgraft.tasks.readers import read_file
from skillgraft.tasks.rows import SPLITS, Row, TaskData, by_class, is_pair
from skillgraft.tasks.sampling import imbalance, split_train
from skillgraft.tasks.sources import folder_labels, folder_split, local_folder, read_hub

EITHER = "|"  # in task.ood_labels: a class of the other task that is any of these of ours


def load_split(
    task: TaskConfig,
    split: str,
    data_dir: str | None,
    labels: Sequence[str],
    rename: dict[str, str],
) -> list[Row]:
    """Return all rows of one split, or an empty list where the source has no such split.

    Args:
        task: the task, with its source.
        split: train, validation or test.
        data_dir: a folder with copies of hub data sets; None: the hub itself.
        labels: the names of the classes, in the order of the label numbers that are returned.
        rename: the name of a class in the data → its name in `labels`.
    """
    names: Sequence[str] = list(task.labels)
    columns = Columns()
    if task.source is Source.embedded:
        from skillgraft.embedded import generator

        if task.name not in generator.TASKS:
            known = ", ".join(generator.TASKS)
            raise InputError(f"task.name={task.name}: the embedded suite has {known}")
        found = generator.rows(task.name, split)
        records = [(f"{task.name}, {split}, row {n}", row) for n, row in enumerate(found, 1)]
    elif task.source is Source.files:
        columns, path = task.columns, getattr(task, split)
        records = read_file(Path(path), f"task.{split}") if path else []
    elif (folder := local_folder(task, data_dir)) is not None:
        names = folder_labels(folder) or names
        path = folder_split(folder, split)
        records = read_file(path, "data_dir") if path else []
    else:
        columns = task.hub.columns
        records, own = read_hub(task, split)
        names = list(task.hub.labels) or own or names
    return parse_rows(records, task, columns, names, labels, rename)


def files(cfg: ResolvedConfig) -> list[Path]:
    """Return the data files that a run reads: none for the tasks of the embedded suite and of the hub."""
    found: list[Path] = []
    measured = (cfg.ood_tasks[name] for name in cfg.task.ood)
    for task in (cfg.task, *cfg.other_tasks.values(), *measured):
        splits = ("test",) if task.name in cfg.task.ood else SPLITS
        if task.source is Source.files:
            found += [Path(path) for split in splits if (path := getattr(task, split))]
        elif folder := local_folder(task, cfg.data_dir):
            found += [path for split in splits if (path := folder_split(folder, split))]
            found += [meta for meta in [folder / "meta.json"] if meta.is_file()]
    return found


def load(cfg: ResolvedConfig) -> TaskData:
    """Return the rows of a run: sampled train and validation, test, and out-of-distribution tests.

    Its notes are those on all tasks; a model that is trained on several is tested on several.
    """
    task = cfg.task
    own, everything = load_task(task, cfg)
    notes, trains = list(own.notes), {task.name: (everything, own.train)}
    others, ood, joined = {}, {}, {}
    for name, other in cfg.other_tasks.items():
        others[name], everything = load_task(other, cfg)
        notes += others[name].notes
        trains[name] = everything, others[name].train
    for name in task.ood:
        other = cfg.ood_tasks[name]
        if is_pair(other) != is_pair(task):
            raise InputError(f"task.ood: {name} and {task.name} are not both single or both pairs")
        rename, joined[f"ood/{name}"] = map_ood_labels(task, other)
        rows = load_split(other, "test", cfg.data_dir, list(task.labels), rename)
        if not rows:
            raise InputError(f"task.ood: {name} has no test rows")
        ood[name] = rows[: task.max_test_examples]
        notes += imbalance(name, list(task.labels), rows, len(ood[name]))
    # one that is both has the same texts in both
    tests = {**ood, **{name: part.test for name, part in others.items()}, task.name: own.test}
    notes = list(dict.fromkeys([*notes, *contamination(trains, tests)]))
    return replace(own, ood=ood, notes=notes, others=others, joined=joined)


def map_ood_labels(task: TaskConfig, other: TaskConfig) -> tuple[dict[str, str], list[list[int]]]:
    """Return another task's label → this one's, and which of this one's classes are one there, by index.

    Of a label that is any of several, the first stands for it.
    """
    rename = {**{label: label for label in other.labels}, **task.ood_labels}
    parts = {n: [n] if n in task.labels else n.split(EITHER) for n in rename.values()}
    theirs = {n: parts[n] for label, n in rename.items() if label in other.labels}
    for value, names in theirs.items():
        for name in names if len(names) > 1 else ():
            if name not in task.labels:
                raise InputError(
                    f"task.ood_labels: '{value}': '{name}' is none of {list(task.labels)}"
                )
            if any(name in others for other, others in theirs.items() if other != value):
                raise InputError(f"task.ood_labels: '{name}' stands for two classes at once")
    order = list(task.labels)
    joined = [[order.index(name) for name in names] for names in theirs.values() if len(names) > 1]
    return {label: parts[named][0] for label, named in rename.items()}, joined


def load_task(task: TaskConfig, cfg: RunConfig) -> tuple[TaskData, list[Row]]:
    """Return the sampled rows of one task, without out-of-distribution tests, and all its train rows."""
    labels = list(task.labels)
    if task.source is Source.files and not (task.train and task.test):
        raise InputError(f"task {task.name}: task.train and task.test: give a file for each")
    everything = {s: load_split(task, s, cfg.data_dir, labels, {}) for s in SPLITS}
    for split in ("train", "test"):
        if not everything[split]:
            raise InputError(f"task {task.name}: no {split} rows{source_of(task, split, cfg)}")
    for label, positions in zip(labels, by_class(everything["train"], len(labels)), strict=True):
        if not positions:
            raise InputError(
                f"task {task.name}: no training row has the label '{label}'"
                f"{source_of(task, 'train', cfg)}"
            )
    train, validation, notes = split_train(
        everything["train"], everything["validation"], task, cfg.shots, cfg.seed
    )
    if not validation:
        raise InputError(
            f"task {task.name}: no rows are left for validation of {len(everything['train'])}, with "
            f"{len(train)} for training: give task.validation or lower shots ({cfg.shots} a class)"
        )
    test = everything["test"][: task.max_test_examples]
    notes = [f"{task.name}: {note}" for note in notes]
    if cfg.data_dir and task.source is Source.hub and not local_folder(task, cfg.data_dir):
        notes.append(f"{task.name}: {cfg.data_dir} has no {task.name}/, so its rows are the hub's")
    notes += imbalance(task.name, labels, everything["test"], len(test))
    return TaskData(train, validation, test, {}, notes), everything["train"]


def source_of(task: TaskConfig, split: str, cfg: RunConfig) -> str:
    """Return where the rows of a split were looked for, for the end of an error."""
    if task.source is Source.files:
        return f" in {getattr(task, split)}"
    if folder := local_folder(task, cfg.data_dir):
        return f" in {folder_split(folder, split) or folder / f'{split}.jsonl'}"
    return ""
