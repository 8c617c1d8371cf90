"""Claim: the graft against the fine-tuned model."""

from __future__ import annotations

import pandas as pd

from skillgraft.analysis import plots
from skillgraft.analysis.claims.selection import (
    BEFORE,
    FULL,
    SCORE,
    learned,
    levels,
    sparsity_in_task,
)
from skillgraft.analysis.claims.statements import (
    ClaimResult,
    ClaimStatement,
    by_seed,
    holm,
    require,
    table,
)
from skillgraft.analysis.labels import metric_label
from skillgraft.config.schema import ClaimConfig


def judge(rows: pd.DataFrame, options: ClaimConfig) -> ClaimResult:
    """The graft against the fine-tuned model: score, ECE, agreement, on single sentences and on pairs."""
    require(rows, SCORE, FULL)
    rows = learned(rows)
    rows = rows.assign(
        gap=rows[SCORE] - rows[FULL],
        less=rows["finetuned/test/ece"] - rows["graft/test/ece"],
        kind=rows["config/task.template"]
        .str.contains("*b*", regex=False)
        .map({True: "pair", False: "single"}),
    )
    paper = {"single": (-0.007, 0.050, 0.93), "pair": (-0.034, 0.096, 0.86)}
    statements, notes = [], []
    groups = [
        (str(kind), level, part)
        for kind, of in rows.groupby("kind", sort=False)
        for level, part in levels(of)
    ]
    for kind, level, part in groups:
        score, ece, agreement = paper[kind]
        statements += [
            ClaimStatement(
                f"{kind}: graft − fine-tuned score{level}",
                f"{score}",
                by_seed(part, "gap"),
                low=score,
            ),
            ClaimStatement(
                f"{kind}: ECE, fine-tuned − graft{level}",
                f"{ece}",
                by_seed(part, "less"),
                low=ece,
            ),
            ClaimStatement(
                f"{kind}: agreement{level}",
                f"{agreement}",
                by_seed(part, "graft/test/agreement"),
                low=agreement,
            ),
        ]
        notes.append(f"{kind}: graft − fine-tuned score{level} {holm(part, 'gap', score)}")
    names = {BEFORE: "pre-trained", FULL: "fine-tuned", SCORE: "graft"}
    columns = {
        "region/size": "parameters",
        **names,
        "finetuned/test/ece": "ECE, fine-tuned",
        "graft/test/ece": "ECE, graft",
        "graft/test/agreement": "agreement",
        "graft/test/relative_gain": "relative gain",
    }
    return ClaimResult(
        statements,
        table(rows, ["kind", "task", "sparsity"], columns),
        lambda: plots.bars(sparsity_in_task(rows), names, metric_label(rows)),
        notes,
    )
