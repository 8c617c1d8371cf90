"""Stores of made-up runs: the records of whole runs, without models."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skillgraft.experiments.stages.inputs import RunInputs

SELECTORS = ("learned", "movement", "random", "magnitude")
TASKS = [f"toy_{n}" for n in range(10)]
OOD = [f"ood/toy_{n}" for n in range(4)]


def status(n: int, seeds: int = 5) -> dict[str, Any]:
    """Return the status record of the nth run of a sweep over tasks, selectors, sizes and seeds."""
    rest, seed = divmod(n, seeds)
    rest, task = divmod(rest, len(TASKS))
    size, selector = divmod(rest, len(SELECTORS))
    setting = f"{task}-{selector}-{size}"
    sparsity = (size + 1) / 1000
    return {
        "state": "complete",
        "id": f"{TASKS[task]}-tiny-{SELECTORS[selector]}-s{sparsity:g}-seed{seed}-{n:010x}",
        "task": TASKS[task],
        "model": "tiny",
        "selector": SELECTORS[selector],
        "sparsity": sparsity,
        "seed": seed,
        "same_but_task": f"{selector}-{size}-{seed}",
        "same_but_selector": f"{task}-{size}-{seed}",
        "finetuned": f"{task}-{seed}",
        "same_but_seed": setting,
        "region": f"{setting}-{seed}",
        "stage": f"{setting}-{seed}:{TASKS[task]}",
        "regions": [TASKS[task]],
        "config": {f"group{k // 8}.key{k}": k + n % 7 for k in range(48)},
    }


def metrics(n: int) -> dict[str, Any]:
    """Return what a run measures: three models and two scaled ones on six splits, and a region."""
    rng = random.Random(n)
    names = ("accuracy", "ece", "nll", "brier")
    models: dict[str, Any] = {
        model: {split: {name: rng.random() for name in names} for split in ("validation", "test", *OOD)}
        for model in (
            "pretrained", "finetuned", "graft",
            "finetuned_temperature_scaled", "graft_temperature_scaled",
        )
    }  # fmt: skip
    for measured in models["graft"].values():
        measured |= {"agreement": rng.random(), "relative_gain": None if n % 11 == 0 else 1.0}
    models["region"] = {"size": rng.randrange(10**5), "graftable": 793088, "sparsity": rng.random()}
    return models


def add(root: Path, n: int, **changed: Any) -> Path:
    """Add the nth run to a store, as a rename does, or replace it."""
    record = {**status(n), **changed}
    partial = root / ".partial" / record["id"]
    partial.mkdir(parents=True, exist_ok=True)
    overlap = {t: {"iou": 0.5, "size": 7, "run": record["id"]} for t in TASKS[:4]}
    for name, content in (("metrics", metrics(n)), ("overlap", overlap), ("status", record)):
        (partial / f"{name}.json").write_text(json.dumps(content, indent=1))
    return partial.rename(root / record["id"])


def pretend(inputs: RunInputs, *_: object) -> None:
    """Stand for pipeline.make_run: put the run into the store with made-up metrics."""
    cfg, identity = inputs.cfg, inputs.identity
    names = (
        "id",
        "same_but_task",
        "same_but_selector",
        "finetuned",
        "same_but_seed",
        "region",
        "stage",
    )
    add(
        inputs.store.root,
        cfg.seed,
        task=cfg.task.name,
        selector=cfg.graft.selector,
        seed=cfg.seed,
        **{name: getattr(identity, name) for name in names},
    )
