"""Comparisons over the store: a run's region against those of its peers, and tables over seeds."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from skillgraft import evaluate, region
from skillgraft.graft import Graft, GraftError
from skillgraft.store import Identity, Store, read_json

log = logging.getLogger(__name__)


def reliability_table(tests: Mapping[str, np.ndarray], labels: Sequence[int]) -> pd.DataFrame:
    """Return the bins of every model's reliability diagram in one table."""
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
    regions = {task: graft.region()}
    overlap: dict[str, dict[str, Any]] = {}
    for run in place.runs():
        if run["peers"] != identity.peers or run["task"] in regions:
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
    rows = []
    for status in place.runs():
        if only is not None and status["id"] not in only:
            continue
        folder = place.run(status["id"])
        metrics, overlap = (read_json(folder / f"{n}.json") for n in ("metrics", "overlap"))
        row = {name: value for name, value in status.items() if name != "config"}
        row |= {f"config/{name}": value for name, value in status.get("config", {}).items()}
        row |= evaluate.flatten(metrics)
        for model, splits in metrics.items():
            for split, measured in splits.items() if isinstance(splits, dict) else ():
                if isinstance(measured, dict) and "accuracy" in measured:
                    row[f"{model}/{split}/score"] = measured[evaluate.metric_of(measured)]
        row |= evaluate.flatten({"overlap": overlap}) | {"overlap/compared": len(overlap)}
        rows.append(row)
    return pd.DataFrame(rows)


def over_seeds(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return mean ± standard deviation over seeds (n − 1 in the denominator), and n, a row a setting.

    An undefined value is left out of the mean. Without a second seed there is no deviation.
    """

    def cell(values: pd.Series) -> str:
        present = values.dropna()
        if present.empty:
            return "–"
        form = ",.0f" if present.abs().max() >= 100 else ".3f"  # a count, or a share
        spread = f" ± {present.std():{form}}" if len(present) > 1 else ""
        return f"{present.mean():{form}}{spread}"

    keys = ["model", "task", "selector", "sparsity"]
    # runs of other steps, shots, learning rates … are other settings, in rows of their own
    groups = frame.groupby([*keys, "setting"], sort=True)
    table = groups[list(columns)].agg(cell)
    table.insert(0, "n", groups.size())
    return table.reset_index().drop(columns="setting")
