"""The paper's claims (method: section 5): what of each was measured, and whether it holds.

A claim reads the whole runs of a sweep, one row a run with metrics.json's names as columns. Each of
its statements is one number a seed, an interval over seeds, and the range that the paper's figure
puts it in; the range's verdict is `stats.verdict`'s.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Mapping
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from skillgraft import compare, figure
from skillgraft.compared import MODELS
from skillgraft.config import ClaimConfig
from skillgraft.errors import InputError
from skillgraft.evaluate import GAIN_FLOOR
from skillgraft.verdict import Outcome, Statement, by_seed, holm, need, one_each, table

if TYPE_CHECKING:
    from skillgraft.graft import Graft

KEPT = 0.95  # the share of the fine-tuned score that the paper calls localized
AT = 1e-4  # the sparsity of the paper's figures, where `claim.at` has none that stands for it
SCORE = "graft/test/score"
FULL, BEFORE = "finetuned/test/score", "pretrained/test/score"


def columns_of(rows: pd.DataFrame, start: str, end: str) -> list[str]:
    """Return the columns whose names start and end so."""
    return [name for name in map(str, rows) if name.startswith(start) and name.endswith(end)]


def measured_sparsity(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with `x`: the mean measured sparsity of a task's regions of one asked sparsity."""
    keys = ["task", "selector", "sparsity"]
    return rows.assign(x=rows.groupby(keys)["region/sparsity"].transform("mean"))


def option(rows: pd.DataFrame, name: str, default: str | float) -> pd.Series:
    """Return an option of the runs; one at its default is not among the values that name a run."""
    if f"config/{name}" not in rows:
        return pd.Series(default, rows.index)
    return rows[f"config/{name}"].fillna(default)


def learned(rows: pd.DataFrame, *more: str) -> pd.DataFrame:
    """Return the runs with a learned region, one a task, sparsity, seed and `more`.

    Raises InputError where there is none, or several.
    """
    found = rows[rows.selector == "learned"]
    if found.empty:
        raise InputError("no run of this sweep has a learned region")
    return one_each(found, "task", "sparsity", *more)


def by_sparsity(rows: pd.DataFrame) -> list[tuple[float, pd.DataFrame]]:
    """Return the rows of each sparsity asked for, the smallest first."""
    return [(float(str(sparsity)), part) for sparsity, part in rows.groupby("sparsity")]


def levels(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Return the rows of each sparsity with the words that name it: none where it is the only one."""
    parts = by_sparsity(rows)
    return [(f" at sparsity {s:g}" if len(parts) > 1 else "", part) for s, part in parts]


def apart(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with the sparsity in the task's name where there are several, for bars by task."""
    if rows.sparsity.nunique() < 2:
        return rows
    return rows.assign(task=rows.task + ", " + rows.sparsity.map("{:g}".format))


# ---------------------------------------------------------------------------------------------
# The eleven claims


def sparsity_curve(rows: pd.DataFrame, options: ClaimConfig) -> Outcome:
    """Skill is local: at most 0.01 % of the parameters keep more than 95 % of the fine-tuned score."""
    need(rows, SCORE, FULL)
    rows = one_each(rows, "task", "selector", "sparsity")
    rows = rows.assign(kept=rows[SCORE] / rows[FULL])
    own, highest = rows[rows.selector == "learned"], options.at or AT
    statements = [
        Statement(
            f"learned graft ÷ fine-tuned at sparsity {sparsity:g} "
            f"({part['region/size'].mean():,.0f} entries)",
            "> 0.95 at ≤ 1e-4 (≤ 8,500 entries; GPT-2: 5e-4)" if sparsity <= highest else "–",
            by_seed(part, "kept"),
            KEPT if sparsity <= highest else -math.inf,
        )
        for sparsity, part in by_sparsity(own)
    ]
    at = own[own.sparsity == highest]
    return Outcome(
        statements,
        table(
            rows,
            ["task", "sparsity", "selector"],
            {
                "region/size": "entries",
                BEFORE: "pre-trained",
                FULL: "fine-tuned",
                SCORE: "graft",
                "kept": "graft ÷ fine-tuned",
                "graft/test/ece": "ECE",
                "graft/test/agreement": "agreement",
            },
        ),
        lambda: figure.curves(measured_sparsity(rows), SCORE, "selector", (BEFORE, FULL)),
        [f"sparsity {at.sparsity.iloc[0]:g}: graft ÷ fine-tuned {holm(at, 'kept', KEPT)}"]
        if len(at)
        else [],
    )


def calibration(rows: pd.DataFrame, options: ClaimConfig) -> Outcome:
    """Grafts are calibrated: 40 to 90 % less ECE than fine-tuned; and a rival, temperature scaling."""
    models = ("finetuned", "finetuned_scaled", "graft", "graft_scaled")
    errors = {f"{model}/test/ece": model.replace("_", ", ") for model in models}
    need(rows, *errors)
    rows = learned(rows)
    full, scaled, graft, both = (rows[name] for name in errors)
    rows = rows.assign(less=full - graft, rival=scaled - graft, fair=scaled - both)
    statements, notes = [], []
    for level, part in levels(rows):
        means = part.groupby("seed")[list(errors)].mean().loc[list(by_seed(part, "less"))]
        share = 1 - means["graft/test/ece"] / means["finetuned/test/ece"]
        statements += [
            Statement(
                f"share of the fine-tuned ECE that the graft is without (of means over tasks){level}",
                "0.40 to 0.90 (here: > 0.40)",
                {int(str(seed)): float(value) for seed, value in share.items()},
                low=0.4,
            ),
            Statement(
                f"ECE: fine-tuned − graft{level}",
                "0.043, 0.092 (SST-2, QNLI; here: > 0)",
                by_seed(part, "less"),
                low=0,
            ),
            Statement(
                f"ECE: fine-tuned with a fitted temperature − graft{level}",
                "not measured (here: > 0)",
                by_seed(part, "rival"),
                low=0,
            ),
            Statement(
                f"ECE: both with a fitted temperature, fine-tuned − graft{level}",
                "not measured (here: > 0)",
                by_seed(part, "fair"),
                low=0,
            ),
        ]
        notes.append(f"ECE of fine-tuned − graft{level} {holm(part, 'less', 0)}")
    return Outcome(
        statements,
        table(rows, ["task", "sparsity"], errors),
        lambda: figure.bars(apart(rows), errors, "ECE"),
        notes,
    )


def main_table(rows: pd.DataFrame, options: ClaimConfig) -> Outcome:
    """The graft against the fine-tuned model: score, ECE, agreement, on single sentences and on pairs."""
    need(rows, SCORE, FULL)
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
            Statement(
                f"{kind}: graft − fine-tuned score{level}",
                f"{score}",
                by_seed(part, "gap"),
                low=score,
            ),
            Statement(
                f"{kind}: ECE, fine-tuned − graft{level}",
                f"{ece}",
                by_seed(part, "less"),
                low=ece,
            ),
            Statement(
                f"{kind}: agreement{level}",
                f"{agreement}",
                by_seed(part, "graft/test/agreement"),
                low=agreement,
            ),
        ]
        notes.append(f"{kind}: graft − fine-tuned score{level} {holm(part, 'gap', score)}")
    names = {BEFORE: "pre-trained", FULL: "fine-tuned", SCORE: "graft"}
    columns = {
        "region/size": "entries",
        **names,
        "finetuned/test/ece": "ECE, fine-tuned",
        "graft/test/ece": "ECE, graft",
        "graft/test/agreement": "agreement",
        "graft/test/relative_gain": "relative gain",
    }
    return Outcome(
        statements,
        table(rows, ["kind", "task", "sparsity"], columns),
        lambda: figure.bars(apart(rows), names, "score"),
        notes,
    )


def ood(rows: pd.DataFrame, options: ClaimConfig) -> Outcome:
    """Under a large shift the graft is ahead, under a small one close; BitFit collapses."""
    full, bias = by_training(rows, "task", "sparsity")
    shifts = {**dict.fromkeys(options.small, "small"), **dict.fromkeys(options.large, "large")}
    parts = []
    for name in sorted(columns_of(rows, "graft/ood/", "/score")):
        split = name.split("/")[2]
        keys = ["task", "seed", "sparsity"]
        names = [f"{model}/ood/{split}/score" for model in MODELS]
        part = full[[*keys, *names]].set_axis([*keys, *MODELS], axis=1)
        other = bias[[*keys, names[1]]].rename(columns={names[1]: "bitfit"})
        part = part.merge(other, how="left", on=keys).assign(ood=split).dropna(subset=["graft"])
        parts += [part] if len(part) else []
    if not parts:
        raise InputError("no run of this sweep has an OOD set")
    long = pd.concat(parts, ignore_index=True)
    place = long.task + "/" + long.ood
    long = long.assign(
        shift=place.map(shifts).fillna(long.ood.map(shifts)).fillna("not stated"),
        gain=long.graft - long.finetuned,
        collapse=long.bitfit - long.finetuned,
    )
    statements = []
    for level, part in levels(long):
        large, small = part[part["shift"] == "large"], part[part["shift"] == "small"]
        statements += [
            Statement(
                f"large shift: graft − fine-tuned{level}",
                "≥ 0.05",
                by_seed(large, "gain"),
                low=0.05,
            ),
            Statement(
                f"small shift: graft − fine-tuned{level}",
                "close to 0 (here: within 0.02)",
                by_seed(small, "gain"),
                -0.02,
                0.02,
            ),
            Statement(
                f"large shift: BitFit − fine-tuned{level}",
                "collapses (< 0)",
                by_seed(large, "collapse"),
                high=0,
            ),
        ]
    models = {name: name for name in (*MODELS, "bitfit") if long[name].notna().any()}
    return Outcome(
        statements,
        table(long, ["shift", "task", "ood", "sparsity"], {**models, "gain": "graft − fine-tuned"}),
        lambda: figure.bars(apart(long.assign(task=long.task + " → " + long.ood)), models, "score"),
    )


def by_training(rows: pd.DataFrame, *keys: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the runs whose fine-tuning trained more than biases, and BitFit's: one a seed and keys each.

    Raises InputError where there are none of the first.
    """
    bias = option(rows, "finetune.train", "full") == "bias"
    if bias.all():
        raise InputError(
            "no run of this sweep trains more than biases: finetune.train=full is wanted"
        )
    return one_each(rows[~bias], *keys), one_each(rows[bias], *keys)


def movement(rows: pd.DataFrame, options: ClaimConfig) -> Outcome:
    """Learned against movement at equal size: far better where small, equal where large."""
    both = one_each(
        rows[rows.selector.isin(["learned", "movement"])], "task", "selector", "sparsity"
    )
    keys = ["task", "seed", "sparsity"]
    pairs = both[both.selector == "learned"].merge(
        both[both.selector == "movement"], on=keys, suffixes=("", "/movement")
    )
    if pairs.empty:
        raise InputError("no learned run of this sweep has its movement run of one task and seed")
    pairs = pairs.assign(ahead=pairs[SCORE] - pairs[f"{SCORE}/movement"])
    statements = []
    for sparsity, part in by_sparsity(pairs):
        if sparsity <= (options.at or AT):
            paper, low, high = "far better at 1e-5 … 1e-4 (here: better, > 0)", 0.0, math.inf
        elif sparsity == pairs.sparsity.max():
            paper, low, high = "they meet (here: within 0.01)", -0.01, 0.01
        else:
            paper, low, high = "–", -math.inf, math.inf
        name = f"learned − movement at sparsity {sparsity:g}"
        size = f"({part['region/size'].mean():,.0f} entries)"
        statements.append(Statement(f"{name} {size}", paper, by_seed(part, "ahead"), low, high))
    return Outcome(
        statements,
        table(
            both,
            ["task", "sparsity", "selector"],
            {"region/size": "entries", SCORE: "score", "graft/test/ece": "ECE"},
        ),
        lambda: figure.curves(measured_sparsity(both), SCORE, "selector", (BEFORE, FULL)),
        [
            f"sparsity {sparsity:g}: learned − movement {holm(part, 'ahead', 0)}"
            for sparsity, part in by_sparsity(pairs)
        ],
    )


def lottery(rows: pd.DataFrame, options: ClaimConfig) -> Outcome:
    """A lottery ticket (all but the region set to 0) without re-training fails at every sparsity."""
    tickets = sorted(
        columns_of(rows, "lottery_", "/test/score"),
        key=lambda name: int(name.split("/")[0].removeprefix("lottery_")),
    )
    need(rows, "lottery_0/test/score", SCORE)
    rows = learned(rows)
    statements = []
    for name in tickets:
        steps = name.split("/")[0].removeprefix("lottery_")
        kept = rows.assign(kept=rows[name] / rows[FULL])
        # the best of fewer sparsities, or over fewer tasks, is another number
        kept = kept[kept.seed.isin(list(by_seed(kept, "kept")))]
        best = kept.groupby(["seed", "sparsity"])["kept"].mean().groupby("seed").max().reset_index()
        statements.append(
            Statement(
                f"ticket trained {steps} steps ÷ fine-tuned, best sparsity",
                "fails without re-training (here: < 0.95)" if steps == "0" else "needs re-training",
                by_seed(best, "kept"),
                high=KEPT if steps == "0" else math.inf,
            )
        )
    ahead = rows.assign(ahead=rows[SCORE] - rows["lottery_0/test/score"])
    statements.append(Statement("graft − untrained ticket", "> 0", by_seed(ahead, "ahead"), low=0))
    names = {
        BEFORE: "pretrained",
        FULL: "finetuned",
        SCORE: "graft",
        **{n: n.split("/")[0] for n in tickets},
    }
    parts = [rows.assign(model=names[n], score=rows[n]) for n in (SCORE, *tickets)]
    long = measured_sparsity(pd.concat(parts, ignore_index=True))
    return Outcome(
        statements,
        table(rows, ["task", "sparsity"], {"region/size": "entries", **names}),
        lambda: figure.curves(long, "score", "model", (BEFORE, FULL)),
        [
            f"sparsity {sparsity:g}: graft − untrained ticket {holm(part, 'ahead', 0)}"
            for sparsity, part in ahead.groupby("sparsity")
        ],
    )


def bias_only(rows: pd.DataFrame, options: ClaimConfig) -> Outcome:
    """BitFit learns in 0.1 % of the parameters; the biases of a fully fine-tuned model hold no skill."""
    need(rows, SCORE, FULL)
    full, bias = by_training(rows, "task")
    bias = bias[["task", "seed", FULL]].rename(columns={FULL: "bitfit"})
    both = full.merge(bias, how="left", on=["task", "seed"])
    both = both.assign(kept=both[SCORE] / both[FULL], rival=both.bitfit / both[FULL])
    titles = {BEFORE: "pre-trained", FULL: "fine-tuned", "bitfit": "BitFit", SCORE: "bias graft"}
    names = {name: title for name, title in titles.items() if both[name].notna().any()}
    return Outcome(
        [
            Statement(
                "share of the parameters that are biases", "0.001", by_seed(both, "region/sparsity")
            ),
            Statement("BitFit ÷ fine-tuned", "> 0.95", by_seed(both, "rival"), low=KEPT),
            Statement(
                "bias graft of the fine-tuned model ÷ fine-tuned",
                "fails (here: < 0.95)",
                by_seed(both, "kept"),
                high=KEPT,
            ),
        ],
        table(both, ["task"], {"region/size": "biases", **names}),
        lambda: figure.bars(both, names, "score"),
        [f"BitFit ÷ fine-tuned {holm(both, 'rival', KEPT)}"],
    )


def adamw(rows: pd.DataFrame, options: ClaimConfig) -> Outcome:
    """AdamW's skill is not local in single-task training, unless an l1 term holds the movement sparse."""
    need(rows, SCORE, FULL)
    rows = learned(rows.assign(l1=option(rows, "finetune.l1", 0.0)), "l1")
    rows = rows.assign(kept=rows[SCORE] / rows[FULL])
    at = rows[rows.sparsity == (options.at or rows.sparsity.min())]
    statements = [
        Statement(
            f"l1 = {l1:g}: graft ÷ fine-tuned at sparsity {at.sparsity.iloc[0]:g}",
            "not localizable (here: < 0.95)" if l1 == 0 else "> 0.95",
            by_seed(part, "kept"),
            -math.inf if l1 == 0 else KEPT,
            KEPT if l1 == 0 else math.inf,
        )
        for l1, part in at.groupby("l1")
    ]
    return Outcome(
        statements,
        table(
            rows,
            ["task", "l1", "sparsity"],
            {
                "region/size": "entries",
                FULL: "fine-tuned",
                SCORE: "graft",
                "kept": "graft ÷ fine-tuned",
            },
        ),
        lambda: figure.curves(measured_sparsity(rows), "kept", "l1"),
    )


def pairs_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row a pair of tasks, selector, seed and setting: `iou` of their regions, and that of chance.

    Each pair is there once, by whichever run recorded it. Runs that ended at the same time have no
    record of each other: theirs is made here, from their grafts.
    """
    wanted = ["folder", "id", "peers", "task", "seed", "selector", "sparsity"]
    known = [name for name in map(str, rows) if name.startswith("overlap/")]
    found = {}
    # runs of one region differ in comparison models only
    for peers, group in rows.drop_duplicates("region").groupby("peers", sort=False):
        load = functools.cache(compare.stored)
        runs = group.sort_values("task", kind="stable")[wanted + known].to_dict("records")
        for one, other in combinations(runs, 2):
            names = {"a": one["task"], "b": other["task"]}
            pair = (peers, *names.values())
            if names["a"] == names["b"] or pair in found:
                continue
            measured = recorded(one, other) or recorded(other, one) or measure(one, other, load)
            if measured is not None:
                setting = {name: one[name] for name in ("seed", "selector", "sparsity")}
                found[pair] = {**setting, **names, **measured}
    columns = ["seed", "selector", "sparsity", "a", "b", "iou", "chance"]
    # two empty regions have no overlap
    return pd.DataFrame(found.values(), columns=columns).dropna(subset=["iou"])


def recorded(run: Mapping[Hashable, Any], other: Mapping[Hashable, Any]) -> dict[str, Any] | None:
    """Return the overlap with another run as a run recorded it, or None where it did not."""
    name = f"overlap/{other['task']}"
    if run.get(f"{name}/run") != other["id"]:
        return None
    return {key: run[f"{name}/{key}"] for key in ("iou", "chance")}


def measure(
    run: Mapping[Hashable, Any], other: Mapping[Hashable, Any], load: Callable[[Path], Graft | None]
) -> dict[str, Any] | None:
    """Return the overlap of two runs' regions by their graft files, or None where there is none."""
    a, b = load(Path(run["folder"])), load(Path(other["folder"]))
    if a is None or b is None or a.base != b.base:  # a stage of a sequence starts elsewhere
        return None
    shares = a.overlap(b)
    return {key: shares[key] for key in ("iou", "chance")}


def similar(options: ClaimConfig, a: str, b: str) -> bool:
    """Return whether the sweep file calls two tasks alike."""
    return any({a, b} <= set(group) for group in options.similar)


def overlap(rows: pd.DataFrame, options: ClaimConfig) -> Outcome:
    """Regions of different tasks in one multi-task model hardly overlap; those of similar tasks most."""
    pairs = pairs_of(rows)
    need(pairs, "iou")
    if pairs.duplicated(["seed", "selector", "sparsity", "a", "b"]).any():
        one_each(rows, "task", "selector", "sparsity")  # says in what they differ
    pairs = pairs.assign(
        alike=[similar(options, a, b) for a, b in zip(pairs.a, pairs.b, strict=True)]
    )
    statements = []
    groups = [
        (f"{selector}{level}", part)
        for selector, of in pairs.groupby("selector", sort=False)
        for level, part in levels(of)
    ]
    for name, part in groups:
        near, far = by_seed(part[part.alike], "iou"), by_seed(part[~part.alike], "iou")
        statements += [
            Statement(
                f"{name}: IoU of two tasks, mean of pairs",
                "almost disjoint (here: < 0.1)",
                by_seed(part, "iou"),
                high=0.1,
            ),
            Statement(
                f"{name}: IoU of random regions of these sizes", "–", by_seed(part, "chance")
            ),
            Statement(
                f"{name}: IoU of similar − of other pairs",
                "> 0",
                {seed: value - far[seed] for seed, value in near.items() if seed in far},
                low=0,
            ),
        ]
    name, last = groups[-1]
    return Outcome(
        statements,
        table(
            pairs, ["selector", "alike", "a", "b", "sparsity"], {"iou": "IoU", "chance": "chance"}
        ),
        lambda: figure.heat_map(square(last, "iou"), f"overlap (IoU), {name}", "IoU"),
    )


def square(pairs: pd.DataFrame, value: str) -> pd.DataFrame:
    """Return the mean over seeds of a value of unordered pairs as a symmetric matrix, 1 on its diagonal."""
    turned = pairs.rename(columns={"a": "b", "b": "a"})
    matrix = pd.concat([pairs, turned]).pivot_table(index="a", columns="b", values=value)
    for name in matrix.index:
        matrix.loc[name, name] = 1.0
    return matrix


def composition(rows: pd.DataFrame, options: ClaimConfig) -> Outcome:
    """Unions of regions keep the gains of all tasks; a region helps the tasks that are like its own."""
    everything = gains_of(one_each(rows.assign(union=rows.regions.str.join("+")), "task", "union"))
    need(everything, "gain")
    gains, after = everything[everything.who == "graft"], everything[everything.who == "inside_10"]
    parts = gains.region.str.count(r"\+") + 1
    single, pair = gains[parts == 1], gains[parts == 2]
    whole = gains.region[parts == parts.max()].unique()
    own = single[single.region == single.task]
    other = single[single.region != single.task]
    alike = [similar(options, a, b) for a, b in zip(other.region, other.task, strict=True)]
    near, far = other[alike], other[[not x for x in alike]]
    helped, rest = share(near), share(far)
    either = pair[[t in r.split("+") for r, t in zip(pair.region, pair.task, strict=True)]]
    return Outcome(
        [
            Statement("share of the gain: a region on its own task", "–", share(own)),
            Statement(
                "share of the gains of all tasks under the union of all regions",
                "≈ 0.70",
                share(gains[gains.region.isin(whole)]),
                low=0.7,
            ),
            Statement(
                "the same after 10 steps inside the union",
                "≈ 0.80",
                share(after[after.region.isin(whole)]),
                low=0.8,
            ),
            Statement("share of the gains: a union of two on either task", "–", share(either)),
            Statement(
                "share of the gains: a region on similar − on other tasks",
                "> 0",
                {seed: value - rest[seed] for seed, value in helped.items() if seed in rest},
                low=0,
            ),
        ],
        table(everything, ["who", "region", "task"], {"gain": "relative gain"}),
        lambda: figure.heat_map(
            gains.pivot_table(index="region", columns="task", values="gain", dropna=False),
            "relative gain of a region (row) on a task (column)",
            "relative gain",
            (0, 1),
        ),
    )


def gains_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row a run, model and task of the mixture: what was `gained` of what was `possible`.

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


def continual(rows: pd.DataFrame, options: ClaimConfig) -> Outcome:
    """Grafting in sequence forgets little of earlier tasks; plain sequential fine-tuning forgets much."""
    rows = rows.assign(
        take=option(rows, "model.take", "graft"),
        sequence=rows["stage"].str.partition(":")[2],
        stage_number=rows["stage"].str.count(">") + 1,
    )
    rows = one_each(rows, "take", "sequence")
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
                          "entries": run["region/size"], "stage_number": run["stage_number"]})  # fmt: skip
    if not found:
        raise InputError("no run of this sweep starts from another's end (model.sequence)")
    long = pd.DataFrame(found)
    grafted, plain = (
        long[(long["mode"] == mode) & ~long["last"]] for mode in ("graft", "finetuned")
    )
    kept, lost = by_seed(grafted, "forgotten"), by_seed(plain, "forgotten")
    memory = long[long["mode"] == "graft"].groupby("seed")["entries"].sum()
    return Outcome(
        [
            Statement(
                "forgotten by the end, grafting in sequence", "0.015 (QNLI)", kept, high=0.015
            ),
            Statement("forgotten by the end, plain sequential", "0.20 (QNLI)", lost),
            Statement(
                "plain − grafting",
                "> 0",
                {s: lost[s] - v for s, v in kept.items() if s in lost},
                low=0,
            ),
            Statement(
                "final score, grafting − plain, mean of tasks",
                "> 0",
                {
                    s: v - by_seed(long[long["mode"] == "finetuned"], "now").get(s, math.nan)
                    for s, v in by_seed(long[long["mode"] == "graft"], "now").items()
                },
                low=0,
            ),
            Statement(
                "entries stored in all, grafting",
                "T·s·n",
                {int(str(s)): float(v) for s, v in memory.items()},
            ),
        ],
        table(
            long,
            ["mode", "stage_number", "task"],
            {
                "entries": "entries",
                "then": "right after",
                "now": "at the end",
                "forgotten": "forgotten",
            },
        ),
        lambda: figure.bars(
            long.pivot_table(
                index=["seed", "task"], columns="mode", values="forgotten"
            ).reset_index(),
            {"graft": "grafting", "finetuned": "plain sequential"},
            "forgotten",
        ),
    )


CLAIMS: dict[str, Callable[[pd.DataFrame, ClaimConfig], Outcome]] = {
    "sparsity_curve": sparsity_curve,
    "calibration": calibration,
    "main_table": main_table,
    "ood": ood,
    "movement": movement,
    "lottery": lottery,
    "bias_only": bias_only,
    "adamw": adamw,
    "overlap": overlap,
    "composition": composition,
    "continual": continual,
}
