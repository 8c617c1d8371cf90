"""Claim: unions of regions keep the gains of all tasks."""

from __future__ import annotations

import pandas as pd

from skillgraft.analysis import plots
from skillgraft.analysis.claims.gains import gains_of, share
from skillgraft.analysis.claims.selection import are_similar
from skillgraft.analysis.claims.statements import (
    ClaimResult,
    ClaimStatement,
    require,
    single_runs,
    table,
)
from skillgraft.config.schema import ClaimConfig


def judge(rows: pd.DataFrame, options: ClaimConfig) -> ClaimResult:
    """Unions of regions keep the gains of all tasks; a region helps the tasks that are like its own."""
    everything = gains_of(
        single_runs(rows.assign(union=rows.regions.str.join("+")), "task", "union")
    )
    require(everything, "gain")
    gains, after = everything[everything.who == "graft"], everything[everything.who == "inside_10"]
    parts = gains.region.str.count(r"\+") + 1
    single, pair = gains[parts == 1], gains[parts == 2]
    whole = gains.region[parts == parts.max()].unique()
    own = single[single.region == single.task]
    other = single[single.region != single.task]
    alike = [are_similar(options, a, b) for a, b in zip(other.region, other.task, strict=True)]
    near, far = other[alike], other[[not x for x in alike]]
    helped, rest = share(near), share(far)
    either = pair[[t in r.split("+") for r, t in zip(pair.region, pair.task, strict=True)]]
    return ClaimResult(
        [
            ClaimStatement("share of the gain: a region on its own task", "–", share(own)),
            ClaimStatement(
                "share of the gains of all tasks under the union of all regions",
                "≈ 0.70",
                share(gains[gains.region.isin(whole)]),
                low=0.7,
            ),
            ClaimStatement(
                "the same after 10 steps inside the union",
                "≈ 0.80",
                share(after[after.region.isin(whole)]),
                low=0.8,
            ),
            ClaimStatement("share of the gains: a union of two on either task", "–", share(either)),
            ClaimStatement(
                "share of the gains: a region on similar − on other tasks",
                "> 0",
                {seed: value - rest[seed] for seed, value in helped.items() if seed in rest},
                low=0,
            ),
        ],
        table(everything, ["who", "region", "task"], {"gain": "relative gain"}),
        lambda: plots.heat_map(
            gains.pivot_table(index="region", columns="task", values="gain", dropna=False),
            "relative gain of a region (row) on a task (column)",
            "relative gain",
            (0, 1),
        ),
    )
