"""Comparisons over the store: a run's region against those of its peers, and tables over seeds."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from skillgraft import index
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


def with_peers(
    graft: Graft, task: str, identity: Identity, place: Store
) -> tuple[dict[str, dict[str, Any]], pd.DataFrame]:
    """Return the overlaps with the peers' regions by task, and the IoU matrix of all these tasks.

    Peers are the whole runs whose configuration differs in task and data only.
    """
    from skillgraft import region
    from skillgraft.graft import Graft, GraftError

    regions = {task: graft.region()}
    overlap: dict[str, dict[str, Any]] = {}
    for run in place.runs("peers", identity.peers):
        if run["task"] in regions:
            continue
        try:
            other = Graft.load(place.run(run["id"]) / "graft.safetensors")
        except GraftError as error:  # altered, or just being replaced: no reason to fail this run
            log.warning("overlap: %s is left out (%s)", run["id"], error)
            continue
        if other.base != graft.base:  # a stage of sequential fine-tuning starts elsewhere
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

    `…/score` is the task's own metric; `config/…` are the values that name the run.
    """
    chosen = None if only is None else set(only)
    rows = [row for name, row in index.rows(place.root) if chosen is None or name in chosen]
    columns: dict[str, list[Any]] = {}
    for n, row in enumerate(
        rows
    ):  # one at a time: ten thousand as objects are many times their size
        for name, value in json.loads(row).items():
            column = columns.setdefault(name, [])
            column.extend([np.nan] * (n - len(column)))
            column.append(value)
    for column in columns.values():
        column.extend([np.nan] * (len(rows) - len(column)))
    return pd.DataFrame(columns)


def cell(count: int, mean: float, spread: float, large: bool) -> str:
    """Return mean ± standard deviation for a table; a dash where there is no value."""
    if not count:
        return "–"
    form = ",.0f" if large else ".3f"
    return f"{mean:{form}}" + (f" ± {spread:{form}}" if count > 1 else "")


def numbers(count: int, mean: float, spread: float, _: bool) -> dict[str, float | None]:
    """Return mean, standard deviation and the number of values; None where there is none."""
    found = {"mean": mean if count else None, "std": spread if count > 1 else None}
    return {name: None if value is None else float(value) for name, value in found.items()} | {
        "n": int(count)
    }


def over_seeds(
    frame: pd.DataFrame, columns: Sequence[str], cell: Callable[..., Any] = cell
) -> pd.DataFrame:
    """Return mean ± standard deviation over seeds (n − 1 in the denominator), and n, a row a setting.

    An undefined value is left out of the mean. Without a second seed there is no deviation. `cell`
    makes a column's entry of count, mean, deviation, and whether the values are large.
    """

    keys = ["model", "task", "selector", "sparsity"]
    # runs of other steps, shots, learning rates … are other settings, in rows of their own
    groups = frame.astype(dict.fromkeys(columns, float)).groupby([*keys, "setting"], sort=True)
    table = groups.size().rename("n").reset_index()
    by = groups[list(dict.fromkeys(columns))]
    count, mean, spread = (
        getattr(by, f)().reset_index(drop=True) for f in ("count", "mean", "std")
    )
    least, most = (getattr(by, f)().reset_index(drop=True) for f in ("min", "max"))
    for name in dict.fromkeys(columns):
        large = np.maximum(least[name].abs(), most[name].abs()) >= 100  # a count, or a share
        table[name] = [
            cell(*values)
            for values in zip(count[name], mean[name], spread[name], large, strict=True)
        ]
    return table.drop(columns="setting")
