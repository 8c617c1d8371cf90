"""Claim: grafts generalise under a large shift."""

from __future__ import annotations

import pandas as pd

from skillgraft.analysis import plots
from skillgraft.analysis.claims.selection import by_training, columns_of, levels, sparsity_in_task
from skillgraft.analysis.claims.statements import ClaimResult, ClaimStatement, by_seed, table
from skillgraft.config.schema import ClaimConfig
from skillgraft.evaluation.compared import MODELS
from skillgraft.runtime.errors import InputError


def judge(rows: pd.DataFrame, options: ClaimConfig) -> ClaimResult:
    """Under a large shift the graft is ahead, under a small one close; BitFit collapses."""
    long = _shifted(rows, options)
    found = [statement for level, part in levels(long) for statement in _statements(level, part)]
    titles = {**MODELS, "bitfit": "BitFit"}
    models = {name: title for name, title in titles.items() if long[name].notna().any()}
    return ClaimResult(
        found,
        table(long, ["shift", "task", "ood", "sparsity"], {**models, "gain": "graft − fine-tuned"}),
        lambda: plots.bars(
            sparsity_in_task(long.assign(task=long.task + " → " + long.ood)), models, "score"
        ),
    )


def _shifted(rows: pd.DataFrame, options: ClaimConfig) -> pd.DataFrame:
    """Return one row per run and OOD set: the models' scores, BitFit's too, and how large the shift is.

    Raises InputError where no run has an OOD set.
    """
    full, bias = by_training(rows, "task", "sparsity")
    shifts = {
        **dict.fromkeys(options.small_shift, "small"),
        **dict.fromkeys(options.large_shift, "large"),
    }
    parts = []
    for name in sorted(columns_of(rows, "graft/ood/", "/score")):
        split = name.split("/")[2]
        keys = ["task", "seed", "sparsity"]
        names = [f"{model}/ood/{split}/score" for model in MODELS]
        part = full[[*keys, *names]].set_axis([*keys, *MODELS], axis=1)
        other = bias[[*keys, names[1]]].rename(columns={names[1]: "bitfit"})
        part = part.merge(other, how="left", on=keys).assign(ood=split).dropna(subset=["graft"])
        parts += [part] if len(part) else []
    if not parts:
        raise InputError("no run of this sweep has an OOD set")
    long = pd.concat(parts, ignore_index=True)
    place = long.task + "/" + long.ood
    return long.assign(
        shift=place.map(shifts).fillna(long.ood.map(shifts)).fillna("not stated"),
        gain=long.graft - long.finetuned,
        collapse=long.bitfit - long.finetuned,
    )


def _statements(level: str, part: pd.DataFrame) -> list[ClaimStatement]:
    """Return what the paper says of large and small shifts, with what was measured at one sparsity."""
    large, small = part[part["shift"] == "large"], part[part["shift"] == "small"]
    return [
        ClaimStatement(
            f"large shift: graft − fine-tuned{level}",
            "≥ 0.05",
            by_seed(large, "gain"),
            low=0.05,
        ),
        ClaimStatement(
            f"small shift: graft − fine-tuned{level}",
            "close to 0 (here: within 0.02)",
            by_seed(small, "gain"),
            -0.02,
            0.02,
        ),
        ClaimStatement(
            f"large shift: BitFit − fine-tuned{level}",
            "collapses (< 0)",
            by_seed(large, "collapse"),
            high=0,
        ),
    ]
