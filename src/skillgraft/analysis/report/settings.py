"""Settings: what may be averaged, and how settings are told apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from skillgraft.evaluation.intervals import over_seeds

# What does not make it another fine-tuning: the task, the graft, what is measured beside it, and
# what a later stage of a sequence starts from.
OWN = (
    "config/task.", "config/graft.", "config/compare.", "config/sparsity", "config/seed",
    "config/model.name", "config/continual.carry", "config/finetune.kind",
)  # fmt: skip
# Selectors whose regions do not depend on the task: their overlap and place say nothing.
FIXED = ("random", "bias", "layer", "module", "file")


def name_settings(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with names that tell settings apart, so that only seeds are left to average over.

    `setting of` names the model and its fine-tuning; within it, `task` and `selector` are followed by
    the options in which runs of the same task or selector differ. `by` is the selector alone.
    """
    # runs of one region differ in comparison models only: a seed counts once
    rows = rows[~rows["region"].duplicated(keep="last")] if "region" in rows else rows
    rows = rows.assign(by=rows["selector"])
    shared = [c for c in map(str, rows) if c.startswith("config/") and not c.startswith(OWN)]
    base = rows["model"] + ", " + rows["config/finetune.kind"]
    rows = rows.assign(**{"setting of": distinct(rows, base, shared)})
    parts = []
    for _, part in rows.groupby("setting of"):
        of = {
            name: [c for c in map(str, part) if c.startswith(f"config/{group}.")]
            for name, group in (("task", "task"), ("selector", "graft"))
        }
        part = part.assign(**{n: distinct(part, part[n], options) for n, options in of.items()})
        keys = ["task", "selector", "sparsity", "stage", "seed"]
        sized = part["by"] != "file"  # a file's runs are told apart by their regions
        again = sized & part.duplicated([k for k in keys if k in part], keep=False)
        part.loc[again, "selector"] += " (" + part.loc[again, "same_but_seed"] + ")"
        parts.append(part)
    return pd.concat(parts)


def distinct(rows: pd.DataFrame, base: pd.Series, options: Sequence[str]) -> pd.Series:
    """Return each row's base name, and those options in which rows of that base differ."""
    skip = ("config/task.name", "config/graft.selector", "config/graft.size")
    text = rows[[o for o in options if o not in skip]].map(plain)
    names = base.astype(str)
    suffix = pd.Series("", rows.index)
    for _, part in text.groupby(names):
        for option in (c for c in map(str, part) if part[c].nunique() > 1):
            given = part.loc[part[option] != "", option]
            key = option.removeprefix("config/").rpartition(".")[2]
            suffix.loc[given.index] += f", {key}=" + given
    return names + suffix


def plain(value: Any) -> str:
    """Return an option's value as short text, the empty text for one that is not given."""
    if isinstance(value, list):
        return "+".join(map(str, value))
    if isinstance(value, dict):
        return json.dumps(value)
    if pd.isna(value):
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def most_frequent_sparsity(rows: pd.DataFrame) -> float:
    """Return the sparsity that most runs have; of several the middle one."""
    modes = rows["sparsity"].mode()
    return float(modes.iloc[len(modes) // 2])


def one_selector(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of one selector and sparsity, for figures that have room for one graft a task.

    The learned one where there is one, else the most frequent.
    """
    rows = rows[rows["by"] != "file"]
    learned = rows[rows["by"] == "learned"]
    rows = learned if len(learned) else rows
    rows = rows[rows["selector"] == rows["selector"].mode().iloc[0]] if len(rows) else rows
    return rows[rows["sparsity"] == most_frequent_sparsity(rows)] if len(rows) else rows


def without_later_stages(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the runs that start from the pre-trained model, not from another run's end."""
    return rows[~rows["stage"].fillna("").str.contains(">")] if "stage" in rows else rows


def intervals(rows: pd.DataFrame, keys: list[str], measures: Sequence[str]) -> pd.DataFrame:
    """Return one row per key and measure: mean and Student's t interval over seeds, and their number."""
    known = [name for name in dict.fromkeys(measures) if name in rows]
    long = rows.melt(keys, known, var_name="measure").dropna(subset=["value"])
    groups = long.groupby([*keys, "measure"], sort=True, dropna=False)["value"]
    return pd.DataFrame(
        [
            {**dict(zip([*keys, "measure"], key, strict=True)), **vars(over_seeds(values))}
            for key, values in groups
        ]
    )
