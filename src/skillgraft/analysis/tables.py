"""Tables over seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from skillgraft.evaluation import intervals
from skillgraft.evaluation.intervals import Interval


def reliability_table(tests: Mapping[str, np.ndarray], labels: Sequence[int]) -> pd.DataFrame:
    """Return the bins of every model's reliability diagram in one table."""
    from skillgraft.evaluation import calibration

    parts = [
        calibration.reliability(probabilities, labels).reset_index().assign(model=model)
        for model, probabilities in tests.items()
    ]
    return pd.concat(parts, ignore_index=True)


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
    """Return mean ± half of Student's t interval over seeds (95 %), and n: one row per setting.

    An undefined value is left out of the mean. Without a second seed there is no interval. `cell`
    makes a column's entry of the interval, and whether the values are large.
    """

    keys = ["model", "task", "selector", "sparsity"]
    # runs of other steps, shots, learning rates … are other settings, in rows of their own
    groups = frame.groupby([*keys, "same_but_seed"], sort=True)
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
    return table.drop(columns="same_but_seed")
