"""Claim: grafts are calibrated."""

from __future__ import annotations

import pandas as pd

from skillgraft.analysis import plots
from skillgraft.analysis.claims.selection import learned, levels, sparsity_in_task
from skillgraft.analysis.claims.statements import (
    ClaimResult,
    ClaimStatement,
    by_seed,
    holm,
    require,
    table,
)
from skillgraft.config.schema import ClaimConfig
from skillgraft.evaluation.compared import MODELS


def judge(rows: pd.DataFrame, options: ClaimConfig) -> ClaimResult:
    """Grafts are calibrated: 40 to 90 % less ECE than fine-tuned; and a rival, temperature scaling."""
    scaled_too = {"": "", "_temperature_scaled": ", temperature scaled"}
    errors = {
        f"{model}{suffix}/test/ece": MODELS[model] + words
        for model in ("finetuned", "graft")
        for suffix, words in scaled_too.items()
    }
    require(rows, *errors)
    rows = learned(rows)
    full, scaled, graft, both = (rows[name] for name in errors)
    rows = rows.assign(less=full - graft, rival=scaled - graft, fair=scaled - both)
    parts = levels(rows)
    found = [statement for level, part in parts for statement in _statements(level, part)]
    notes = [f"ECE of fine-tuned − graft{level} {holm(part, 'less', 0)}" for level, part in parts]
    return ClaimResult(
        found,
        table(
            rows, ["task", "sparsity"], {name: f"ECE, {model}" for name, model in errors.items()}
        ),
        lambda: plots.bars(sparsity_in_task(rows), errors, "ECE"),
        notes,
    )


def _statements(level: str, part: pd.DataFrame) -> list[ClaimStatement]:
    """Return what the paper says of ECE, and what a fitted temperature changes, at one sparsity."""
    errors = ["graft/test/ece", "finetuned/test/ece"]
    means = part.groupby("seed")[errors].mean().loc[list(by_seed(part, "less"))]
    share = 1 - means["graft/test/ece"] / means["finetuned/test/ece"]
    return [
        ClaimStatement(
            f"relative reduction in ECE, (fine-tuned − graft) ÷ fine-tuned (of means over tasks){level}",
            "0.40 to 0.90 (here: > 0.40)",
            {int(str(seed)): float(value) for seed, value in share.items()},
            low=0.4,
        ),
        ClaimStatement(
            f"ECE: fine-tuned − graft{level}",
            "0.043, 0.092 (SST-2, QNLI; here: > 0)",
            by_seed(part, "less"),
            low=0,
        ),
        ClaimStatement(
            f"ECE: fine-tuned with a fitted temperature − graft{level}",
            "not measured (here: > 0)",
            by_seed(part, "rival"),
            low=0,
        ),
        ClaimStatement(
            f"ECE: both with a fitted temperature, fine-tuned − graft{level}",
            "not measured (here: > 0)",
            by_seed(part, "fair"),
            low=0,
        ),
    ]
