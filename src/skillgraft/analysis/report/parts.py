"""The parts of a setting: each returns its figures."""

from __future__ import annotations

import re
from collections.abc import Callable

import pandas as pd

from skillgraft.analysis import plots, tables
from skillgraft.analysis.claims import selection
from skillgraft.analysis.claims.gains import gains_of
from skillgraft.analysis.claims.selection import SCORE
from skillgraft.analysis.labels import capital, metric_label
from skillgraft.analysis.overlaps import pairs_of, square
from skillgraft.analysis.report.items import Item, graft_of, plain_name
from skillgraft.analysis.report.sequences import forgetting
from skillgraft.analysis.report.settings import (
    FIXED,
    intervals,
    most_frequent_sparsity,
    one_selector,
    without_later_stages,
)
from skillgraft.evaluation.compared import MODELS
from skillgraft.store.folders import Store
from skillgraft.store.names import PREDICTIONS


def curves_of(value: str) -> Callable[[pd.DataFrame, Store], list[Item]]:
    """Return the part that draws a value against sparsity."""

    def draw(rows: pd.DataFrame, store: Store) -> list[Item]:
        rows = without_later_stages(rows[rows["by"] != "file"]).dropna(subset=[value])
        if rows.empty:
            return []
        what = value.rpartition("/")[2]
        levels = [f"{model}/test/{what}" for model in ("pretrained", "finetuned")]
        label = {"score": metric_label(rows), "ece": "ECE"}[what]
        return [
            Item(
                f"{what}_sparsity",
                f"{capital(label)} against sparsity",
                "A point is the mean over seeds at the measured sparsity (fraction of parameters "
                "kept), with its 95 % Student's t interval; lines are the pre-trained (dotted) and "
                "the fine-tuned model (dashed)."
                + " Score: each task's own metric, which its panel names."
                * (label == "score"),
                intervals(
                    rows,
                    ["task", "selector", "sparsity"],
                    [value, *levels, "region/size", "region/sparsity"],
                ),
                plots.curves(
                    selection.measured_sparsity(rows),
                    value,
                    "selector",
                    metric_label if what == "score" else label,
                    levels,
                ),
            )
        ]

    return draw


def reliability(rows: pd.DataFrame, store: Store) -> list[Item]:
    """Return a reliability diagram per task: pre-trained, fine-tuned and graft, seeds pooled."""
    items = []
    for task, part in one_selector(without_later_stages(rows)).groupby("task"):
        files = [store.run(name) / PREDICTIONS for name in part["id"]]
        frames = [pd.read_parquet(file) for file in files if file.is_file()]
        if not frames:
            continue
        seeds = "1 seed" if len(frames) == 1 else f"{len(frames)} seeds pooled"
        frame = pd.concat([one[one["split"] == "test"] for one in frames])
        names = [name for name in map(str, frame) if name.startswith("p/")]
        tests = {m: frame.loc[frame["model"] == m, names].to_numpy() for m in plots.COLOURS}
        labels = [names.index(f"p/{x}") for x in frame.loc[frame["model"] == "graft", "label"]]
        items.append(
            Item(
                f"reliability_{plain_name(task)}",
                f"Reliability, {task}",
                f"Accuracy against confidence on the test examples, {seeds}; "
                f"darker with more examples. {graft_of(part)}",
                tables.reliability_table(tests, labels),
                plots.reliability_diagram(tests, labels, str(task)),
            )
        )
    return items


def overlaps(rows: pd.DataFrame, store: Store) -> list[Item]:
    """Return a heat map per selector of the overlap of every two tasks' regions, like tasks side by side."""
    rows = without_later_stages(rows[~rows["by"].isin(FIXED)])
    found = []
    for selector, part in rows.groupby("selector"):
        part = part.assign(task=part["config/task.name"])
        pairs = pairs_of(part)
        if pairs.empty:
            continue
        sparsity = most_frequent_sparsity(pairs)
        table = intervals(pairs, ["selector", "sparsity", "a", "b"], ["iou", "chance"])
        matrix = square(pairs[pairs["sparsity"] == sparsity], "iou")
        found.append(
            Item(
                f"overlap_{plain_name(selector)}",
                f"Overlap of regions, {selector}",
                f"IoU of two tasks' regions at sparsity {sparsity:g}, mean over seeds; tasks in the "
                "order of average-linkage clustering on 1 − IoU, whose tree is drawn.",
                table,
                plots.clustered(matrix, "", "IoU"),
            )
        )
    return found


def places(rows: pd.DataFrame, store: Store) -> list[Item]:
    """Return where the regions lie: their shares by layer and by kind of module."""
    rows = without_later_stages(rows[~rows["by"].isin(FIXED)])
    rows = rows[rows["sparsity"] == most_frequent_sparsity(rows)] if len(rows) else rows
    items = []
    for kind, title in (("layer", "layer"), ("module", "kind of module")):
        known = selection.columns_of(rows, f"region/{kind}/", "")
        short = {name: name.rpartition("/")[2] for name in known if rows[name].notna().any()}
        if not short:
            continue
        order = sorted(short, key=lambda n: (not short[n].isdigit(), short[n].zfill(4)))
        # a layer in which a region has no parameter is not in its record
        part = rows.fillna(dict.fromkeys(order, 0.0))
        means = part.groupby(["selector", "task"])[order if kind == "layer" else list(short)].mean()
        means.index = [f"{selector}: {task}" for selector, task in means.index]
        items.append(
            Item(
                f"region_{kind}",
                f"The region by {title}",
                f"Share of the region's parameters in each {title} at sparsity "
                f"{most_frequent_sparsity(rows):g}, mean over seeds.",
                intervals(part, ["selector", "task", "sparsity"], order),
                plots.heat_map(means.rename(columns=short), "", "share of the region"),
            )
        )
    return items


def gains(rows: pd.DataFrame, store: Store) -> list[Item]:
    """Return the relative gain by selector, sparsity and task, and that of regions on other tasks."""
    items, value = [], "graft/test/relative_gain"
    own = without_later_stages(rows[rows["by"] != "file"]).dropna(subset=[value])
    if len(own):
        lines = own["selector"] + ", " + own["sparsity"].map("{:g}".format)
        means = own.assign(line=lines).pivot_table(index="line", columns="task", values=value)
        items.append(
            Item(
                "relative_gain",
                "Relative gain",
                "(graft − pre-trained) ÷ (fine-tuned − pre-trained) by selector and sparsity, mean "
                "over seeds; empty where fine-tuning changed the score by less than 0.01.",
                intervals(own, ["task", "selector", "sparsity"], [value]),
                plots.heat_map(means, "", "relative gain", (0, 1)),
            )
        )
    files = rows[rows["by"] == "file"]
    if selection.columns_of(files, "graft/tasks/", "/score") and len(files):
        # regions of one name that other selectors or sparsities made are not to be averaged
        names = files["regions"].str.join("+") + files["selector"]
        if not files.assign(names=names).duplicated(["names", "task", "seed"]).any():
            items.append(across(files))
    return items


def across(files: pd.DataFrame) -> Item:
    """Return the heat map of relative gains of single and united regions on every task of a mixture."""
    found = gains_of(files.assign(task=files["config/task.name"]))
    found = found[found["who"] == "graft"].dropna(subset=["gain"])
    count = found["region"].str.count(r"\+") + 1
    found = found.assign(
        count=count, region=found["region"].where(count < 4, count.map("{} tasks".format))
    )
    means = found.pivot_table(index=["count", "region"], columns="task", values="gain")
    return Item(
        "relative_gain_regions",
        "Relative gain of a region on another task",
        "Rows are regions of one task and unions of several, columns the tasks that they are "
        "measured on; mean over seeds.",
        intervals(found, ["region", "task"], ["gain"]),
        plots.heat_map(means.droplevel("count"), "", "relative gain", (0, 1)),
    )


def ood(rows: pd.DataFrame, store: Store) -> list[Item]:
    """Return bars of the score on out-of-distribution sets."""
    rows, models = one_selector(without_later_stages(rows)), tuple(MODELS)
    parts, metrics = [], set()
    for name in selection.columns_of(rows, "graft/ood/", "/score"):
        other = name.split("/")[2]
        scores = {f"{model}/ood/{other}/score": model for model in models}
        part = rows[["task", "selector", "sparsity", *scores]].rename(columns=scores)
        parts.append(part.assign(task=part["task"] + " → " + other).dropna(subset=["graft"]))
        metrics.add(metric_label(rows[rows[name].notna()], f"ood/{other}"))
    long = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    if long.empty:
        return []
    label = metrics.pop() if len(metrics) == 1 else "score"
    return [
        Item(
            "ood",
            "Out of distribution",
            f"{capital(label)} on another data set than the fine-tuning's (trained on → tested on), with "
            f"95 % Student's t intervals over seeds. {graft_of(rows)}",
            intervals(long, ["task", "selector", "sparsity"], models),
            plots.bars(long, MODELS, label),
        )
    ]


def interpolation(rows: pd.DataFrame, store: Store) -> list[Item]:
    """Return the score of θ_pre + α Δ over α (WiSE-FT), on the test and each OOD set, beside the graft's."""
    names = [re.fullmatch(r"wise_([^/]+)/((?:test|ood/.+)/score)", name) for name in map(str, rows)]
    found = [match for match in names if match]
    rows = (
        one_selector(without_later_stages(rows.dropna(subset=found[0][0])))
        if found
        else rows.iloc[:0]
    )
    if rows.empty:
        return []
    models = {0.0: "pretrained", **{float(m[1]): f"wise_{m[1]}" for m in found}, 1.0: "finetuned"}
    parts = [
        rows.assign(x=alpha, split=score.removesuffix("/score"), score=rows[f"{model}/{score}"])
        for alpha, model in sorted(models.items())
        for score in sorted({m[2] for m in found})
    ]
    long = pd.concat(parts, ignore_index=True).dropna(subset=["score"])
    shown = long.rename(columns={"split": "test set"})
    shown["test set"] = shown["test set"].replace(r"^ood/(.+)", r"\1 (shifted)", regex=True)
    label = metric_label(rows)
    return [
        Item(
            "interpolation",
            "Between pre-trained and fine-tuned",
            "The model θ_pre + α Δ (WiSE-FT): at α = 0 the pre-trained, at α = 1 the fine-tuned model; the "
            "dotted line is the graft on the task's own test set. 95 % Student's t intervals. "
            + graft_of(rows),
            intervals(long, ["task", "split", "x"], ["score"]).rename(columns={"x": "α"}),
            plots.curves(shown, "score", "test set", label, [SCORE], across="α"),
        )
    ]


PARTS: dict[str, Callable[[pd.DataFrame, Store], list[Item]]] = {
    "score against sparsity": curves_of(SCORE),
    "ECE against sparsity": curves_of("graft/test/ece"),
    "reliability (predictions)": reliability,
    "overlap of tasks' regions": overlaps,
    "the region by layer and module": places,
    "relative gain": gains,
    "out of distribution": ood,
    "between pre-trained and fine-tuned": interpolation,
    "forgetting in sequence": forgetting,
}
