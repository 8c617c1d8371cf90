"""Claim: AdamW is local only with an ℓ1 penalty."""

from __future__ import annotations

import math

import pandas as pd

from skillgraft.analysis import plots
from skillgraft.analysis.claims.selection import (
    FULL,
    KEPT,
    SCORE,
    learned,
    measured_sparsity,
    option,
)
from skillgraft.analysis.claims.statements import (
    ClaimResult,
    ClaimStatement,
    by_seed,
    require,
    table,
)
from skillgraft.config.schema import ClaimConfig


def judge(rows: pd.DataFrame, options: ClaimConfig) -> ClaimResult:
    """AdamW's skill is not local in single-task training, unless an l1 term holds the movement sparse."""
    require(rows, SCORE, FULL)
    rows = learned(rows.assign(l1=option(rows, "finetune.l1", 0.0)), "l1")
    rows = rows.assign(kept=rows[SCORE] / rows[FULL])
    at = rows[rows.sparsity == (options.sparsity or rows.sparsity.min())]
    statements = [
        ClaimStatement(
            f"l1 = {l1:g}: graft ÷ fine-tuned at sparsity {at.sparsity.iloc[0]:g}",
            "not localizable (here: < 0.95)" if l1 == 0 else "> 0.95",
            by_seed(part, "kept"),
            -math.inf if l1 == 0 else KEPT,
            KEPT if l1 == 0 else math.inf,
        )
        for l1, part in at.groupby("l1")
    ]
    return ClaimResult(
        statements,
        table(
            rows,
            ["task", "l1", "sparsity"],
            {
                "region/size": "parameters",
                FULL: "fine-tuned",
                SCORE: "graft",
                "kept": "graft ÷ fine-tuned",
            },
        ),
        lambda: plots.curves(
            measured_sparsity(rows).rename(columns={"l1": "ℓ1 strength"}),
            "kept",
            "ℓ1 strength",
            "graft ÷ fine-tuned",
        ),
    )
