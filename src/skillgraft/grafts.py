"""`grafts`: look at what `skillgraft` left behind. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from skillgraft import bars, index, state, store
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


@app.callback()
def options(
    no_progress: Annotated[
        bool, typer.Option("--no-progress", help="No progress bars, on a terminal neither.")
    ] = False,
) -> None:
    """Set what holds for every command."""
    bars.unwanted[:] = [True] * no_progress


def complete(incomplete: str) -> list[str]:
    """Return what a shell may offer for a run: `runs/<id>`, or `<store>/<id>` once a store is given.

    The names come from the index. A folder that is no store is left alone.
    """
    folder = incomplete.rpartition("/")[0] or "runs"
    root = Path(folder).expanduser()
    if not any((root / name).is_dir() for name in (".cache", ".partial")):
        return []
    offered = (f"{folder}/{name}" for name in index.names(root))
    return [name for name in offered if name.startswith(incomplete)]


Root = Annotated[Path, typer.Argument(help="A store: the folder that holds the runs.")]
OneRun = Annotated[
    Path,
    typer.Argument(
        help="A run's folder, a graft file, or hub:OWNER/NAME[@REVISION].", autocompletion=complete
    ),
]
SeveralRuns = Annotated[
    list[Path],
    typer.Argument(
        help="Runs' folders, graft files, or hub:OWNER/NAME[@REVISION].", autocompletion=complete
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document, and everything else to stderr.")
]


@dataclass(frozen=True)
class Answer:
    """What a command found: `record` for --json, `text` for people; exit code 1 where it is `wrong`.

    Either may be a function: only one of them is asked for.
    """

    record: Any
    text: str | Callable[[], str]
    wrong: bool = False


def command(name: str | None = None) -> Callable[[Callable[..., Answer]], Callable[..., Answer]]:
    """Return what makes a function a command with --json: it returns its Answer, and prints nothing.

    What it, or a library, prints all the same goes to the standard error.
    """

    def register(function: Callable[..., Answer]) -> Callable[..., Answer]:
        @functools.wraps(function)
        def run(as_json: bool, **options: Any) -> None:
            with contextlib.redirect_stdout(sys.stderr):
                answer = function(**options)
            emit(answer, as_json)

        shape = inspect.signature(function, eval_str=True)
        option = inspect.Parameter(
            "as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=AsJson
        )
        every = [*shape.parameters.values(), option]
        # typer reads both: the parameters, and the types by name
        run.__signature__ = shape.replace(parameters=every, return_annotation=None)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in every}
        app.command(name)(run)
        return function

    return register


def emit(answer: Answer, as_json: bool) -> None:
    """Print an answer as one JSON document or as text. Raises typer.Exit(1) where something is wrong."""
    found = answer.record if as_json else answer.text
    found = found() if callable(found) else found
    if as_json or not (sys.stdout.isatty() and found.startswith("|")):
        typer.echo(json.dumps(found, indent=1, allow_nan=False) if as_json else found)
    else:
        draw(found)
    if answer.wrong:
        raise typer.Exit(1)


def draw(text: str) -> None:
    """Print a text that begins with a Markdown table, the table drawn where the terminal is wide enough.

    Drawn narrower it would be without the ends of ids.
    """
    from rich.console import Console
    from rich.markdown import Markdown

    console, lines = Console(), text.splitlines()
    rows = [line for line in lines if line.startswith("|")]
    if max(map(len, rows)) > console.width:
        return typer.echo(text)
    console.print(Markdown("\n".join(rows)))
    return typer.echo("\n".join(lines[len(rows) :]), nl=len(lines) > len(rows))


def loaded(path: Path) -> Graft:
    """Return the graft of a run's folder, a file, or a reference to the hub."""
    from skillgraft.graft import Graft

    return Graft.load(store.graft_file(str(path)))


def records(frame: pd.DataFrame) -> list[Any]:
    """Return a table's rows, None where a value is missing."""
    return defined(frame).to_dict(orient="records")


def markdown(frame: pd.DataFrame) -> str:
    """Return a table for people."""
    return defined(frame).to_markdown(index=False, missingval="–")


def defined(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table with None where a value is missing."""
    return frame.astype(object).where(frame.notna(), None)


def described(graft: Graft) -> dict[str, Any]:
    """Return what a graft is as plain values: what its file says of itself, its base and its size."""
    own = {"base": graft.base, "size": graft.size, "graftable": graft.graftable}
    return {**graft.meta, **own, "sparsity": graft.sparsity}


def saved(graft: Graft, out: Path) -> Answer:
    """Write a graft to a file, and say so."""
    file = graft.save(out)
    return Answer({"file": str(file), **described(graft)}, f"{file}: {graft}")


@command("list")
def list_runs(root: Root = Path("runs")) -> Answer:
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

    return Answer([dict(zip(columns, line, strict=True)) for line in lines], text)


@command()
def table(
    root: Root = Path("runs"),
    columns: Annotated[
        str, typer.Option(help="Metrics to show: names of metrics.json, joined by '/', by commas.")
    ] = ",".join(store.MEASURES),
) -> Answer:
    """Mean ± half the 95 % interval over seeds, and n, a row a setting.  Example: grafts table runs"""
    from skillgraft import compare

    place, names = Store(root), columns.split(",")
    frame = compare.collect(place)
    if frame.empty:
        raise InputError(f"{place.root}: no whole run in it")
    if unknown := [name for name in names if name not in frame.columns]:
        raise InputError(f"--columns: no metric {unknown[0]} in {root}")
    return Answer(
        lambda: records(compare.over_seeds(frame, names, compare.numbers)),
        lambda: markdown(compare.over_seeds(frame, names)),
    )


@command()
def claims(root: Root = Path("runs")) -> Answer:
    """Judge the claims of every sweep: the paper's figures beside the measured ones.

    Means with Student's t intervals over seeds.  Example: grafts claims runs
    """
    import pandas as pd

    from skillgraft import sweep

    place = Store(root)
    found = sweep.judged(place, keep=True)
    if not found:
        raise InputError(f"{place.root}: no sweep with a claim in it")
    record = [{"sweep": name, **statement.record()} for name, statement in found]
    return Answer(record, lambda: markdown(pd.DataFrame(sweep.verdicts(found))))


@command("compare")
def compare_models(
    path: Annotated[Path, typer.Argument(help="A run's folder.", autocompletion=complete)],
    split: Annotated[str, typer.Option(help="test, validation, or ood/<task>.")] = "test",
) -> Answer:
    """Intervals over examples of each model of one run, and paired tests against the fine-tuned model.

    95 % bootstrap intervals; McNemar's exact test of accuracy, permutation test of ECE.
    Example: grafts compare runs/toy_film-…
    """
    import pandas as pd

    from skillgraft import stats
    from skillgraft.intervals import Interval

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
        line: dict[str, Any] = {"model": model, **found}
        if model != "finetuned":
            full = models["finetuned"]
            line["p, accuracy"] = round(stats.mcnemar(probabilities, full, labels), 4)
            line["p, ECE"] = round(stats.ece_permutation(probabilities, full, labels, seed), 4)
        lines.append(line)
    table = pd.DataFrame(lines)
    plain = table.map(lambda value: vars(value) if isinstance(value, Interval) else value)
    return Answer(lambda: records(plain), lambda: markdown(table))


@command()
def show(path: OneRun) -> Answer:
    """Show one graft: base model, size, and its share by layer and module kind.

    Example: grafts show runs/toy_film-…/graft.safetensors
    """
    from skillgraft.graft_facts import shares_by_layer, shares_by_module

    graft = loaded(path)
    shares = {"layer": shares_by_layer(graft), "module": shares_by_module(graft)}

    def text() -> str:
        lines = [f"{name}: {value}" for name, value in described(graft).items()]
        for kind, found in shares.items():
            parts = ", ".join(f"{name} {share:.1%}" for name, share in found.items())
            lines.append(f"share by {kind}: {parts}")
        return "\n".join(lines)

    return Answer({**described(graft), **shares}, text)


@command()
def verify(path: OneRun) -> Answer:
    """Check every checksum; exit code 1 where something is missing or altered.

    Example: grafts verify runs/toy_film-…
    """
    wrong = store.verify(path) if path.is_dir() else []
    try:
        loaded(path)
    except InputError as error:
        wrong.append(str(error))
    for line in wrong:
        typer.echo(line, err=True)
    said = f"{path}: {'not whole' if wrong else 'whole'}"
    return Answer({"path": str(path), "whole": not wrong, "wrong": wrong}, said, bool(wrong))


@command()
def apply(
    path: OneRun,
    out: Annotated[Path, typer.Option(help="A new folder for the checkpoint.")],
    model: Annotated[
        str | None,
        typer.Option(help="The pre-trained model: a hub id or folder; a run knows its own."),
    ] = None,
    delta: Annotated[
        bool,
        typer.Option("--delta", help="The task vector: θ_ft − θ_pre in the region, else zero."),
    ] = False,
) -> Answer:
    """Write pre-trained model + graft as an ordinary transformers checkpoint.

    Example: grafts apply runs/toy_film-… --out toy_film
    """
    from omegaconf import OmegaConf

    from skillgraft import checkpoint, export
    from skillgraft.config import ModelConfig

    file = store.graft_file(str(path))
    graft, record = loaded(path), file.with_name("config.yaml")
    run: Any = OmegaConf.load(record) if record.is_file() else None
    if model is None and run is None:
        raise InputError(f"{path}: no run beside it says which model it belongs to: give --model")
    known = {"path": model} if model is not None else run.model
    source = ModelConfig(
        name=str(graft.meta.get("model")), path=known["path"], revision=known.get("revision")
    )
    folder = str(export.apply(graft, checkpoint.locate(source), out, run, delta))
    return Answer({"folder": folder, "delta": delta, **described(graft)}, folder)


@command()
def push(
    path: OneRun,
    repo: Annotated[str, typer.Argument(help="The hub repository: OWNER/NAME.")],
    model: Annotated[
        str | None,
        typer.Option(help="The pre-trained model's hub id; a run of a hub model knows its own."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Of a new repository.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the card; send nothing.")
    ] = False,
) -> Answer:
    """Put a graft on the Hugging Face hub, with a model card and, of a run, its metrics.

    `hf auth login` first. Example: grafts push runs/toy_film-… me/toy-film --dry-run
    """
    from omegaconf import OmegaConf

    from skillgraft import hub, hub_grafts

    graft = loaded(path)
    about: dict[str, Any] = {"base_model": model}
    if store.is_whole(path):
        known = OmegaConf.load(path / "config.yaml")
        if model is None and known.model.after is None:
            about["base_model"] = hub.public_id(known.model.path)
        about["task"] = OmegaConf.to_container(known.task)
        about["metrics"] = store.read_json(path / "metrics.json")
    if dry_run:
        files = [hub.FILE, "README.md", *(["metrics.json"] if "metrics" in about else [])]
        typer.echo(f"to {repo}: {', '.join(files)}; nothing sent", err=True)
        card = str(hub_grafts.card(graft, repo, **about))
        return Answer({"repository": repo, "files": files, "card": card}, card)
    commit = hub_grafts.push_to_hub(graft, repo, **about, private=private)
    sent = {"graft": f"{hub.SCHEME}{repo}@{commit.oid}", "url": str(commit.commit_url)}
    return Answer(sent, "  ".join(sent.values()))


@command("overlap")
def overlap_of(
    paths: SeveralRuns,
) -> Answer:
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
    return Answer(lines, lambda: markdown(pd.DataFrame(lines)))


@command()
def combine(
    paths: SeveralRuns,
    out: Annotated[Path, typer.Option(help="The file to write.")],
    rule: Annotated[str, typer.Option(help="union or intersection.")] = "union",
) -> Answer:
    """Make one graft of several of one base model; a shared entry of a union gets the mean value.

    Example: grafts combine runs/toy_film-… runs/toy_book-… --out both.safetensors
    """
    from skillgraft.graft import intersection, union

    rules = {"union": union, "intersection": intersection}
    if rule not in rules:
        raise InputError(f"--rule {rule}: expected union or intersection")
    if out.exists():
        raise InputError(f"--out {out}: is there already")
    return saved(rules[rule]([loaded(path) for path in paths]), out)


@command()
def extract(
    pretrained: Annotated[
        str, typer.Argument(help="A checkpoint: a folder, a hub id, or package:NAME/FOLDER.")
    ],
    finetuned: Annotated[str, typer.Argument(help="The same model, fine-tuned.")],
    out: Annotated[Path, typer.Option(help="The graft file to write.")],
    selector: Annotated[str, typer.Option(help="movement, magnitude or random.")] = "movement",
    sparsity: Annotated[float, typer.Option(help="Share of the graftable parameters.")] = 1e-2,
    graftable: Annotated[
        list[str] | None,
        typer.Option(help="Regular expression of graftable names; may come again."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of random.")] = 0,
) -> Answer:
    """Make a graft of any two checkpoints, without training or data, one tensor in memory at a time.

    Example: grafts extract bert-base bert-base-sst2 --sparsity 1e-3 --out sst2.safetensors
    """
    from skillgraft import checkpoint, export
    from skillgraft.config import ModelConfig

    if selector not in (known := ("movement", "magnitude", "random")):
        raise InputError(f"--selector {selector}: expected one of {', '.join(known)}")
    if out.exists():
        raise InputError(f"--out {out}: is there already")
    before, after = (
        checkpoint.locate(ModelConfig(name=path, path=path)) for path in (pretrained, finetuned)
    )
    return saved(export.extract(before, after, selector, sparsity, graftable or (), seed), out)


@command()
def rerun(
    path: Annotated[
        str,
        typer.Argument(
            help="A run's folder, id, or W&B path; with --figure a sweep's folder.",
            autocompletion=complete,
        ),
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
) -> Answer:
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
    record = {"runs": [f.name for f in runs], "cached": cached, "identical": not found}
    lists = {"environment": named, "inputs": changed, "differences": found}
    record |= {name: [vars(line) for line in lines] for name, lines in lists.items()}
    weights = ", with the fine-tuned weights of the store" if cached else ""
    same = f"bit-identical{weights}: {path}"
    return Answer(record, "\n".join(map(str, found)) or same, bool(found))


@command("sync")
def send_offline(
    root: Root = Path("runs"),
    entity: Annotated[str | None, typer.Option(help="W&B's entity, in place of the runs'.")] = None,
    project: Annotated[
        str | None, typer.Option(help="W&B's project, in place of the runs'.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be sent, without a network.")
    ] = False,
) -> Answer:
    """Send the offline W&B runs of a store by sweep, wherever the store is now; those sent are skipped.

    Only files of a run are sent, never another file that its record names; --dry-run lists them.
    Exit code 1 where a record is damaged or not the run's own, a file is missing, or W&B refuses.
    Example: grafts sync runs --dry-run
    """
    import pandas as pd

    from skillgraft import sync

    lines = sync.deliver(Store(root), entity, project, dry_run)
    refused = [line["run"] for line in lines if line["state"] not in sync.FINE]
    if refused:
        typer.echo(f"{len(refused)} of {len(lines)} runs cannot be sent: {refused[0]} …", err=True)

    def shown() -> str:
        table = pd.DataFrame([{**line, "files": len(line["files"])} for line in lines])
        named = [file for line in lines for file in line["files"]] if dry_run else []
        return "\n".join([markdown(table), *named])

    return Answer(lines, shown, wrong=bool(refused))


@command()
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
) -> Answer:
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
        places = dashboards.send(project, entity, names)
        return Answer(places, "\n".join(places))
    content = dashboards.specification(project, entity or "", names)
    if out is None:
        return Answer(content, lambda: json.dumps(content, indent=1))
    store.write_json(out, content)
    return Answer({"file": str(out)}, str(out))


@command()
def report(
    root: Root = Path("runs"),
    out: Annotated[Path, typer.Option(help="A new folder for the page and its files.")] = Path(
        "report"
    ),
    force: Annotated[bool, typer.Option("--force", help="Write over an earlier report.")] = False,
) -> Answer:
    """Write one HTML page of all runs, and beside it each figure (SVG, PNG) and table (CSV, LaTeX).

    Example: grafts report runs --out report
    """
    from skillgraft import report as reports

    if not force and out.is_dir() and any(out.iterdir()):
        raise InputError(f"--out {out}: not empty; --force writes over it")
    page = reports.write(root, out)
    files = store.read_json(out / reports.MANIFEST)["files"]
    return Answer({"page": str(page), "files": files}, str(page))


@command("gc")
def free(
    root: Root = Path("runs"),
    yes: Annotated[bool, typer.Option("--yes", help="Free it; else it is only listed.")] = False,
) -> Answer:
    """List what can be made again, with sizes; --yes frees it. Whole runs and sweeps stay.

    Example: grafts gc runs --yes
    """
    from skillgraft import gc

    place = Store(root)
    if not place.root.is_dir():
        raise InputError(f"{place.root}: no such folder")
    items = gc.freeable(place)
    lines = [
        {"what": i.kind, "folder": str(i.folder.relative_to(place.root)), "MiB": i.bytes / 2**20}
        for i in items
    ]
    freed = [item for item in items if gc.free(place, item)] if yes else []

    def text() -> str:
        from tabulate import tabulate

        total = sum(item.bytes for item in items) / 2**20
        done = (
            f"{len(freed)} of {len(items)} folders freed" if yes else "nothing freed yet: add --yes"
        )
        listed = tabulate(lines, headers="keys", tablefmt="pipe", floatfmt=".1f")
        return f"{listed}\n{total:.1f} MiB in {len(items)} folders; {done}".lstrip()

    return Answer({"freed": len(freed), "items": lines}, text)


if __name__ == "__main__":
    app()
