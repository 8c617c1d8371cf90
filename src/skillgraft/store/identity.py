"""The identity of a run: hashes of all that can change its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skillgraft.config.choices import Selector
from skillgraft.config.identity import described
from skillgraft.config.schema import RunConfig, TaskConfig
from skillgraft.config.validation import verbalizer
from skillgraft.runtime.digests import file_digest, short_hash
from skillgraft.runtime.files import read_json
from skillgraft.store.graft_files import graft_file, graft_meta, made_of
from skillgraft.store.sequences import base_digests, base_values, chain, stage
from skillgraft.tasks.rows import TaskData

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


def identify(cfg: RunConfig, data: TaskData, size: int | None = None) -> Identity:
    """Return the identity of a run from its configuration and the digests of what it reads."""
    digests, origins = {"data": data.digest(), **base_digests(cfg)}, []
    if cfg.graft.selector is Selector.file:
        files = [file_digest(graft_file(path)) for path in cfg.graft.paths]
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


def definition(task: TaskConfig) -> list[Any]:
    """Return what of a task, beside its rows, can change a fine-tuning."""
    return [task.template, verbalizer(task), list(task.labels), task.metric.value, task.max_length]
