"""The report: a store as one HTML page, and beside it the figures (SVG, PNG) and tables (CSV, LaTeX)."""

from __future__ import annotations

import base64
import json
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from skillgraft import bars, claims, compare, figure, store, sweep
from skillgraft.claims import BEFORE, FULL, SCORE
from skillgraft.compared import MODELS
from skillgraft.errors import InputError
from skillgraft.files import atomic_write, write_text
from skillgraft.intervals import over_seeds
from skillgraft.store import MEASURES, Store

# What does not make it another fine-tuning: the task, the graft, what is measured beside it, and
# what a later stage of a sequence starts from.
OWN = (
    "config/task.", "config/graft.", "config/compare.", "config/sparsity", "config/seed",
    "config/model.name", "config/model.take", "config/finetune.kind",
)  # fmt: skip
MANIFEST = (
    "report.json"  # the files that a report consists of, so that the next one can take them away
)
# Selectors whose regions do not depend on the task: their overlap and place say nothing.
FIXED = ("random", "bias", "layer", "module", "file")
SUFFIXES = ("svg", "png", "csv", "tex")  # of a figure's files
NAMES = {  # of metrics, in the page's table
    "pretrained": "pre-trained", "finetuned": "fine-tuned", "graft": "graft", "test": "",
    "accuracy": "accuracy", "ece": "ECE", "relative_gain": "relative gain", "region": "",
    "size": "entries",
}  # fmt: skip


@dataclass(frozen=True)
class Item:
    """A figure of the report with the table behind it; `name` is that of its files."""

    name: str
    title: str
    caption: str
    table: pd.DataFrame
    figure: Figure


def write(root: Path, out: Path) -> Path:
    """Write the report of a store and return its page. Raises InputError for a store without whole runs.

    What an earlier report left in `out` and this one has not is deleted; other files stay.
    """
    place = Store(root)
    everything = compare.collect(place)
    if everything.empty:
        raise InputError(f"{place.root}: no whole run in it")
    rows = named(everything)
    sections, files = [], ["index.html", "runs.csv", "runs.tex"]
    settings = rows.groupby("setting of", sort=True)
    drawn = bars.over(settings, "report", settings.ngroups, bars.shown())
    for number, (title, part) in enumerate(drawn, 1):
        first = part.iloc[0]
        slug = re.sub(r"[^\w.-]", "-", f"{number}-{first.model}-{first['config/finetune.kind']}")
        found = {what: draw(part, place) for what, draw in PARTS.items()}
        items = [item for several in found.values() for item in several]
        section = {
            "id": slug,
            "title": title,
            "runs": len(part),
            "tasks": part["task"].nunique(),
            "seeds": ", ".join(map(str, sorted(part["seed"].unique()))),
            "items": [{**vars(item), "image": publish(item, out / slug)} for item in items],
            "missing": [what for what, several in found.items() if not several],
        }
        sections.append(section)
        files += [f"{slug}/{item.name}.{suffix}" for item in items for suffix in SUFFIXES]
    table = runs_table(everything, root)
    tabulate(table, out / "runs")
    verdicts = pd.DataFrame(sweep.verdicts(sweep.judged(place, keep=False)))
    if len(verdicts):
        tabulate(verdicts, out / "claims")
        files += ["claims.csv", "claims.tex"]
    page = template().render(
        store=str(root),
        suffixes=SUFFIXES,
        sections=sections,
        verdicts=verdicts.to_dict(orient="records"),
        columns=columns_of(table),
        runs=cells(table),
    )
    write_text(out / "index.html", page)
    supersede(out, files)
    return out / "index.html"


def supersede(out: Path, files: Sequence[str]) -> None:
    """Delete what an earlier report wrote and this one did not, and write down what this one did."""
    manifest, inside = out / MANIFEST, out.resolve()
    earlier = store.read_json(manifest)["files"] if manifest.is_file() else []
    for name in sorted(set(earlier) - set(files)):
        file = (out / name).resolve()
        if not file.is_relative_to(inside):  # no file of ours, whoever wrote the list
            continue
        file.unlink(missing_ok=True)
        if file.parent != inside and file.parent.is_dir() and not any(file.parent.iterdir()):
            file.parent.rmdir()
    store.write_json(manifest, {"files": sorted(files)})


# ---------------------------------------------------------------------------------------------
# Settings: what may be averaged


def named(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with names that tell settings apart, so that only seeds are left to average over.

    `setting of` names the model and its fine-tuning; within it, `task` and `selector` are followed by
    the options in which runs of the same task or selector differ. `by` is the selector alone.
    """
    # runs of one region differ in comparison models only: a seed counts once
    rows = rows[~rows["region"].duplicated(keep="last")] if "region" in rows else rows
    rows = rows.assign(by=rows["selector"])
    shared = [c for c in map(str, rows) if c.startswith("config/") and not c.startswith(OWN)]
    base = rows["model"] + ", " + rows["config/finetune.kind"]
    rows = rows.assign(**{"setting of": distinct(rows, base, shared)})
    parts = []
    for _, part in rows.groupby("setting of"):
        of = {
            name: [c for c in map(str, part) if c.startswith(f"config/{group}.")]
            for name, group in (("task", "task"), ("selector", "graft"))
        }
        part = part.assign(**{n: distinct(part, part[n], options) for n, options in of.items()})
        keys = ["task", "selector", "sparsity", "stage", "seed"]
        sized = part["by"] != "file"  # a file's runs are told apart by their regions
        again = sized & part.duplicated([k for k in keys if k in part], keep=False)
        part.loc[again, "selector"] += " (" + part.loc[again, "setting"] + ")"
        parts.append(part)
    return pd.concat(parts)


def distinct(rows: pd.DataFrame, base: pd.Series, options: Sequence[str]) -> pd.Series:
    """Return each row's base name, and those options in which rows of that base differ."""
    skip = ("config/task.name", "config/graft.selector", "config/graft.size")
    text = rows[[o for o in options if o not in skip]].map(plain)
    names = base.astype(str)
    suffix = pd.Series("", rows.index)
    for _, part in text.groupby(names):
        for option in (c for c in map(str, part) if part[c].nunique() > 1):
            given = part.loc[part[option] != "", option]
            key = option.removeprefix("config/").rpartition(".")[2]
            suffix.loc[given.index] += f", {key}=" + given
    return names + suffix


def plain(value: Any) -> str:
    """Return an option's value as short text, the empty text for one that is not given."""
    if isinstance(value, list):
        return "+".join(map(str, value))
    if isinstance(value, dict):
        return json.dumps(value)
    if pd.isna(value):
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def usual(rows: pd.DataFrame) -> float:
    """Return the sparsity that most runs have; of several the middle one."""
    modes = rows["sparsity"].mode()
    return float(modes.iloc[len(modes) // 2])


def shown(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of one selector and sparsity, for figures that have room for one graft a task.

    The learned one where there is one, else the most frequent.
    """
    rows = rows[rows["by"] != "file"]
    learned = rows[rows["by"] == "learned"]
    rows = learned if len(learned) else rows
    rows = rows[rows["selector"] == rows["selector"].mode().iloc[0]] if len(rows) else rows
    return rows[rows["sparsity"] == usual(rows)] if len(rows) else rows


def single(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the runs that start from the pre-trained model, not from another run's end."""
    return rows[~rows["stage"].fillna("").str.contains(">")] if "stage" in rows else rows


def intervals(rows: pd.DataFrame, keys: list[str], measures: Sequence[str]) -> pd.DataFrame:
    """Return a row a key and measure: mean and Student's t interval over seeds, and their number."""
    known = [name for name in dict.fromkeys(measures) if name in rows]
    long = rows.melt(keys, known, var_name="measure").dropna(subset=["value"])
    groups = long.groupby([*keys, "measure"], sort=True, dropna=False)["value"]
    return pd.DataFrame(
        [
            {**dict(zip([*keys, "measure"], key, strict=True)), **vars(over_seeds(values))}
            for key, values in groups
        ]
    )


# ---------------------------------------------------------------------------------------------
# The parts of a setting: each returns its figures, or none where no run has the data


def curves_of(value: str) -> Callable[[pd.DataFrame, Store], list[Item]]:
    """Return the part that draws a value against sparsity."""

    def draw(rows: pd.DataFrame, place: Store) -> list[Item]:
        rows = single(rows[rows["by"] != "file"]).dropna(subset=[value])
        if rows.empty:
            return []
        what = value.rpartition("/")[2]
        levels = [f"{model}/test/{what}" for model in ("pretrained", "finetuned")]
        label = {"score": "Score", "ece": "ECE"}[what]
        return [
            Item(
                f"{what}_sparsity",
                f"{label} against sparsity",
                "A point is the mean over seeds at the measured sparsity (share of the parameters "
                "kept), with its 95 % Student's t interval; lines are the pre-trained (dotted) and "
                "the fine-tuned model (dashed)."
                + (
                    " Score: the task's own metric, accuracy unless F1 or Matthews."
                    * (what == "score")
                ),
                intervals(
                    rows,
                    ["task", "selector", "sparsity"],
                    [value, *levels, "region/size", "region/sparsity"],
                ),
                figure.curves(claims.measured_sparsity(rows), value, "selector", levels),
            )
        ]

    return draw


def reliability(rows: pd.DataFrame, place: Store) -> list[Item]:
    """Return a reliability diagram a task: pre-trained, fine-tuned and graft, seeds pooled."""
    items = []
    for task, part in shown(single(rows)).groupby("task"):
        files = [place.run(name) / "predictions.parquet" for name in part["id"]]
        frames = [pd.read_parquet(file) for file in files if file.is_file()]
        if not frames:
            continue
        frame = pd.concat([one[one["split"] == "test"] for one in frames])
        names = [name for name in map(str, frame) if name.startswith("p/")]
        tests = {m: frame.loc[frame["model"] == m, names].to_numpy() for m in figure.COLOURS}
        labels = [names.index(f"p/{x}") for x in frame.loc[frame["model"] == "graft", "label"]]
        items.append(
            Item(
                f"reliability_{plain_name(task)}",
                f"Reliability, {task}",
                f"Accuracy against confidence on the test rows, {len(frames)} seeds pooled; "
                f"darker with more rows. {graft_of(part)}",
                compare.reliability_table(tests, labels),
                figure.reliability_diagram(tests, labels, str(task)),
            )
        )
    return items


def overlaps(rows: pd.DataFrame, place: Store) -> list[Item]:
    """Return a heat map a selector of the overlap of every two tasks' regions, like tasks side by side."""
    rows = single(rows[~rows["by"].isin(FIXED)])
    found = []
    for selector, part in rows.groupby("selector"):
        part = part.assign(task=part["config/task.name"])
        pairs = claims.pairs_of(part)
        if pairs.empty:
            continue
        sparsity = usual(pairs)
        table = intervals(pairs, ["selector", "sparsity", "a", "b"], ["iou", "chance"])
        matrix = claims.square(pairs[pairs["sparsity"] == sparsity], "iou")
        found.append(
            Item(
                f"overlap_{plain_name(selector)}",
                f"Overlap of regions, {selector}",
                f"IoU of two tasks' regions at sparsity {sparsity:g}, mean over seeds; tasks in the "
                "order of average-linkage clustering on 1 − IoU, whose tree is drawn.",
                table,
                figure.clustered(matrix, "", "IoU"),
            )
        )
    return found


def places(rows: pd.DataFrame, place: Store) -> list[Item]:
    """Return where the regions lie: their shares by layer and by kind of module."""
    rows = single(rows[~rows["by"].isin(FIXED)])
    rows = rows[rows["sparsity"] == usual(rows)] if len(rows) else rows
    items = []
    for kind, title in (("layer", "layer"), ("module", "kind of module")):
        known = claims.columns_of(rows, f"region/{kind}/", "")
        short = {name: name.rpartition("/")[2] for name in known if rows[name].notna().any()}
        if not short:
            continue
        order = sorted(short, key=lambda n: (not short[n].isdigit(), short[n].zfill(4)))
        # a layer that a region has no entry in is not in its record
        part = rows.fillna(dict.fromkeys(order, 0.0))
        means = part.groupby(["selector", "task"])[order if kind == "layer" else list(short)].mean()
        means.index = [f"{selector}: {task}" for selector, task in means.index]
        items.append(
            Item(
                f"region_{kind}",
                f"The region by {title}",
                f"Share of the region's entries in each {title} at sparsity {usual(rows):g}, "
                "mean over seeds.",
                intervals(part, ["selector", "task", "sparsity"], order),
                figure.heat_map(means.rename(columns=short), "", "share of the region"),
            )
        )
    return items


def gains(rows: pd.DataFrame, place: Store) -> list[Item]:
    """Return the relative gain by selector, sparsity and task, and that of regions on other tasks."""
    items, value = [], "graft/test/relative_gain"
    own = single(rows[rows["by"] != "file"]).dropna(subset=[value])
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
                figure.heat_map(means, "", "relative gain", (0, 1)),
            )
        )
    files = rows[rows["by"] == "file"]
    if claims.columns_of(files, "graft/tasks/", "/score") and len(files):
        # regions of one name that other selectors or sparsities made are not to be averaged
        names = files["regions"].str.join("+") + files["selector"]
        if not files.assign(names=names).duplicated(["names", "task", "seed"]).any():
            items.append(across(files))
    return items


def across(files: pd.DataFrame) -> Item:
    """Return the heat map of relative gains of single and united regions on every task of a mixture."""
    found = claims.gains_of(files.assign(task=files["config/task.name"]))
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
        figure.heat_map(means.droplevel("count"), "", "relative gain", (0, 1)),
    )


def ood(rows: pd.DataFrame, place: Store) -> list[Item]:
    """Return bars of the score on out-of-distribution sets."""
    rows, models = shown(single(rows)), tuple(MODELS)
    parts = []
    for name in claims.columns_of(rows, "graft/ood/", "/score"):
        other = name.split("/")[2]
        scores = {f"{model}/ood/{other}/score": model for model in models}
        part = rows[["task", "selector", "sparsity", *scores]].rename(columns=scores)
        parts.append(part.assign(task=part["task"] + " → " + other).dropna(subset=["graft"]))
    long = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    if long.empty:
        return []
    return [
        Item(
            "ood",
            "Out of distribution",
            "Score on another data set than the fine-tuning's (trained on → tested on), with 95 % "
            f"Student's t intervals over seeds. {graft_of(rows)}",
            intervals(long, ["task", "selector", "sparsity"], models),
            figure.bars(long, {model: NAMES[model] for model in models}, "score"),
        )
    ]


def interpolation(rows: pd.DataFrame, place: Store) -> list[Item]:
    """Return the score of θ_pre + α Δ over α (WiSE-FT), on the test and each OOD set, beside the graft's."""
    names = [re.fullmatch(r"wise_([^/]+)/((?:test|ood/.+)/score)", name) for name in map(str, rows)]
    found = [match for match in names if match]
    rows = shown(single(rows.dropna(subset=found[0][0]))) if found else rows.iloc[:0]
    if rows.empty:
        return []
    models = {0.0: "pretrained", **{float(m[1]): f"wise_{m[1]}" for m in found}, 1.0: "finetuned"}
    parts = [
        rows.assign(x=alpha, split=score.removesuffix("/score"), score=rows[f"{model}/{score}"])
        for alpha, model in sorted(models.items())
        for score in sorted({m[2] for m in found})
    ]
    long = pd.concat(parts, ignore_index=True).dropna(subset=["score"])
    return [
        Item(
            "interpolation",
            "Between pre-trained and fine-tuned",
            "Score of the model θ_pre + α Δ (WiSE-FT), of which 0 is the pre-trained and 1 the fine-tuned "
            "one; the dotted line is the graft on the test. 95 % Student's t intervals. "
            + graft_of(rows),
            intervals(long, ["task", "split", "x"], ["score"]).rename(columns={"x": "α"}),
            figure.curves(long, "score", "split", [SCORE], across="α"),
        )
    ]


def forgetting(rows: pd.DataFrame, place: Store) -> list[Item]:
    """Return the score of every task after each stage of a sequence of tasks."""
    long = sequences(rows, place)
    if long.empty:
        return []
    return [
        Item(
            "forgetting",
            "Forgetting in sequence",
            "Score of each task (a panel) from its own stage on, as later tasks are learned: with "
            "grafting in sequence, and with plain sequential fine-tuning; 95 % Student's t intervals.",
            intervals(long, ["mode", "task", "x"], ["score"]).rename(columns={"x": "stage"}),
            figure.curves(long, "score", "mode", across="stage"),
        )
    ]


def sequences(rows: pd.DataFrame, place: Store) -> pd.DataFrame:
    """Return a row a sequence, seed, stage `x` and task seen so far: its `score` there."""
    if "stage" not in rows:
        return pd.DataFrame()
    before = {
        name: Path(OmegaConf.load(place.run(name) / "config.yaml").model.after).name
        for name in rows.loc[rows["stage"].fillna("").str.contains(">"), "id"]
    }
    order = dict(zip(rows["id"], rows["stage"].str.partition(":")[2], strict=True))
    ends = [name for name in before if name not in before.values()]
    whole = [order[a] for a in ends if not any(order[b].startswith(f"{order[a]}>") for b in ends)]
    runs, found = rows.set_index("id"), []
    for end in ends:
        last = runs.loc[end]
        grafted = last.get("config/model.take") != "finetuned"
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


def graft_of(rows: pd.DataFrame) -> str:
    """Return which graft the rows of `shown` are of, as a sentence."""
    return f"Graft: {rows['selector'].iloc[0]} at sparsity {rows['sparsity'].iloc[0]:g}."


def plain_name(text: object) -> str:
    """Return a text as part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", str(text))


# ---------------------------------------------------------------------------------------------
# Files and the page


def publish(item: Item, folder: Path) -> str:
    """Write a figure and its table beside the page, and return the figure as a data URI."""
    svg = figure.save(item.figure, folder / f"{item.name}.svg")
    figure.save(item.figure, folder / f"{item.name}.png")
    tabulate(item.table, folder / item.name)
    # as an image, not as elements of the page: matplotlib's ids are unique within one figure only
    return "data:image/svg+xml;base64," + base64.b64encode(svg.read_bytes()).decode()


def tabulate(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV in full, and as LaTeX (booktabs, longtable) with four digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path.with_name(f"{path.name}.csv")) as scratch:
        table.to_csv(scratch, index=False)
    long = len(table) > 40  # does not fit a page
    latex = table.to_latex(
        index=False, escape=True, float_format="%.4g", na_rep="–", longtable=long
    )
    write_text(path.with_name(f"{path.name}.tex"), latex)


def runs_table(rows: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Return a row a run: what it is, what was measured, and the command that makes it again."""
    options = {"config/shots": "shots", "config/finetune.kind": "fine-tuning"}
    names = ["task", "model", *options, "selector", "sparsity", "seed"]
    scores = [BEFORE, FULL, SCORE]  # where they are not the accuracy
    table = rows[[n for n in (*names, *MEASURES, *scores) if n in rows]].rename(columns=options)
    commands = [shlex.join(["grafts", "rerun", str(root / name)]) for name in rows["id"]]
    return table.assign(id=rows["id"], command=commands).reset_index(drop=True)


def columns_of(table: pd.DataFrame) -> list[str]:
    """Return the titles of the page's columns: those of the table, metrics in words."""
    return [
        ", ".join(filter(None, (NAMES.get(part, part) for part in reversed(name.split("/")))))
        for name in map(str, table)
        if name != "id"
    ]


def cells(table: pd.DataFrame) -> list[list[tuple[str, str]]]:
    """Return every row of the page's table as (text, what it is sorted by)."""

    def cell(value: Any) -> tuple[str, str]:
        if isinstance(value, float):
            text = (
                "–"
                if pd.isna(value)
                else f"{value:.3f}"
                if 0.001 < abs(value) < 100
                else f"{value:g}"
            )
            return text, "" if pd.isna(value) else repr(float(value))
        return str(value), str(value)

    shown = table.drop(columns="id").astype(object)
    shown["sparsity"] = table["sparsity"].map("{:g}".format)  # as it is given, and filtered by
    return [[cell(v) for v in row] for row in shown.to_numpy()]


def template() -> jinja2.Template:
    """Return the page's template."""
    text = resources.files("skillgraft").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(text)
