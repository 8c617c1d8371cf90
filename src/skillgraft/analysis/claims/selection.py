"""Which runs of a sweep a claim reads."""

from __future__ import annotations

import pandas as pd

from skillgraft.analysis.claims.statements import single_runs
from skillgraft.config.schema import ClaimConfig
from skillgraft.runtime.errors import InputError

KEPT = 0.95  # the share of the fine-tuned score that the paper calls localized
DEFAULT_SPARSITY = (
    1e-4  # the sparsity of the paper's figures, where `claim.sparsity` has none that stands for it
)
SCORE = "graft/test/score"
FULL, BEFORE = "finetuned/test/score", "pretrained/test/score"


def columns_of(rows: pd.DataFrame, start: str, end: str) -> list[str]:
    """Return the columns whose names start and end so."""
    return [name for name in map(str, rows) if name.startswith(start) and name.endswith(end)]


def measured_sparsity(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with `x`: the mean measured sparsity of a task's regions of one requested sparsity."""
    keys = ["task", "selector", "sparsity"]
    return rows.assign(x=rows.groupby(keys)["region/sparsity"].transform("mean"))


def option(rows: pd.DataFrame, name: str, default: str | float) -> pd.Series:
    """Return an option of the runs; one at its default is not among the values that name a run."""
    if f"config/{name}" not in rows:
        return pd.Series(default, rows.index)
    return rows[f"config/{name}"].fillna(default)


def learned(rows: pd.DataFrame, *more: str) -> pd.DataFrame:
    """Return the runs with a learned region, one a task, sparsity, seed and `more`.

    Raises InputError where there is none, or several.
    """
    found = rows[rows.selector == "learned"]
    if found.empty:
        raise InputError("no run of this sweep has a learned region")
    return single_runs(found, "task", "sparsity", *more)


def by_sparsity(rows: pd.DataFrame) -> list[tuple[float, pd.DataFrame]]:
    """Return the rows of each requested sparsity, the smallest first."""
    return [(float(str(sparsity)), part) for sparsity, part in rows.groupby("sparsity")]


def levels(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Return the rows of each sparsity with the words that name it: none where it is the only one."""
    parts = by_sparsity(rows)
    return [(f" at sparsity {s:g}" if len(parts) > 1 else "", part) for s, part in parts]


def sparsity_in_task(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with the sparsity in the task's name where there are several, for bars by task."""
    if rows.sparsity.nunique() < 2:
        return rows
    return rows.assign(task=rows.task + ", " + rows.sparsity.map("{:g}".format))


def by_training(rows: pd.DataFrame, *keys: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the runs whose fine-tuning trained more than biases, and BitFit's: one a seed and keys each.

    Raises InputError where there are none of the first.
    """
    bias = option(rows, "finetune.trainable", "full") == "bias"
    if bias.all():
        raise InputError(
            "no run of this sweep trains more than biases: add runs with finetune.trainable=full"
        )
    return single_runs(rows[~bias], *keys), single_runs(rows[bias], *keys)


def are_similar(options: ClaimConfig, a: str, b: str) -> bool:
    """Return whether the sweep file calls two tasks alike."""
    return any({a, b} <= set(group) for group in options.similar)
