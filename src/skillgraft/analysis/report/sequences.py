"""Forgetting in a sequence of tasks."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from omegaconf import OmegaConf

from skillgraft.analysis import plots
from skillgraft.analysis.labels import capital, metric_label
from skillgraft.analysis.report.items import Item
from skillgraft.analysis.report.settings import intervals
from skillgraft.store.folders import Store
from skillgraft.store.names import CONFIG


def forgetting(rows: pd.DataFrame, store: Store) -> list[Item]:
    """Return the score of every task after each stage of a sequence of tasks."""
    long = sequences(rows, store)
    if long.empty:
        return []
    return [
        Item(
            "forgetting",
            "Forgetting in sequence",
            f"{capital(metric_label(rows))} of each task (a panel) from its own stage on, as later tasks "
            "are learned: with grafting in sequence, and with plain sequential fine-tuning; 95 % "
            "Student's t intervals.",
            intervals(long, ["mode", "task", "x"], ["score"]).rename(columns={"x": "stage"}),
            plots.curves(
                long.rename(columns={"mode": "sequence"}),
                "score",
                "sequence",
                metric_label(rows),
                across="stage of the sequence",
            ),
        )
    ]


def sequences(rows: pd.DataFrame, store: Store) -> pd.DataFrame:
    """Return one row per sequence, seed, stage `x` and task seen so far: its `score` there."""
    if "stage" not in rows:
        return pd.DataFrame()
    before = {
        name: Path(OmegaConf.load(store.run(name) / CONFIG).continual.init_from).name
        for name in rows.loc[rows["stage"].fillna("").str.contains(">"), "id"]
    }
    order = dict(zip(rows["id"], rows["stage"].str.partition(":")[2], strict=True))
    ends = [name for name in before if name not in before.values()]
    whole = [order[a] for a in ends if not any(order[b].startswith(f"{order[a]}>") for b in ends)]
    runs, found = rows.set_index("id"), []
    for end in ends:
        last = runs.loc[end]
        grafted = last.get("config/continual.carry") != "finetuned"
        model = "graft" if grafted else "finetuned"
        way = "grafting" if grafted else "plain"
        full = next(o for o in whole if o.startswith(order[end]))
        mode = f"{way}, {last.selector} {last.sparsity:g}" + f": {full}" * (len(set(whole)) > 1)
        name: str | None = end
        while name in runs.index:  # a first stage that is not in the store any more ends it
            run, tasks = runs.loc[name], order[str(name)].split(">")
            for task in tasks:
                split = "test" if task == tasks[-1] else f"tasks/{task}"
                score = run.get(f"{model}/{split}/score")
                found.append({"mode": mode, "seed": run.seed, "task": task, "x": len(tasks),
                              "score": score})  # fmt: skip
            name = before.get(str(name))
    return pd.DataFrame(found).drop_duplicates() if found else pd.DataFrame()
