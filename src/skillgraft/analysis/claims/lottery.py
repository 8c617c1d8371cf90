"""Claim: lottery tickets fail without re-training."""

from __future__ import annotations

import math

import pandas as pd

from skillgraft.analysis import plots
from skillgraft.analysis.claims.selection import (
    BEFORE,
    FULL,
    KEPT,
    SCORE,
    columns_of,
    learned,
    measured_sparsity,
)
from skillgraft.analysis.claims.statements import (
    ClaimResult,
    ClaimStatement,
    by_seed,
    holm,
    require,
    table,
)
from skillgraft.config.schema import ClaimConfig


def judge(rows: pd.DataFrame, options: ClaimConfig) -> ClaimResult:
    """A lottery ticket (all but the region set to 0) without re-training fails at every sparsity."""
    tickets = sorted(
        columns_of(rows, "lottery_", "/test/score"),
        key=lambda name: int(name.split("/")[0].removeprefix("lottery_")),
    )
    require(rows, "lottery_0/test/score", SCORE)
    rows = learned(rows)
    statements = []
    for name in tickets:
        steps = name.split("/")[0].removeprefix("lottery_")
        kept = rows.assign(kept=rows[name] / rows[FULL])
        # the best of fewer sparsities, or over fewer tasks, is another number
        kept = kept[kept.seed.isin(list(by_seed(kept, "kept")))]
        best = kept.groupby(["seed", "sparsity"])["kept"].mean().groupby("seed").max().reset_index()
        statements.append(
            ClaimStatement(
                f"ticket trained {steps} steps ÷ fine-tuned, best sparsity",
                "fails without re-training (here: < 0.95)" if steps == "0" else "needs re-training",
                by_seed(best, "kept"),
                high=KEPT if steps == "0" else math.inf,
            )
        )
    ahead = rows.assign(ahead=rows[SCORE] - rows["lottery_0/test/score"])
    statements.append(
        ClaimStatement("graft − untrained ticket", "> 0", by_seed(ahead, "ahead"), low=0)
    )
    names = {
        BEFORE: "pretrained",
        FULL: "finetuned",
        SCORE: "graft",
        **{n: n.split("/")[0] for n in tickets},
    }
    parts = [rows.assign(model=names[n], score=rows[n]) for n in (SCORE, *tickets)]
    long = measured_sparsity(pd.concat(parts, ignore_index=True))
    return ClaimResult(
        statements,
        table(rows, ["task", "sparsity"], {"region/size": "entries", **names}),
        lambda: plots.curves(long, "score", "model", (BEFORE, FULL)),
        [
            f"sparsity {sparsity:g}: graft − untrained ticket {holm(part, 'ahead', 0)}"
            for sparsity, part in ahead.groupby("sparsity")
        ],
    )
