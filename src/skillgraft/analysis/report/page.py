"""The report: a store as one HTML page, and beside it the figures (SVG, PNG) and tables (CSV, LaTeX)."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from skillgraft.analysis import collect
from skillgraft.analysis.claims import judging, results
from skillgraft.analysis.claims.selection import BEFORE, FULL, SCORE
from skillgraft.analysis.labels import title_of
from skillgraft.analysis.report.items import SUFFIXES, publish, tabulate
from skillgraft.analysis.report.parts import PARTS
from skillgraft.analysis.report.settings import name_settings
from skillgraft.runtime import progress
from skillgraft.runtime.errors import InputError
from skillgraft.runtime.files import read_json, write_json, write_text
from skillgraft.store.folders import Store
from skillgraft.store.metric_names import MEASURES

MANIFEST = (
    "report.json"  # the files that a report consists of, so that the next one can take them away
)


def write(root: Path, out: Path, bars: bool = False) -> Path:
    """Write the report of a store and return its page. Raises InputError for a store without complete runs.

    What an earlier report left in `out` and this one has not is deleted; other files stay. `bars` shows
    progress bars.
    """
    store = Store(root)
    everything = collect.collect(store)
    if everything.empty:
        raise InputError(f"{store.root}: no complete run in it")
    rows = name_settings(everything)
    sections, files = [], ["index.html", "runs.csv", "runs.tex"]
    settings = rows.groupby("setting of", sort=True)
    drawn = progress.bar(settings, "report", settings.ngroups, bars)
    for number, (title, part) in enumerate(drawn, 1):
        first = part.iloc[0]
        slug = re.sub(r"[^\w.-]", "-", f"{number}-{first.model}-{first['config/finetune.kind']}")
        found = {what: draw(part, store) for what, draw in PARTS.items()}
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
    judged = judging.judged(store, keep=False, bars=bars)
    verdicts = pd.DataFrame(results.statement_rows(judged))
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
    remove_stale_files(out, files)
    return out / "index.html"


def remove_stale_files(out: Path, files: Sequence[str]) -> None:
    """Delete what an earlier report wrote and this one did not, and write down what this one did."""
    manifest, inside = out / MANIFEST, out.resolve()
    earlier = read_json(manifest)["files"] if manifest.is_file() else []
    for name in sorted(set(earlier) - set(files)):
        file = (out / name).resolve()
        if not file.is_relative_to(inside):  # no file of ours, whoever wrote the list
            continue
        file.unlink(missing_ok=True)
        if file.parent != inside and file.parent.is_dir() and not any(file.parent.iterdir()):
            file.parent.rmdir()
    write_json(manifest, {"files": sorted(files)})


def runs_table(rows: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Return one row per run: what it is, what was measured, and the command that makes it again."""
    options = {"config/shots": "shots", "config/finetune.kind": "fine-tuning"}
    names = ["task", "model", *options, "selector", "sparsity", "seed"]
    scores = [BEFORE, FULL, SCORE]  # where they are not the accuracy
    table = rows[[n for n in (*names, *MEASURES, *scores) if n in rows]].rename(columns=options)
    commands = [shlex.join(["grafts", "rerun", str(root / name)]) for name in rows["id"]]
    return table.assign(id=rows["id"], command=commands).reset_index(drop=True)


def columns_of(table: pd.DataFrame) -> list[str]:
    """Return the titles of the page's columns: those of the table, metrics in words."""
    return [title_of(name) for name in map(str, table) if name != "id"]


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
    text = resources.files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(text)
