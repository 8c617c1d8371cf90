"""Claim: regions of different tasks hardly overlap."""

from __future__ import annotations

import pandas as pd

from skillgraft.analysis import plots
from skillgraft.analysis.claims.selection import are_similar, levels
from skillgraft.analysis.claims.statements import (
    ClaimResult,
    ClaimStatement,
    by_seed,
    require,
    single_runs,
    table,
)
from skillgraft.analysis.overlaps import pairs_of, square
from skillgraft.config.schema import ClaimConfig


def judge(rows: pd.DataFrame, options: ClaimConfig) -> ClaimResult:
    """Regions of different tasks in one multi-task model hardly overlap; those of similar tasks most."""
    pairs = pairs_of(rows)
    require(pairs, "iou")
    if pairs.duplicated(["seed", "selector", "sparsity", "a", "b"]).any():
        single_runs(rows, "task", "selector", "sparsity")  # says in what they differ
    pairs = pairs.assign(
        alike=[are_similar(options, a, b) for a, b in zip(pairs.a, pairs.b, strict=True)]
    )
    statements = []
    groups = [
        (f"{selector}{level}", part)
        for selector, of in pairs.groupby("selector", sort=False)
        for level, part in levels(of)
    ]
    for name, part in groups:
        near, far = by_seed(part[part.alike], "iou"), by_seed(part[~part.alike], "iou")
        statements += [
            ClaimStatement(
                f"{name}: IoU of two tasks, mean of pairs",
                "almost disjoint (here: < 0.1)",
                by_seed(part, "iou"),
                high=0.1,
            ),
            ClaimStatement(
                f"{name}: IoU of random regions of these sizes", "–", by_seed(part, "chance")
            ),
            ClaimStatement(
                f"{name}: IoU of similar − of other pairs",
                "> 0",
                {seed: value - far[seed] for seed, value in near.items() if seed in far},
                low=0,
            ),
        ]
    name, last = groups[-1]
    return ClaimResult(
        statements,
        table(
            pairs, ["selector", "alike", "a", "b", "sparsity"], {"iou": "IoU", "chance": "chance"}
        ),
        lambda: plots.heat_map(square(last, "iou"), f"overlap (IoU), {name}", "IoU"),
    )
