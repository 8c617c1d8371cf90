"""Comparisons over the store: a run's region against those of its peers, and tables over seeds."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from skillgraft import index, intervals
from skillgraft.intervals import Interval
from skillgraft.store import Identity, Store

if TYPE_CHECKING:
    from skillgraft.graft import Graft

log = logging.getLogger(__name__)


def reliability_table(tests: Mapping[str, np.ndarray], labels: Sequence[int]) -> pd.DataFrame:
    """Return the bins of every model's reliability diagram in one table."""
    from skillgraft import evaluate

    parts = [
        evaluate.reliability(probabilities, labels).reset_index().assign(model=model)
        for model, probabilities in tests.items()
    ]
    return pd.concat(parts, ignore_index=True)


def stored(folder: Path) -> Graft | None:
    """Return the graft of a run's folder, or None, with a warning, where it cannot be read."""
    from skillgraft.errors import GraftError
    from skillgraft.graft import Graft

    try:
        return Graft.load(folder / "graft.safetensors")
    except GraftError as error:  # altered, or just being replaced: no reason to fail
        log.warning("overlap: %s is left out (%s)", folder.name, error)
        return None


def with_peers(
    graft: Graft, task: str, identity: Identity, place: Store
) -> tuple[dict[str, dict[str, Any]], pd.DataFrame]:
    """Return the overlaps with the peers' regions by task, and the IoU matrix of all these tasks.

    Peers are the whole runs whose configuration differs in task and data only.
    """
    from skillgraft import region

    regions = {task: graft.region()}
    overlap: dict[str, dict[str, Any]] = {}
    for run in place.runs("peers", identity.peers):
        if run["task"] in regions:
            continue
        other = stored(place.run(run["id"]))
        if other is None or other.base != graft.base:  # a stage of a sequence starts elsewhere
            continue
        regions[run["task"]] = other.region()
        overlap[run["task"]] = {**graft.overlap(other), "run": run["id"]}
    names = sorted(regions)
    matrix = pd.DataFrame(
        [
            [region.overlap(regions[a], regions[b], graft.graftable)["iou"] or 0.0 for b in names]
            for a in names
        ],
        names,
        names,
    )
    return overlap, matrix


def collect(place: Store, only: Sequence[str] | None = None) -> pd.DataFrame:
    """Return one row a whole run, or a run of `only`: its status record and its metrics, names joined by '/'.

    `…/score` is the task's own metric; `config/…` are the values that name the run, `folder` is its
    path.
    """
    chosen = None if only is None else set(only)
    found = [one for one in index.rows(place.root) if chosen is None or one[0] in chosen]
    columns: dict[str, list[Any]] = {"folder": [str(place.run(name)) for name, _ in found]}
    # one at a time: ten thousand as objects are many times their size
    for n, (_, row) in enumerate(found):
        for name, value in json.loads(row).items():
            column = columns.setdefault(name, [])
            column.extend([np.nan] * (n - len(column)))
            column.append(value)
    for column in columns.values():
        column.extend([np.nan] * (len(found) - len(column)))
    return pd.DataFrame(columns)


def cell(found: Interval | None, large: bool) -> str:
    """Return mean ± half the interval for a table; a dash where there is no value."""
    if found is None:
        return "–"
    form = ",.0f" if large else ".3f"
    half = "" if found.high is None else f" ± {found.high - found.mean:{form}}"
    return f"{found.mean:{form}}{half}"


def numbers(found: Interval | None, _: bool) -> dict[str, float | None]:
    """Return the mean, the bounds of its interval and the number of values; None where there is none."""
    return {"mean": None, "low": None, "high": None, "n": 0} if found is None else {**vars(found)}


def over_seeds(
    frame: pd.DataFrame, columns: Sequence[str], cell: Callable[[Interval | None, bool], Any] = cell
) -> pd.DataFrame:
    """Return mean ± half of Student's t interval over seeds (95 %), and n, a row a setting.

    An undefined value is left out of the mean. Without a second seed there is no interval. `cell`
    makes a column's entry of the interval, and whether the values are large.
    """

    keys = ["model", "task", "selector", "sparsity"]
    # runs of other steps, shots, learning rates … are other settings, in rows of their own
    groups = frame.groupby([*keys, "setting"], sort=True)
    table = groups.size().rename("n").reset_index()
    members: list[list[int]] = [[] for _ in range(len(table))]
    for row, group in enumerate(groups.ngroup()):
        if group >= 0:  # pandas numbers a row that lacks a key with −1
            members[group].append(row)
    for name in dict.fromkeys(columns):
        column = frame[name].to_numpy(dtype=float).tolist()
        by_group = [[column[row] for row in rows] for rows in members]
        table[name] = [
            # large: a count, otherwise a share
            cell(intervals.over_seeds(values), any(abs(value) >= 100 for value in values))
            for values in by_group
        ]
    return table.drop(columns="setting")
