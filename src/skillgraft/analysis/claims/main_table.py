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

# By kind of task: the graft's score less the fine-tuned one's, ECE saved, and agreement.
PAPER = {"single": (-0.007, 0.050, 0.93), "pair": (-0.034, 0.096, 0.86)}


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
    groups = [
        (str(kind), level, part)
        for kind, of in rows.groupby("kind", sort=False)
        for level, part in levels(of)
    ]
    found = [statement for group in groups for statement in _statements(*group)]
    notes = [
        f"{kind}: graft − fine-tuned score{level} {holm(part, 'gap', PAPER[kind][0])}"
        for kind, level, part in groups
    ]
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
        found,
        table(rows, ["kind", "task", "sparsity"], columns),
        lambda: plots.bars(sparsity_in_task(rows), names, metric_label(rows)),
        notes,
    )


def _statements(kind: str, level: str, part: pd.DataFrame) -> list[ClaimStatement]:
    """Return the paper's three figures for a kind of task, with what was measured at one sparsity."""
    score, ece, agreement = PAPER[kind]
    return [
        ClaimStatement(
            f"{kind}: graft − fine-tuned score{level}", f"{score}", by_seed(part, "gap"), low=score
        ),
        ClaimStatement(
            f"{kind}: ECE, fine-tuned − graft{level}", f"{ece}", by_seed(part, "less"), low=ece
        ),
        ClaimStatement(
            f"{kind}: agreement{level}",
            f"{agreement}",
            by_seed(part, "graft/test/agreement"),
            low=agreement,
        ),
    ]
