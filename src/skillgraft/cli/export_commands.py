"""Commands for other tools: apply, push, extract."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from skillgraft.cli.output import described, loaded, save_graft
from skillgraft.cli.program import CommandResult, OneRun, command
from skillgraft.runtime.errors import InputError
from skillgraft.runtime.files import read_json
from skillgraft.store import checksums, graft_files
from skillgraft.store.names import CONFIG, METRICS


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
) -> CommandResult:
    """Write pre-trained model + graft as an ordinary transformers checkpoint.

    Example: grafts apply runs/toy_film-… --out toy_film
    """
    from omegaconf import OmegaConf

    from skillgraft.config.schema import ModelConfig
    from skillgraft.export import checkpoints
    from skillgraft.models import checkpoint_files

    file = graft_files.graft_file(str(path))
    graft, record = loaded(path), file.with_name(CONFIG)
    run: Any = OmegaConf.load(record) if record.is_file() else None
    if model is None and run is None:
        raise InputError(f"{path}: no run beside it says which model it belongs to: give --model")
    known = {"path": model} if model is not None else run.model
    source = ModelConfig(
        name=str(graft.meta.get("model")), path=known["path"], revision=known.get("revision")
    )
    folder = str(
        checkpoints.write_checkpoint(graft, checkpoint_files.locate(source), out, run, delta)
    )
    return CommandResult({"folder": folder, "delta": delta, **described(graft)}, folder)


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
) -> CommandResult:
    """Put a graft on the Hugging Face hub, with a model card and, of a run, its metrics.

    `hf auth login` first. Example: grafts push runs/toy_film-… me/toy-film --dry-run
    """
    from omegaconf import OmegaConf

    from skillgraft.export import hub
    from skillgraft.store import hub_files

    graft = loaded(path)
    about: dict[str, Any] = {"base_model": model}
    if checksums.is_complete(path):
        known = OmegaConf.load(path / CONFIG)
        if model is None and known.continual.init_from is None:
            about["base_model"] = hub.public_id(known.model.path)
        about["task"] = OmegaConf.to_container(known.task)
        about["metrics"] = read_json(path / METRICS)
    if dry_run:
        files = [hub_files.FILE, "README.md", *([METRICS] if "metrics" in about else [])]
        typer.echo(f"to {repo}: {', '.join(files)}; nothing sent", err=True)
        card = str(hub.card_of(graft, repo, **about))
        return CommandResult({"repository": repo, "files": files, "card": card}, card)
    commit = hub.push_to_hub(graft, repo, **about, private=private)
    sent = {"graft": f"{hub_files.SCHEME}{repo}@{commit.oid}", "url": str(commit.commit_url)}
    return CommandResult(sent, "  ".join(sent.values()))


@command()
def extract(
    pretrained: Annotated[
        str, typer.Argument(help="A checkpoint: a folder, a hub id, or package:NAME/FOLDER.")
    ],
    finetuned: Annotated[str, typer.Argument(help="The same model, fine-tuned.")],
    out: Annotated[Path, typer.Option(help="The graft file to write.")],
    selector: Annotated[str, typer.Option(help="movement, magnitude or random.")] = "movement",
    sparsity: Annotated[
        float, typer.Option(help="Fraction of the graftable parameters to keep.")
    ] = 1e-2,
    graftable: Annotated[
        list[str] | None,
        typer.Option(help="Regular expression of graftable names; may come again."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of random.")] = 0,
) -> CommandResult:
    """Make a graft of any two checkpoints, without training or data, one tensor in memory at a time.

    Example: grafts extract bert-base bert-base-sst2 --sparsity 1e-3 --out sst2.safetensors
    """
    from skillgraft.config.schema import ModelConfig
    from skillgraft.export import extraction
    from skillgraft.models import checkpoint_files

    if selector not in (known := ("movement", "magnitude", "random")):
        raise InputError(f"--selector {selector}: expected one of {', '.join(known)}")
    if out.exists():
        raise InputError(f"--out {out}: already exists")
    before, after = (
        checkpoint_files.locate(ModelConfig(name=path, path=path))
        for path in (pretrained, finetuned)
    )
    return save_graft(
        extraction.extract(before, after, selector, sparsity, graftable or (), seed), out
    )
