"""Claim: learned against movement."""

from __future__ import annotations

import math

import pandas as pd

from skillgraft.analysis import plots
from skillgraft.analysis.claims.selection import (
    BEFORE,
    DEFAULT_SPARSITY,
    FULL,
    SCORE,
    by_sparsity,
    measured_sparsity,
)
from skillgraft.analysis.claims.statements import (
    ClaimResult,
    ClaimStatement,
    by_seed,
    holm,
    single_runs,
    table,
)
from skillgraft.analysis.labels import metric_label
from skillgraft.config.schema import ClaimConfig
from skillgraft.runtime.errors import InputError


def judge(rows: pd.DataFrame, options: ClaimConfig) -> ClaimResult:
    """Learned against movement at equal size: far better where small, equal where large."""
    both = single_runs(
        rows[rows.selector.isin(["learned", "movement"])], "task", "selector", "sparsity"
    )
    keys = ["task", "seed", "sparsity"]
    pairs = both[both.selector == "learned"].merge(
        both[both.selector == "movement"], on=keys, suffixes=("", "/movement")
    )
    if pairs.empty:
        raise InputError("no learned run of this sweep has its movement run of one task and seed")
    pairs = pairs.assign(ahead=pairs[SCORE] - pairs[f"{SCORE}/movement"])
    statements = []
    for sparsity, part in by_sparsity(pairs):
        if sparsity <= (options.sparsity or DEFAULT_SPARSITY):
            paper, low, high = "far better at 1e-5 … 1e-4 (here: better, > 0)", 0.0, math.inf
        elif sparsity == pairs.sparsity.max():
            paper, low, high = "they meet (here: within 0.01)", -0.01, 0.01
        else:
            paper, low, high = "–", -math.inf, math.inf
        name = f"learned − movement at sparsity {sparsity:g}"
        size = f"({part['region/size'].mean():,.0f} parameters)"
        statements.append(
            ClaimStatement(f"{name} {size}", paper, by_seed(part, "ahead"), low, high)
        )
    return ClaimResult(
        statements,
        table(
            both,
            ["task", "sparsity", "selector"],
            {"region/size": "parameters", SCORE: metric_label(both), "graft/test/ece": "ECE"},
        ),
        lambda: plots.curves(
            measured_sparsity(both), SCORE, "selector", metric_label, (BEFORE, FULL)
        ),
        [
            f"sparsity {sparsity:g}: learned − movement {holm(part, 'ahead', 0)}"
            for sparsity, part in by_sparsity(pairs)
        ],
    )
