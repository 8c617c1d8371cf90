"""Gains of regions on the tasks of a mixture."""

from __future__ import annotations

import pandas as pd

from skillgraft.analysis.claims.selection import columns_of
from skillgraft.evaluation.metrics import GAIN_FLOOR


def gains_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row per run, model and task of the mixture: what was `gained` of what was `possible`.

    `gained` is P_γ − P_0, `possible` P_1 − P_0, `gain` their ratio, undefined where |P_1 − P_0| is
    below 0.01; `region` names the tasks whose regions the graft is made of, joined by +.
    """
    found = []
    for name in columns_of(rows, "", "/score"):
        who, _, rest = name.partition("/")
        split = rest.removesuffix("/score")
        if (who == "graft" or who.startswith("inside_")) and split.startswith(("test", "tasks/")):
            before, full = rows[f"pretrained/{split}/score"], rows[f"finetuned/{split}/score"]
            part = rows[["seed", "task"]].assign(
                who=who,
                region=rows.regions.str.join("+"),
                gained=rows[name] - before,
                possible=full - before,
            )
            if split != "test":
                part["task"] = split.removeprefix("tasks/")
            found.append(part)
    gains = pd.concat(found, ignore_index=True).dropna(subset=["gained"])
    keys = ["seed", "who", "region", "task"]
    enough = gains.possible.abs().round(9) >= GAIN_FLOOR  # as `evaluate.relative_gain`
    gains = gains.assign(gain=(gains.gained / gains.possible).where(enough))
    return gains.drop_duplicates(keys)


def share(gains: pd.DataFrame) -> dict[int, float]:
    """Return by seed which share of the possible gains of all its rows was gained.

    Not the mean of relative gains: a task that fine-tuning hardly helped would decide it.
    """
    groups = gains.groupby("seed")
    whole = groups.size() == groups.size().max()  # as in `by_seed`
    sums = groups[["gained", "possible"]].sum()[whole]
    return {
        int(str(s)): float(g / p)
        for s, g, p in zip(sums.index, sums.gained, sums.possible, strict=True)
        if p
    }
