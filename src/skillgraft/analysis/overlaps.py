"""Overlaps of regions of different tasks."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Hashable, Mapping
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from skillgraft.store.folders import Store
from skillgraft.store.identity import Identity
from skillgraft.store.names import GRAFT

if TYPE_CHECKING:
    from skillgraft.core.graft import Graft

log = logging.getLogger(__name__)


def pairs_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row per pair of tasks, selector, seed and setting: the `iou` of their regions, and `chance`.

    Each pair is there once, by whichever run recorded it. Runs that ended at the same time have no
    record of each other: theirs is made here, from their grafts.
    """
    wanted = ["folder", "id", "same_but_task", "task", "seed", "selector", "sparsity"]
    known = [name for name in map(str, rows) if name.startswith("overlap/")]
    found = {}
    # runs of one region differ in comparison models only
    for peers, group in rows.drop_duplicates("region").groupby("same_but_task", sort=False):
        load = functools.cache(load_graft)
        runs = group.sort_values("task", kind="stable")[wanted + known].to_dict("records")
        for one, other in combinations(runs, 2):
            names = {"a": one["task"], "b": other["task"]}
            pair = (peers, *names.values())
            if names["a"] == names["b"] or pair in found:
                continue
            measured = (
                recorded_overlap(one, other)
                or recorded_overlap(other, one)
                or measure_overlap(one, other, load)
            )
            if measured is not None:
                setting = {name: one[name] for name in ("seed", "selector", "sparsity")}
                found[pair] = {**setting, **names, **measured}
    columns = ["seed", "selector", "sparsity", "a", "b", "iou", "chance"]
    # two empty regions have no overlap
    return pd.DataFrame(found.values(), columns=columns).dropna(subset=["iou"])


def recorded_overlap(
    run: Mapping[Hashable, Any], other: Mapping[Hashable, Any]
) -> dict[str, Any] | None:
    """Return the overlap with another run as a run recorded it, or None where it did not."""
    name = f"overlap/{other['task']}"
    if run.get(f"{name}/run") != other["id"]:
        return None
    return {key: run[f"{name}/{key}"] for key in ("iou", "chance")}


def measure_overlap(
    run: Mapping[Hashable, Any], other: Mapping[Hashable, Any], load: Callable[[Path], Graft | None]
) -> dict[str, Any] | None:
    """Return the overlap of two runs' regions by their graft files, or None where there is none."""
    a, b = load(Path(run["folder"])), load(Path(other["folder"]))
    if a is None or b is None or a.base != b.base:  # a stage of a sequence starts elsewhere
        return None
    shares = a.overlap(b)
    return {key: shares[key] for key in ("iou", "chance")}


def square(pairs: pd.DataFrame, value: str) -> pd.DataFrame:
    """Return the mean over seeds of a value of unordered pairs as a symmetric matrix, 1 on its diagonal."""
    turned = pairs.rename(columns={"a": "b", "b": "a"})
    matrix = pd.concat([pairs, turned]).pivot_table(index="a", columns="b", values=value)
    for name in matrix.index:
        matrix.loc[name, name] = 1.0
    return matrix


def load_graft(folder: Path) -> Graft | None:
    """Return the graft of a run's folder, or None, with a warning, where it cannot be read."""
    from skillgraft.core.graft import Graft
    from skillgraft.runtime.errors import GraftError

    try:
        return Graft.load(folder / GRAFT)
    except GraftError as error:  # altered, or just being replaced: no reason to fail
        log.warning("overlap: %s is not compared (%s)", folder.name, error)
        return None


def overlaps_with_runs(
    graft: Graft, task: str, identity: Identity, store: Store
) -> tuple[dict[str, dict[str, Any]], pd.DataFrame]:
    """Return the overlaps with the peers' regions by task, and the IoU matrix of all these tasks.

    Peers are the complete runs whose configuration differs in task and data only.
    """
    from skillgraft.core import regions as region_algebra

    regions = {task: graft.region()}
    overlap: dict[str, dict[str, Any]] = {}
    for run in store.runs("same_but_task", identity.same_but_task):
        if run["task"] in regions:
            continue
        other = load_graft(store.run(run["id"]))
        if other is None or other.base != graft.base:  # a stage of a sequence starts elsewhere
            continue
        regions[run["task"]] = other.region()
        overlap[run["task"]] = {**graft.overlap(other), "run": run["id"]}
    names = sorted(regions)
    matrix = pd.DataFrame(
        [
            [
                region_algebra.overlap(regions[a], regions[b], graft.graftable)["iou"] or 0.0
                for b in names
            ]
            for a in names
        ],
        names,
        names,
    )
    return overlap, matrix
