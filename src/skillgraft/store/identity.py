"""The identity of a run: hashes of all that can change its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from skillgraft.config.identity import described
from skillgraft.config.schema import ResolvedConfig, TaskConfig
from skillgraft.config.validation import verbalizer
from skillgraft.runtime.digests import file_digest, short_hash
from skillgraft.runtime.files import read_json
from skillgraft.store.graft_files import graft_file, graft_meta, made_of
from skillgraft.store.names import STATUS
from skillgraft.store.sequences import base_digests, base_values, chain, stage
from skillgraft.tasks.rows import TaskData

SIZE_KEY = "graft.size"  # in an identity: the size that graft.size_from came to


@dataclass(frozen=True)
class Identity:
    """What a run is, as hashes of all that can change its result.

    `finetuned` names the fine-tuning that the run shares. The other fields are equal for two runs

    - `same_but_task`: that differ in task and data only;
    - `same_but_selector`: that differ in the selector and its options only;
    - `same_but_seed`: that differ in the seed and in what it draws only;
    - `region`: whose region is the same, since they differ in comparison models only;
    - `same_outcome`: that leave the next stage of a sequence the same, since they differ in comparison
      models or in what they are measured on only;
    - `stage`: at the same place in a sequence of tasks.
    """

    id: str
    group: str
    hash: str
    finetuned: str
    same_but_task: str
    same_but_selector: str
    same_but_seed: str
    region: str
    same_outcome: str
    stage: str
    digests: Mapping[str, str]


def identify(cfg: ResolvedConfig, data: TaskData, size: int | None = None) -> Identity:
    """Return the identity of a run from its configuration and the digests of what it reads."""
    digests, origins = {"data": data.digest(), **base_digests(cfg)}, []
    if cfg.graft.selector == "file":
        paths = cast(Any, cfg.graft).paths
        files = [file_digest(graft_file(path)) for path in paths]
        digests["grafts"] = short_hash({"files": files})
        origins = [made_of(graft_meta(graft_file(path))) for path in paths]
    values = identifying_values(cfg, data, digests)
    if size is not None:
        values[SIZE_KEY] = size

    def without(*prefixes: str) -> dict[str, Any]:
        return {name: v for name, v in values.items() if not name.startswith(prefixes)}

    beside, own = "compare.", ("task.", "digest.data")
    mixture = own if cfg.finetune.tasks else ()
    drawn = ("seed", "digest.data", SIZE_KEY, "digest.after", "digest.mixture", "digest.grafts")
    # a region of another size than the requested one is another setting, whatever its size
    matched = {"matched": size is not None}
    made = {"grafts": origins} if origins else {}
    trained = {"train": data.training_digest()}
    name = f"{cfg.task.name}-{cfg.model.name}-{described(cfg)}"
    whole = short_hash(values)
    return Identity(
        id=f"{name}-seed{cfg.seed}-{whole}",
        group=name,
        hash=whole,
        finetuned=short_hash(without("graft.", "sparsity", beside, "digest.grafts", *mixture)),
        same_but_task=short_hash(
            {
                **without(*own, SIZE_KEY, beside, "digest.after"),
                **(matched if size is not None else {}),
            }
        ),
        same_but_selector=short_hash(without("graft.", beside)),
        same_but_seed=short_hash({**without(*drawn), **matched, **made}),
        region=short_hash(without(beside)),
        same_outcome=short_hash({**without(beside, "digest.data", "task.ood"), **trained}),
        stage=stage(cfg, [*(c["task"] for c in chain(cfg)), cfg.task.name]),
        digests=digests,
    )


def identifying_values(
    cfg: ResolvedConfig, data: TaskData, digests: Mapping[str, str]
) -> dict[str, Any]:
    """Return all that can change a run's result, by name: keys of the configuration, and digests."""
    values = {**base_values(cfg), **{f"digest.{k}": v for k, v in digests.items()}}
    if cfg.continual.init_from is not None:
        before = read_json(Path(cfg.continual.init_from) / STATUS)
        rows = {name: part.digest() for name, part in data.others.items()}
        # what the last stage left, and what is measured again
        values["digest.after"] = short_hash({"outcome": outcome_of(before), **rows})
    if cfg.finetune.tasks:
        tasks = {**cfg.other_tasks, cfg.task.name: cfg.task}
        rows = {name: part.digest() for name, part in data.others.items()}
        rows[cfg.task.name] = data.digest()
        mixed = {name: [definition(tasks[name]), rows[name]] for name in cfg.finetune.tasks}
        values["digest.mixture"] = short_hash(mixed)
    return values


def region_of(run: Mapping[str, Any]) -> str:
    """Return a name of a run's region by its status; a record of an older version has the run's own."""
    return str(run.get("region", run["id"]))


def outcome_of(run: Mapping[str, Any]) -> str:
    """Return a name of what a run leaves the next stage of a sequence, by its status."""
    return str(run.get("same_outcome", region_of(run)))


def definition(task: TaskConfig) -> list[Any]:
    """Return what of a task, beside its rows, can change a fine-tuning."""
    return [task.template, verbalizer(task), list(task.labels), task.metric.value, task.max_length]
