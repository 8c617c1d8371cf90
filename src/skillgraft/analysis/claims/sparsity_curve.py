"""Claim: skill is local."""

from __future__ import annotations

import math

import pandas as pd

from skillgraft.analysis import plots
from skillgraft.analysis.claims.selection import (
    AT,
    BEFORE,
    FULL,
    KEPT,
    SCORE,
    by_sparsity,
    measured_sparsity,
)
from skillgraft.analysis.claims.statements import (
    Outcome,
    Statement,
    by_seed,
    holm,
    need,
    one_each,
    table,
)
from skillgraft.config.schema import ClaimConfig


def sparsity_curve(rows: pd.DataFrame, options: ClaimConfig) -> Outcome:
    """Skill is local: at most 0.01 % of the parameters keep more than 95 % of the fine-tuned score."""
    need(rows, SCORE, FULL)
    rows = one_each(rows, "task", "selector", "sparsity")
    rows = rows.assign(kept=rows[SCORE] / rows[FULL])
    own, highest = rows[rows.selector == "learned"], options.at or AT
    statements = [
        Statement(
            f"learned graft ÷ fine-tuned at sparsity {sparsity:g} "
            f"({part['region/size'].mean():,.0f} entries)",
            "> 0.95 at ≤ 1e-4 (≤ 8,500 entries; GPT-2: 5e-4)" if sparsity <= highest else "–",
            by_seed(part, "kept"),
            KEPT if sparsity <= highest else -math.inf,
        )
        for sparsity, part in by_sparsity(own)
    ]
    at = own[own.sparsity == highest]
    return Outcome(
        statements,
        table(
            rows,
            ["task", "sparsity", "selector"],
            {
                "region/size": "entries",
                BEFORE: "pre-trained",
                FULL: "fine-tuned",
                SCORE: "graft",
                "kept": "graft ÷ fine-tuned",
                "graft/test/ece": "ECE",
                "graft/test/agreement": "agreement",
            },
        ),
        lambda: plots.curves(measured_sparsity(rows), SCORE, "selector", (BEFORE, FULL)),
        [f"sparsity {at.sparsity.iloc[0]:g}: graft ÷ fine-tuned {holm(at, 'kept', KEPT)}"]
        if len(at)
        else [],
    )
