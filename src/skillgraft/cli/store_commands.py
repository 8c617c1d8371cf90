"""Commands about a store: list, table, claims, compare, report, gc."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from skillgraft.cli.output import markdown, records
from skillgraft.cli.program import CommandResult, Root, command, complete
from skillgraft.runtime.errors import InputError
from skillgraft.runtime.files import read_json
from skillgraft.store import checksums, index, job_state, metric_names
from skillgraft.store.folders import Store
from skillgraft.store.names import PREDICTIONS, STATUS


@command("list")
def list_runs(root: Root = Path("runs")) -> CommandResult:
    """List every run with its state, the complete ones with their test metrics.  Example: grafts list runs"""
    store, names = Store(root), ["task", "model", "selector", "sparsity", "seed"]
    chosen = [
        c
        for c in metric_names.MEASURES
        if c.startswith(("finetuned/test/accuracy", "graft/", "region/"))
    ]
    columns = [*names, "id", "state", *chosen]
    lines = index.columns(store.root, columns)
    lines += [tuple(map(run.get, columns)) for run in job_state.unfinished(store)]
    if not lines:
        raise InputError(f"{store.root}: no run in it")
    lines.sort(key=lambda line: [(value is None, value) for value in line[: len(names)]])

    def text() -> str:
        # not by pandas, whose import takes as long as all the rest
        from tabulate import tabulate

        cells = [
            [f"{value:.4f}" if isinstance(value, float) else value for value in line[len(names) :]]
            for line in lines
        ]
        sides = ["left", "left", *["right"] * len(chosen)]
        options: dict[str, Any] = {"tablefmt": "pipe", "missingval": "–", "disable_numparse": True}
        return tabulate(cells, columns[len(names) :], colalign=sides, **options)

    return CommandResult([dict(zip(columns, line, strict=True)) for line in lines], text)


@command()
def table(
    root: Root = Path("runs"),
    columns: Annotated[
        str, typer.Option(help="Metrics to show: names of metrics.json, joined by '/', by commas.")
    ] = ",".join(metric_names.MEASURES),
) -> CommandResult:
    """Mean ± half the 95 % interval over seeds, and n: one row per setting.  Example: grafts table runs"""
    from skillgraft.analysis import collect, tables

    store, names = Store(root), columns.split(",")
    frame = collect.collect(store)
    if frame.empty:
        raise InputError(f"{store.root}: no complete run in it")
    if unknown := [name for name in names if name not in frame.columns]:
        raise InputError(f"--columns: no metric {unknown[0]} in {root}")
    return CommandResult(
        lambda: records(tables.over_seeds(frame, names, tables.numbers)),
        lambda: markdown(tables.over_seeds(frame, names)),
    )


@command()
def claims(
    ctx: typer.Context,
    root: Annotated[
        Path, typer.Argument(help="A store, or a folder of results that --out has written.")
    ] = Path("runs"),
    out: Annotated[
        Path | None, typer.Option(help="A folder: write each sweep's result there, as JSON.")
    ] = None,
) -> CommandResult:
    """Judge the claims of every sweep: the paper's figures beside the measured ones.

    Means with Student's t intervals over seeds.  Example: grafts claims runs
    """
    import pandas as pd

    from skillgraft.analysis.claims import judging, results

    store = Store(root)
    stored = store.sweeps.is_dir()
    found = (
        judging.judged(store, keep=True, bars=ctx.obj.progress) if stored else results.read(root)
    )
    if not found:
        raise InputError(f"{store.root}: no sweep with a claim in it")
    if out is not None:
        if not stored:
            raise InputError(f"--out {out}: {root} is no store")
        results.publish(store, found, out)
    record = [
        {"sweep": result["sweep"], **statement}
        for result in found
        for statement in result.get("statements", ())
    ]
    return CommandResult(record, lambda: markdown(pd.DataFrame(results.statement_rows(found))))


@command("compare")
def compare_models(
    path: Annotated[Path, typer.Argument(help="A run's folder.", autocompletion=complete)],
    split: Annotated[str, typer.Option(help="test, validation, or ood/<task>.")] = "test",
) -> CommandResult:
    """Intervals over examples of each model of one run, and paired tests against the fine-tuned model.

    95 % bootstrap intervals; McNemar's exact test of accuracy, permutation test of ECE.
    Example: grafts compare runs/toy_film-…
    """
    import pandas as pd

    from skillgraft.evaluation import statistics
    from skillgraft.evaluation.intervals import Interval

    if not checksums.is_complete(path):
        raise InputError(f"{path}: no complete run")
    frame = pd.read_parquet(path / PREDICTIONS)
    if split not in (known := frame["split"].unique().tolist()):
        raise InputError(f"--split {split}: the run has {', '.join(known)}")
    frame = frame[frame["split"] == split]
    names = [name for name in map(str, frame) if name.startswith("p/")]
    seed = int(read_json(path / STATUS)["seed"])
    models = {
        str(model): part[names].to_numpy() for model, part in frame.groupby("model", sort=False)
    }
    labels = [names.index(f"p/{label}") for label in frame[frame["model"] == "finetuned"]["label"]]
    lines = []
    for model, probabilities in models.items():
        found = statistics.bootstrap(probabilities, labels, seed)
        line: dict[str, Any] = {"model": model, **found}
        if model != "finetuned":
            full = models["finetuned"]
            line["p, accuracy"] = round(statistics.mcnemar(probabilities, full, labels), 4)
            line["p, ECE"] = round(statistics.ece_permutation(probabilities, full, labels, seed), 4)
        lines.append(line)
    table = pd.DataFrame(lines)
    plain = table.map(lambda value: vars(value) if isinstance(value, Interval) else value)
    return CommandResult(lambda: records(plain), lambda: markdown(table))


@command()
def report(
    ctx: typer.Context,
    root: Root = Path("runs"),
    out: Annotated[Path, typer.Option(help="A new folder for the page and its files.")] = Path(
        "report"
    ),
    force: Annotated[bool, typer.Option("--force", help="Write over an earlier report.")] = False,
) -> CommandResult:
    """Write one HTML page of all runs, and beside it each figure (SVG, PNG) and table (CSV, LaTeX).

    Example: grafts report runs --out report
    """
    from skillgraft.analysis.report.page import MANIFEST, write

    if not force and out.is_dir() and any(out.iterdir()):
        raise InputError(f"--out {out}: not empty; --force writes over it")
    page = write(root, out, bars=ctx.obj.progress)
    files = read_json(out / MANIFEST)["files"]
    return CommandResult({"page": str(page), "files": files}, str(page))


@command("gc")
def free(
    root: Root = Path("runs"),
    yes: Annotated[bool, typer.Option("--yes", help="Free it; else it is only listed.")] = False,
) -> CommandResult:
    """List what can be made again, with sizes; --yes frees it. Complete runs and sweeps stay.

    Example: grafts gc runs --yes
    """
    from skillgraft.store import garbage

    store = Store(root)
    if not store.root.is_dir():
        raise InputError(f"{store.root}: no such folder")
    items = garbage.freeable(store)
    lines = [
        {"what": i.kind, "folder": str(i.folder.relative_to(store.root)), "MiB": i.bytes / 2**20}
        for i in items
    ]
    freed = [item for item in items if garbage.free(store, item)] if yes else []

    def text() -> str:
        from tabulate import tabulate

        total = sum(item.bytes for item in items) / 2**20
        done = (
            f"{len(freed)} of {len(items)} folders freed" if yes else "nothing freed yet: add --yes"
        )
        listed = tabulate(lines, headers="keys", tablefmt="pipe", floatfmt=".1f")
        return f"{listed}\n{total:.1f} MiB in {len(items)} folders; {done}".lstrip()

    return CommandResult({"freed": len(freed), "items": lines}, text)
