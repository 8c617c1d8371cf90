"""Claim: grafting in sequence forgets little."""

from __future__ import annotations

import math

import pandas as pd

from skillgraft.analysis import plots
from skillgraft.analysis.claims.selection import option
from skillgraft.analysis.claims.statements import (
    ClaimResult,
    ClaimStatement,
    by_seed,
    single_runs,
    table,
)
from skillgraft.config.schema import ClaimConfig
from skillgraft.runtime.errors import InputError


def judge(rows: pd.DataFrame, options: ClaimConfig) -> ClaimResult:
    """Grafting in sequence forgets little of earlier tasks; plain sequential fine-tuning forgets much."""
    long = _forgetting(rows)
    columns = {
        "parameters": "parameters",
        "then": "right after",
        "now": "at the end",
        "forgotten": "forgotten",
    }
    return ClaimResult(
        _statements(long),
        table(long, ["mode", "stage_number", "task"], columns),
        lambda: plots.bars(
            long.pivot_table(
                index=["seed", "task"], columns="mode", values="forgotten"
            ).reset_index(),
            {"graft": "grafting", "finetuned": "plain sequential"},
            "score forgotten by the end",
        ),
    )


def _forgetting(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row per sequence, seed and task: its score right after its stage, and at the end.

    Raises InputError where no run starts from another run's end.
    """
    rows = rows.assign(
        take=option(rows, "continual.carry", "graft"),
        sequence=rows["stage"].str.partition(":")[2],
        stage_number=rows["stage"].str.count(">") + 1,
    )
    rows = single_runs(rows, "take", "sequence")
    first = rows[rows.stage_number == 1]  # takes nothing: the same run for both
    found = []
    for (seed, take), part in rows[rows.stage_number > 1].groupby(["seed", "take"]):
        who = "graft" if take == "graft" else "finetuned"
        part = pd.concat([first[first.seed == seed], part])
        order = part.sort_values("stage_number")
        last = order.iloc[-1]
        for _, run in order.iterrows():
            then = run[f"{who}/test/score"]
            now = (
                then
                if run.task == last.task
                else last.get(f"{who}/tasks/{run.task}/score", math.nan)
            )
            found.append({"seed": seed, "mode": take, "task": run.task, "last": run.task == last.task,
                          "then": then, "now": now, "forgotten": then - now,
                          "parameters": run["region/size"], "stage_number": run["stage_number"]})  # fmt: skip
    if not found:
        raise InputError("no run of this sweep starts from another's end (continual.tasks)")
    return pd.DataFrame(found)


def _statements(long: pd.DataFrame) -> list[ClaimStatement]:
    """Return what the paper says of forgetting, with what was measured."""
    grafted, plain = (long[long["mode"] == mode] for mode in ("graft", "finetuned"))
    kept, lost = (by_seed(part[~part["last"]], "forgotten") for part in (grafted, plain))
    final, final_plain = (by_seed(part, "now") for part in (grafted, plain))
    memory = grafted.groupby("seed")["parameters"].sum()
    return [
        ClaimStatement(
            "forgotten by the end, grafting in sequence", "0.015 (QNLI)", kept, high=0.015
        ),
        ClaimStatement("forgotten by the end, plain sequential", "0.20 (QNLI)", lost),
        ClaimStatement(
            "plain − grafting",
            "> 0",
            {s: lost[s] - v for s, v in kept.items() if s in lost},
            low=0,
        ),
        ClaimStatement(
            "final score, grafting − plain, mean of tasks",
            "> 0",
            {s: v - final_plain.get(s, math.nan) for s, v in final.items()},
            low=0,
        ),
        ClaimStatement(
            "parameters stored in all, grafting",
            "T·s·n",
            {int(str(s)): float(v) for s, v in memory.items()},
        ),
    ]
