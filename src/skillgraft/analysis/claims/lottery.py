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
from skillgraft.analysis.labels import metric_label
from skillgraft.config.schema import ClaimConfig


def judge(rows: pd.DataFrame, options: ClaimConfig) -> ClaimResult:
    """A lottery ticket (all but the region set to 0) without re-training fails at every sparsity."""
    tickets = sorted(
        columns_of(rows, "lottery_", "/test/score"),
        key=_steps_of,
    )
    require(rows, "lottery_0/test/score", SCORE)
    rows = learned(rows)
    statements = []
    for name in tickets:
        steps = _steps_of(name)
        kept = rows.assign(kept=rows[name] / rows[FULL])
        # the best of fewer sparsities, or over fewer tasks, is another number
        kept = kept[kept.seed.isin(list(by_seed(kept, "kept")))]
        best = kept.groupby(["seed", "sparsity"])["kept"].mean().groupby("seed").max().reset_index()
        statements.append(
            ClaimStatement(
                f"ticket trained {steps} steps ÷ fine-tuned, best sparsity",
                "fails without re-training (here: < 0.95)" if steps == 0 else "needs re-training",
                by_seed(best, "kept"),
                high=KEPT if steps == 0 else math.inf,
            )
        )
    ahead = rows.assign(ahead=rows[SCORE] - rows["lottery_0/test/score"])
    statements.append(
        ClaimStatement("graft − untrained ticket", "> 0", by_seed(ahead, "ahead"), low=0)
    )
    names = {
        BEFORE: "pre-trained",
        FULL: "fine-tuned",
        SCORE: "graft",
        **{n: f"ticket, {_steps_of(n)} steps" for n in tickets},
    }
    parts = [rows.assign(model=names[n], score=rows[n]) for n in (SCORE, *tickets)]
    long = measured_sparsity(pd.concat(parts, ignore_index=True))
    return ClaimResult(
        statements,
        table(rows, ["task", "sparsity"], {"region/size": "parameters", **names}),
        lambda: plots.curves(long, "score", "model", metric_label, (BEFORE, FULL)),
        [
            f"sparsity {sparsity:g}: graft − untrained ticket {holm(part, 'ahead', 0)}"
            for sparsity, part in ahead.groupby("sparsity")
        ],
    )


def _steps_of(name: str) -> int:
    """Return for how many steps the ticket of a column (lottery_<steps>/…) was trained."""
    return int(name.split("/")[0].removeprefix("lottery_"))
