"""Claim: BitFit learns, bias grafts do not."""

from __future__ import annotations

import pandas as pd

from skillgraft.analysis import plots
from skillgraft.analysis.claims.selection import BEFORE, FULL, KEPT, SCORE, by_training
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
    """BitFit learns in 0.1 % of the parameters; the biases of a fully fine-tuned model hold no skill."""
    require(rows, SCORE, FULL)
    full, bias = by_training(rows, "task")
    bias = bias[["task", "seed", FULL]].rename(columns={FULL: "bitfit"})
    both = full.merge(bias, how="left", on=["task", "seed"])
    both = both.assign(kept=both[SCORE] / both[FULL], rival=both.bitfit / both[FULL])
    titles = {BEFORE: "pre-trained", FULL: "fine-tuned", "bitfit": "BitFit", SCORE: "bias graft"}
    names = {name: title for name, title in titles.items() if both[name].notna().any()}
    return ClaimResult(
        [
            ClaimStatement(
                "share of the parameters that are biases", "0.001", by_seed(both, "region/sparsity")
            ),
            ClaimStatement("BitFit ÷ fine-tuned", "> 0.95", by_seed(both, "rival"), low=KEPT),
            ClaimStatement(
                "bias graft of the fine-tuned model ÷ fine-tuned",
                "fails (here: < 0.95)",
                by_seed(both, "kept"),
                high=KEPT,
            ),
        ],
        table(both, ["task"], {"region/size": "biases", **names}),
        lambda: plots.bars(both, names, metric_label(both)),
        [f"BitFit ÷ fine-tuned {holm(both, 'rival', KEPT)}"],
    )
