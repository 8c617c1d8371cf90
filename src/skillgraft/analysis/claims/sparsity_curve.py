"""Claim: skill is local."""

from __future__ import annotations

import math

import pandas as pd

from skillgraft.analysis import plots
from skillgraft.analysis.claims.selection import (
    BEFORE,
    DEFAULT_SPARSITY,
    FULL,
    KEPT,
    SCORE,
    by_sparsity,
    measured_sparsity,
)
from skillgraft.analysis.claims.statements import (
    ClaimResult,
    ClaimStatement,
    by_seed,
    holm,
    require,
    single_runs,
    table,
)
from skillgraft.analysis.labels import metric_label
from skillgraft.config.schema import ClaimConfig


def judge(rows: pd.DataFrame, options: ClaimConfig) -> ClaimResult:
    """Skill is local: at most 0.01 % of the parameters keep more than 95 % of the fine-tuned score."""
    require(rows, SCORE, FULL)
    rows = single_runs(rows, "task", "selector", "sparsity")
    rows = rows.assign(kept=rows[SCORE] / rows[FULL])
    own, highest = rows[rows.selector == "learned"], options.sparsity or DEFAULT_SPARSITY
    statements = [
        ClaimStatement(
            f"learned graft ÷ fine-tuned at sparsity {sparsity:g} "
            f"({part['region/size'].mean():,.0f} parameters)",
            "> 0.95 at ≤ 1e-4 (≤ 8,500 parameters; GPT-2: 5e-4)" if sparsity <= highest else "–",
            by_seed(part, "kept"),
            KEPT if sparsity <= highest else -math.inf,
        )
        for sparsity, part in by_sparsity(own)
    ]
    at = own[own.sparsity == highest]
    return ClaimResult(
        statements,
        table(
            rows,
            ["task", "sparsity", "selector"],
            {
                "region/size": "parameters",
                BEFORE: "pre-trained",
                FULL: "fine-tuned",
                SCORE: "graft",
                "kept": "graft ÷ fine-tuned",
                "graft/test/ece": "ECE",
                "graft/test/agreement": "agreement",
            },
        ),
        lambda: plots.curves(
            measured_sparsity(rows), SCORE, "selector", metric_label, (BEFORE, FULL)
        ),
        [f"sparsity {at.sparsity.iloc[0]:g}: graft ÷ fine-tuned {holm(at, 'kept', KEPT)}"]
        if len(at)
        else [],
    )
