"""What a claim consists of: statements with one number a seed, their intervals and verdicts, and a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from skillgraft.evaluation import statistics
from skillgraft.evaluation.intervals import LEVEL, Interval, over_seeds
from skillgraft.runtime.errors import InputError


@dataclass(frozen=True)
class ClaimStatement:
    """One sentence of a claim: the paper's figure, the range it means, and the measured value by seed."""

    text: str
    paper: str
    values: Mapping[int, float]
    low: float = -math.inf
    high: float = math.inf

    @property
    def measured(self) -> Interval | None:
        """The mean and interval over seeds."""
        return over_seeds(self.values.values())

    @property
    def verdict(self) -> str:
        """`holds`, `does not hold` or `not decided`; – where the paper states no range."""
        if math.isinf(self.low) and math.isinf(self.high):
            return "–"
        return statistics.verdict(self.measured, self.low, self.high)

    def record(self) -> dict[str, Any]:
        """Return the statement as plain values for a JSON file."""
        measured = self.measured
        return {
            "statement": self.text,
            "paper": self.paper,
            "measured": vars(measured) if measured else None,
            "verdict": self.verdict,
            "seeds": {str(seed): value for seed, value in self.values.items()},
        }


@dataclass(frozen=True)
class ClaimResult:
    """What a claim came to: its statements, its table, and the figure to be drawn from the rows."""

    statements: list[ClaimStatement]
    table: pd.DataFrame
    draw: Callable[[], Figure]
    notes: list[str] = field(default_factory=list)


def by_seed(values: pd.DataFrame, column: str) -> dict[int, float]:
    """Return the mean of a column by seed, over the rows of seeds that have all that the fullest has.

    A seed that lacks a task would be compared on other tasks than the rest.
    """
    groups = values.dropna(subset=[column]).groupby("seed")[column]
    whole = groups.count() == groups.count().max() if len(groups) else groups.count() > 0
    return {int(str(seed)): float(value) for seed, value in groups.mean()[whole].items()}


def single_runs(rows: pd.DataFrame, *keys: str) -> pd.DataFrame:
    """Return the rows, one a seed and keys. Raises InputError that names in what else runs differ.

    They would be paired with each other, or a seed would count several times.
    """
    again = rows[rows.duplicated(["seed", *keys], keep=False)]
    if again.empty:
        return rows
    options = [name for name in map(str, rows) if name.startswith("config/")]
    options += [] if "sparsity" in keys else ["sparsity"]
    groups = again[options].astype(str).groupby([again[key] for key in ("seed", *keys)])
    known = groups.nunique().gt(1).any()
    differ = list(dict.fromkeys(name.removeprefix("config/") for name in options if known[name]))
    some = ", ".join(differ[:4]) + ", …" * (len(differ) > 4) or "data or files"
    raise InputError(f"runs of one task and seed differ in {some}: make one sweep for each value")


def table(rows: pd.DataFrame, keys: list[str], columns: Mapping[str, str]) -> pd.DataFrame:
    """Return mean [interval] over seeds of columns (name in the rows → title), and n, by keys."""

    def cell(values: pd.Series) -> str:
        found = over_seeds(values)
        return "–" if found is None else found.without_n()

    present = {name: title for name, title in columns.items() if name in rows}
    groups = rows.groupby(keys, sort=True, dropna=False)
    out = groups[list(present)].agg(cell).rename(columns=present)
    out.insert(0, "n", groups["seed"].nunique())
    return out.reset_index()


def holm(rows: pd.DataFrame, column: str, bound: float) -> str:
    """Return for how many tasks the mean over seeds is above `bound`, one test with Holm's correction."""
    values = {
        str(task): part[column].dropna().tolist() for task, part in rows.groupby("task", sort=True)
    }
    found = statistics.above(values, bound)
    names = [task for task, p in found.items() if p < 1 - LEVEL]
    return (
        f"above {bound:g} at the 5 % level with Holm's correction: {len(names)} of {len(values)} tasks"
        + (f" ({', '.join(names)})" if names else "")
    )


def require(rows: pd.DataFrame, *columns: str) -> None:
    """Raise InputError where no run has what a claim reads."""
    for name in columns:
        if name not in rows or rows[name].isna().all():
            raise InputError(f"no run of this sweep has {name}")
