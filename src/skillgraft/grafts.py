"""`grafts`: look at what `skillgraft` left behind. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from skillgraft import index, state, store
from skillgraft.errors import InputError
from skillgraft.store import Store

if TYPE_CHECKING:
    import pandas as pd

    from skillgraft.graft import Graft


class OneLine(TyperGroup):
    """The commands: an error of the user's is one line on the standard error, and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except InputError as error:
            typer.echo(f"grafts: {error}", err=True)
            raise typer.Exit(1) from None


app = typer.Typer(cls=OneLine, help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)
Root = Annotated[Path, typer.Argument(help="A store: the folder that holds the runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def loaded(path: Path) -> Graft:
    """Return the graft of a run's folder or a file."""
    from skillgraft.graft import Graft

    return Graft.load(store.graft_file(str(path)))


def echo_table(frame: pd.DataFrame, as_json: bool) -> None:
    """Print a table as Markdown or as JSON records."""
    if as_json:
        typer.echo(frame.to_json(orient="records", indent=1))
    else:
        typer.echo(frame.to_markdown(index=False, missingval="–"))


@app.command("list")
def list_runs(root: Root = Path("runs"), as_json: AsJson = False) -> None:
    """List every run with its state, the whole ones with their test metrics.  Example: grafts list runs"""
    place, names = Store(root), ["task", "model", "selector", "sparsity", "seed"]
    chosen = [
        c for c in store.MEASURES if c.startswith(("finetuned/test/accuracy", "graft/", "region/"))
    ]
    columns = [*names, "id", "state", *chosen]
    lines = index.columns(place.root, columns)
    lines += [tuple(map(run.get, columns)) for run in state.unfinished(place)]
    if not lines:
        raise InputError(f"{place.root}: no run in it")
    lines.sort(key=lambda line: [(value is None, value) for value in line[: len(names)]])
    if as_json:
        records = [dict(zip(columns, line, strict=True)) for line in lines]
        return typer.echo(json.dumps(records, indent=1))
    # not by pandas, whose import takes as long as all the rest
    from tabulate import tabulate

    cells = [
        [f"{value:.4f}" if isinstance(value, float) else value for value in line[len(names) :]]
        for line in lines
    ]
    sides = ["left", "left", *["right"] * len(chosen)]
    options: dict[str, Any] = {"tablefmt": "pipe", "missingval": "–", "disable_numparse": True}
    return typer.echo(tabulate(cells, columns[len(names) :], colalign=sides, **options))


@app.command()
def table(
    root: Root = Path("runs"),
    columns: Annotated[
        str, typer.Option(help="Metrics to show: names of metrics.json, joined by '/', by commas.")
    ] = ",".join(store.MEASURES),
    as_json: AsJson = False,
) -> None:
    """Mean ± standard deviation over seeds, and n, a row a setting.  Example: grafts table runs"""
    from skillgraft import compare

    place, names = Store(root), columns.split(",")
    frame = compare.collect(place)
    if frame.empty:
        raise InputError(f"{place.root}: no whole run in it")
    if unknown := [name for name in names if name not in frame.columns]:
        raise InputError(f"--columns: no metric {unknown[0]} in {root}")
    echo_table(compare.over_seeds(frame, names), as_json)


@app.command()
def claims(root: Root = Path("runs"), as_json: AsJson = False) -> None:
    """Judge the claims of every sweep: the paper's figures beside the measured ones.

    Means with Student's t intervals over seeds.  Example: grafts claims runs
    """
    import pandas as pd

    from skillgraft import sweep

    lines, place = [], Store(root)
    for folder in sorted(place.sweeps.glob("*/")):
        name = store.read_json(folder / "record.json")["name"]
        try:
            outcome = sweep.conclude(folder)
        except InputError as error:
            typer.echo(f"grafts: {error}", err=True)
            continue
        for statement in outcome.statements:
            record = statement.record()
            measured = record["measured"] if as_json else str(statement.measured or "–")
            lines.append({"sweep": name, **record, "measured": measured})
    if not lines:
        raise InputError(f"{place.root}: no sweep with a claim in it")
    if as_json:
        return typer.echo(json.dumps(lines, indent=1))
    frame = pd.DataFrame(lines).drop(columns="seeds")
    return echo_table(frame[["sweep", "statement", "paper", "measured", "verdict"]], as_json)


@app.command("compare")
def compare_models(
    path: Annotated[Path, typer.Argument(help="A run's folder.")],
    split: Annotated[str, typer.Option(help="test, validation, or ood/<task>.")] = "test",
    as_json: AsJson = False,
) -> None:
    """Intervals over examples of each model of one run, and paired tests against the fine-tuned model.

    95 % bootstrap intervals; McNemar's exact test of accuracy, permutation test of ECE.
    Example: grafts compare runs/toy_film-…
    """
    import pandas as pd

    from skillgraft import stats

    if not store.is_whole(path):
        raise InputError(f"{path}: no whole run")
    frame = pd.read_parquet(path / "predictions.parquet")
    if split not in (known := frame["split"].unique().tolist()):
        raise InputError(f"--split {split}: the run has {', '.join(known)}")
    frame = frame[frame["split"] == split]
    names = [name for name in map(str, frame) if name.startswith("p/")]
    seed = int(store.read_json(path / "status.json")["seed"])
    models = {
        str(model): part[names].to_numpy() for model, part in frame.groupby("model", sort=False)
    }
    labels = [names.index(f"p/{label}") for label in frame[frame["model"] == "finetuned"]["label"]]
    lines = []
    for model, probabilities in models.items():
        found = stats.bootstrap(probabilities, labels, seed)
        line: dict[str, Any] = {"model": model, **{name: str(i) for name, i in found.items()}}
        if model != "finetuned":
            full = models["finetuned"]
            line["p, accuracy"] = round(stats.mcnemar(probabilities, full, labels), 4)
            line["p, ECE"] = round(stats.ece_permutation(probabilities, full, labels, seed), 4)
        lines.append(line)
    echo_table(pd.DataFrame(lines), as_json)


@app.command()
def show(path: Annotated[Path, typer.Argument(help="A run's folder or a graft file.")]) -> None:
    """Show one graft: base model, size, and its share by layer and module kind.

    Example: grafts show runs/toy_film-…/graft.safetensors
    """
    graft = loaded(path)
    record: dict[str, Any] = {
        **graft.meta,
        "base": graft.base,
        "size": graft.size,
        "graftable": graft.graftable,
        "sparsity": graft.sparsity,
        "layer": graft.by_layer(),
        "module": graft.by_module(),
    }
    return typer.echo(json.dumps(record, indent=1))


@app.command()
def verify(path: Annotated[Path, typer.Argument(help="A run's folder or a graft file.")]) -> None:
    """Check every checksum; exit code 1 where something is missing or altered.

    Example: grafts verify runs/toy_film-…
    """
    from skillgraft.graft import Graft

    wrong = store.verify(path) if path.is_dir() else []
    try:
        Graft.load(path / "graft.safetensors" if path.is_dir() else path)
    except InputError as error:
        wrong.append(str(error))
    for line in wrong:
        typer.echo(line, err=True)
    if wrong:
        raise typer.Exit(1)
    typer.echo(f"{path}: whole")


@app.command()
def apply(
    path: Annotated[Path, typer.Argument(help="A run's folder or a graft file.")],
    out: Annotated[Path, typer.Option(help="A new folder for the checkpoint.")],
    model: Annotated[
        str | None,
        typer.Option(help="The pre-trained model: a hub id or folder; a run knows its own."),
    ] = None,
) -> None:
    """Write pre-trained model + graft as an ordinary transformers checkpoint.

    Example: grafts apply runs/toy_film-… --out toy_film
    """
    from omegaconf import OmegaConf

    from skillgraft import checkpoint, export
    from skillgraft.config import ModelConfig

    file = store.graft_file(str(path))
    graft, record = loaded(path), file.with_name("config.yaml")
    if model is None and not record.is_file():
        raise InputError(f"{path}: no run beside it says which model it belongs to: give --model")
    known = OmegaConf.load(record).model if model is None else {"path": model}
    source = ModelConfig(
        name=str(graft.meta.get("model")), path=known["path"], revision=known.get("revision")
    )
    typer.echo(export.apply(graft, checkpoint.locate(source), out))


@app.command("overlap")
def overlap_of(
    paths: Annotated[list[Path], typer.Argument(help="Runs' folders or graft files.")],
    as_json: AsJson = False,
) -> None:
    """Show how much of every two regions of one base model is shared (IoU), and what chance would give.

    Example: grafts overlap runs/toy_film-… runs/toy_book-…
    """
    import itertools

    import pandas as pd

    grafts = [
        (path.parent.name if path.name == "graft.safetensors" else path.name, loaded(path))
        for path in paths
    ]
    if len(grafts) < 2:
        raise InputError("give two grafts or more")
    lines = []
    for (one, a), (other, b) in itertools.combinations(grafts, 2):
        lines.append({"a": one, "b": other, **a.overlap(b)})
    echo_table(pd.DataFrame(lines), as_json)


@app.command()
def combine(
    paths: Annotated[list[Path], typer.Argument(help="Runs' folders or graft files.")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    rule: Annotated[str, typer.Option(help="union or intersection.")] = "union",
) -> None:
    """Make one graft of several of one base model; a shared entry of a union gets the mean value.

    Example: grafts combine runs/toy_film-… runs/toy_book-… --out both.safetensors
    """
    from skillgraft.graft import intersection, union

    rules = {"union": union, "intersection": intersection}
    if rule not in rules:
        raise InputError(f"--rule {rule}: expected union or intersection")
    if out.exists():
        raise InputError(f"--out {out}: is there already")
    graft = rules[rule]([loaded(path) for path in paths])
    typer.echo(f"{graft.save(out)}: {graft}")


@app.command()
def extract(
    pretrained: Annotated[Path, typer.Argument(help="A checkpoint's folder.")],
    finetuned: Annotated[Path, typer.Argument(help="The folder of the same model, fine-tuned.")],
    out: Annotated[Path, typer.Option(help="The graft file to write.")],
    selector: Annotated[str, typer.Option(help="movement, magnitude or random.")] = "movement",
    sparsity: Annotated[float, typer.Option(help="Share of the graftable parameters.")] = 1e-2,
    graftable: Annotated[
        list[str] | None,
        typer.Option(help="Regular expression of graftable names; may come again."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of random.")] = 0,
) -> None:
    """Make a graft of any two checkpoints, without training or data, one tensor in memory at a time.

    Example: grafts extract bert-base bert-base-sst2 --sparsity 1e-3 --out sst2.safetensors
    """
    from skillgraft import export

    if selector not in (known := ("movement", "magnitude", "random")):
        raise InputError(f"--selector {selector}: expected one of {', '.join(known)}")
    if out.exists():
        raise InputError(f"--out {out}: is there already")
    graft = export.extract(pretrained, finetuned, selector, sparsity, graftable or (), seed)
    typer.echo(f"{graft.save(out)}: {graft}")


@app.command()
def rerun(
    path: Annotated[
        str,
        typer.Argument(help="A run's folder, id, or W&B path; with --figure a sweep's folder."),
    ],
    figure: Annotated[
        str | None, typer.Option(help="Make the runs behind this figure of the sweep, and draw it.")
    ] = None,
    root: Annotated[Path, typer.Option("--store", help="Where an id is looked up.")] = Path("runs"),
    cached: Annotated[
        bool, typer.Option("--cached", help="Take the fine-tuned weights from the store.")
    ] = False,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Go on where a file that is read has changed.")
    ] = False,
    keep: Annotated[
        Path | None, typer.Option(help="An empty folder for the scratch store, which is kept.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A folder for the new figure.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a run again from nothing and compare: bit-identical, or all that differs and exit code 1.

    Changed files, models and libraries are named first.
    Example: grafts rerun runs/toy_film-…
    Example: grafts rerun --figure calibration runs/sweeps/embedded-calibration-…
    """
    import tempfile

    from skillgraft import rerun as reruns

    if out is not None and figure is None:
        raise InputError("--out: only with --figure")
    if keep is not None and keep.is_dir() and any(keep.iterdir()):
        raise InputError(f"--keep {keep}: not empty")
    with contextlib.ExitStack() as stack:
        scratch = Store(
            keep or stack.enter_context(tempfile.TemporaryDirectory(prefix="skillgraft-"))
        )
        runs = reruns.behind(figure, Path(path)) if figure else [reruns.find(path, Store(root))]
        named, changed = reruns.check(runs, scratch)
        for line in (*named, *changed):
            typer.echo(line, err=True)
        if changed and not anyway:
            raise InputError("what is read has changed; --anyway makes the run all the same")
        if cached:
            typer.echo("fine-tuned weights: from the store, not made again", err=True)
        made = {folder: reruns.again(folder, scratch, cached) for folder in runs}
        found = reruns.compare(made)
        if figure:
            drawn, cells = reruns.redraw(Path(path), scratch, [f.name for f in made.values()])
            found += cells
            if out is not None:
                shutil.copytree(drawn, out, dirs_exist_ok=True)
    if as_json:
        record = {"runs": [f.name for f in runs], "cached": cached, "identical": not found}
        lists = {"environment": named, "inputs": changed, "differences": found}
        record |= {name: [vars(line) for line in lines] for name, lines in lists.items()}
        typer.echo(json.dumps(record, indent=1))
    else:
        weights = ", with the fine-tuned weights of the store" if cached else ""
        same = f"bit-identical{weights}: {path}"
        typer.echo("\n".join(map(str, found)) or same)
    if found:
        raise typer.Exit(1)


@app.command("sync")
def send_offline(
    root: Root = Path("runs"),
    entity: Annotated[str | None, typer.Option(help="W&B's entity, in place of the runs'.")] = None,
    project: Annotated[
        str | None, typer.Option(help="W&B's project, in place of the runs'.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be sent, without a network.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Send the offline W&B runs of a store by sweep, wherever the store is now; those sent are skipped.

    Exit code 1 where a file that a run names is missing, or W&B did not take it.
    Example: grafts sync runs --dry-run
    """
    import pandas as pd

    from skillgraft import sync

    if not (groups := sync.plan(place := Store(root))):
        raise InputError(f"{place.root}: no offline W&B run in it")
    lines, refused = [], []
    for name, runs in groups:
        checked = [(run, None if run.synced else sync.check(run)) for run in runs]
        ready = [(run, found) for run, found in checked if found and not found.missing]
        unsent = [] if dry_run or not ready else sync.send(ready, entity, project)
        for run, found in checked:
            line: dict[str, Any] = {
                "sweep": name,
                "run": run.name,
                "state": "sent before",
                "files": None,
            }
            if found is not None:
                line["state"] = "to send" if dry_run else "sent"
                if found.missing:
                    line["state"] = f"missing: {found.missing[0]}"
                elif run in unsent:
                    line["state"] = "not sent"
                line["files"] = len(found.files)
                refused += [run.name] if found.missing or run in unsent else []
            lines.append(line)
    echo_table(pd.DataFrame(lines), as_json)
    if refused:
        raise InputError(f"{len(refused)} of {len(lines)} runs cannot be sent: {refused[0]} …")


@app.command()
def dashboard(
    project: Annotated[str, typer.Argument(help="The W&B project that the runs are in.")],
    entity: Annotated[str | None, typer.Option(help="Its entity; else the account's own.")] = None,
    root: Annotated[
        Path, typer.Option("--store", help="The panels of one task's names are for its runs.")
    ] = Path("runs"),
    out: Annotated[
        Path | None, typer.Option(help="The file to write the specification to.")
    ] = None,
    send: Annotated[
        bool, typer.Option("--send", help="Make workspace and reports on W&B, new ones each time.")
    ] = False,
) -> None:
    """Build a W&B workspace for comparing runs and a report a figure; print them, or send them.

    Example: grafts dashboard skillgraft --out dashboard.json
    Example: grafts dashboard skillgraft --entity me --send
    """
    from skillgraft import dashboard as dashboards

    if not (names := dashboards.names_of(Store(root))):
        typer.echo(
            f"{root}: no run in it, so no panels on overlaps and shifted test sets", err=True
        )
    if send:
        return typer.echo("\n".join(dashboards.send(project, entity, names)))
    content = dashboards.specification(project, entity or "", names)
    if out is None:
        return typer.echo(json.dumps(content, indent=1))
    store.write_json(out, content)
    return typer.echo(out)


@app.command()
def report(
    root: Root = Path("runs"),
    out: Annotated[Path, typer.Option(help="A new folder for the page and its files.")] = Path(
        "report"
    ),
    force: Annotated[bool, typer.Option("--force", help="Write over an earlier report.")] = False,
) -> None:
    """Write one HTML page of all runs, and beside it each figure (SVG, PNG) and table (CSV, LaTeX).

    Example: grafts report runs --out report
    """
    from skillgraft import report as reports

    if not force and out.is_dir() and any(out.iterdir()):
        raise InputError(f"--out {out}: not empty; --force writes over it")
    typer.echo(reports.write(root, out))


@app.command("gc")
def free(
    root: Root = Path("runs"),
    yes: Annotated[bool, typer.Option("--yes", help="Free it; else it is only listed.")] = False,
    as_json: AsJson = False,
) -> None:
    """List what can be made again, with sizes; --yes frees it. Whole runs and sweeps stay.

    Example: grafts gc runs --yes
    """
    import pandas as pd

    from skillgraft import gc

    place = Store(root)
    if not place.root.is_dir():
        raise InputError(f"{place.root}: no such folder")
    items = gc.freeable(place)
    lines = [
        {"what": i.kind, "folder": str(i.folder.relative_to(place.root)), "MiB": i.bytes / 2**20}
        for i in items
    ]
    if lines and not as_json:
        echo_table(pd.DataFrame(lines).round(1), as_json)
    freed = [item for item in items if gc.free(place, item)] if yes else []
    if as_json:
        return typer.echo(json.dumps({"freed": len(freed), "items": lines}, indent=1))
    total = sum(item.bytes for item in items) / 2**20
    done = f"{len(freed)} of {len(items)} folders freed" if yes else "nothing freed yet: add --yes"
    return typer.echo(f"{total:.1f} MiB in {len(items)} folders; {done}")


if __name__ == "__main__":
    app()
