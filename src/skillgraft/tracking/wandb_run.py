"""Log a run's curves, metrics, figures and graft to Weights & Biases (W&B)."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from skillgraft.config.choices import Mode
from skillgraft.config.compose import plain
from skillgraft.config.schema import RunConfig
from skillgraft.runtime.errors import InputError
from skillgraft.store.identity import Identity
from skillgraft.tracking import wandb_names

SIZE = "region/size"
OVER_SIZE = (
    "graft/test/score",
    "graft/test/ece",
)  # curves over the region's size, with one point per run
QUIET: dict[str, Any] = {
    "silent": True,
    "console": "off",
    "disable_git": True,
    "disable_code": True,
}
SECRET = ("store", "force")  # settings of this machine, which are not logged


class WandbRun:
    """A W&B run, or an object that logs nothing where logger.mode is none."""

    def __init__(self, run: Any = None) -> None:
        self.run = run

    def log(self, row: Mapping[str, Any]) -> None:
        """Log one point of each curve in `row`; W&B finds the step axis by the prefix of a name."""
        if self.run is not None:
            self.run.log({name: value for name, value in row.items() if value is not None})

    def summarize(self, values: Mapping[str, Any]) -> None:
        """Write final values to the run's summary, without undefined values (None)."""
        if self.run is not None:
            self.run.summary.update({n: v for n, v in values.items() if v is not None})

    def point(self, values: Mapping[str, Any]) -> None:
        """Log the run's point of the curves over the region's size, since W&B draws no curve of summaries."""
        self.log({name: values[name] for name in (SIZE, *OVER_SIZE)})

    def image(self, name: str, path: Path) -> None:
        """Log the figure in an image file."""
        if self.run is not None:
            import wandb

            self.run.log({name: wandb.Image(str(path))})

    def table(self, name: str, frame: pd.DataFrame) -> None:
        """Log a table."""
        if self.run is not None:
            import wandb

            defined = frame.astype(object).where(frame.notna(), None)  # W&B shows None as empty
            table = wandb.Table(dataframe=defined)
            if self.run.offline:
                wandb_names.keep_as_file(table, self.run, name)
            self.run.log({name: table})

    def graft(self, path: Path, metadata: Mapping[str, Any]) -> None:
        """Log the graft file as an artifact; for an offline run `send_graft` does this later."""
        if self.run is not None and not self.run.offline:
            log_graft(self.run, path, metadata)


def log_graft(run: Any, path: Path, metadata: Mapping[str, Any]) -> Any:
    """Log a graft file as an artifact of an online W&B run, and return the artifact."""
    import wandb

    artifact = wandb.Artifact(f"graft-{run.id}", type="graft", metadata=dict(metadata))
    artifact.add_file(str(path))
    return run.log_artifact(artifact)


@contextmanager
def own_folders(folder: Path) -> Iterator[None]:
    """Keep W&B's caches and its copies of artifacts in a folder, not in the home, inside a `with` block."""
    names = {
        "WANDB_DATA_DIR": folder / "data",
        "WANDB_CACHE_DIR": folder / "cache",
        "WANDB_ARTIFACT_DIR": folder / "artifacts",
    }
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({name: str(path) for name, path in names.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def tracking(cfg: RunConfig, identity: Identity, folder: Path) -> Iterator[WandbRun]:
    """Yield the W&B run of one run of this project; an exception ends the W&B run as failed."""
    config = {name: value for name, value in plain(cfg).items() if name not in SECRET}
    tags = [cfg.task.name, cfg.model.name, cfg.graft.selector]
    with opened(
        plain(cfg)["logger"],
        folder,
        id=identity.hash,
        name=identity.id,
        group=identity.group,
        job_type="run",
        config=config,
        tags=tags,
    ) as tracker:
        if tracker.run is not None:
            define_axes(tracker.run)
        yield tracker


def define_axes(run: Any) -> None:
    """Tell W&B the step axis of each curve of a run."""
    for stage in ("finetune", "mask"):
        run.define_metric(f"{stage}/step", hidden=True)
        run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
    run.define_metric(SIZE, hidden=True)
    for name in OVER_SIZE:
        run.define_metric(name, step_metric=SIZE)


@contextmanager
def summary(record: Mapping[str, Any], folder: Path) -> Iterator[WandbRun]:
    """Yield the W&B run of a sweep's summary, which has job type `sweep` and lies in the sweep's folder."""
    name, _, digest = folder.name.rpartition("-")
    with opened(
        record["logger"],
        folder,
        id=f"sweep-{digest}",
        name=folder.name,
        group=name,
        job_type="sweep",
        config={part: record[part] for part in ("command", "overrides", "axes", "claim", "runs")},
        tags=[name],
    ) as tracker:
        yield tracker


@contextmanager
def opened(
    logger: Mapping[str, Any], folder: Path, *, tags: list[str], **about: Any
) -> Iterator[WandbRun]:
    """Yield a W&B run whose record lies in `folder`; an exception ends the W&B run as failed."""
    place = folder / "wandb"
    # the record of a killed attempt: W&B cannot sync two records with one id
    shutil.rmtree(place, ignore_errors=True)
    mode = Mode(logger["mode"])
    if mode is Mode.none:
        yield WandbRun()
        return
    import wandb

    place.mkdir()
    with own_folders(place):
        try:
            run = wandb.init(
                project=logger["project"],
                entity=logger["entity"],
                tags=[*tags, *logger["tags"]],
                dir=str(folder),
                mode="online" if mode is Mode.online else "offline",
                reinit="create_new",
                settings=wandb.Settings(**QUIET),
                **about,
            )
        except wandb.errors.Error as error:  # no key, no network, or no access to the entity
            raise InputError(
                f"logger.mode={mode.value}: W&B: {error}; use logger=wandb_offline or logger=none"
            ) from error
        try:
            yield WandbRun(run)
        except BaseException:
            run.finish(exit_code=1)
            raise
        run.finish()
    for name in ("data", "cache", "artifacts"):
        shutil.rmtree(place / name, ignore_errors=True)
    for link in [path for path in place.rglob("*") if path.is_symlink()]:
        link.unlink()  # links point into the folder in which the run was made, which is renamed


def send_graft(
    path: Path,
    metadata: Mapping[str, Any],
    *,
    id: str,
    entity: str | None,
    project: str | None,
    host: str | None,
) -> None:
    """Log a graft file as an artifact of a run that W&B has, and wait until W&B has the artifact.

    Raises InputError where W&B does not take the artifact.

    Args:
        path: the graft's file.
        metadata: what the artifact says of itself, plain values of JSON.
        id: W&B's id of the run.
        entity: W&B's entity; None: the account's own.
        project: W&B's project; None: W&B's default.
        host: the name of the machine that made the run.
    """
    import wandb

    with tempfile.TemporaryDirectory(prefix="skillgraft-") as scratch, own_folders(Path(scratch)):
        settings = wandb.Settings(host=host, **QUIET, **wandb_names.ONLY_ARTIFACTS)
        try:
            run = wandb.init(
                id=id,
                entity=entity,
                project=project,
                resume="must",
                dir=scratch,
                mode="online",
                reinit="create_new",
                settings=settings,
            )
            try:
                define_axes(run)  # W&B keeps the axes of the process that wrote to a run last
                log_graft(run, path, metadata).wait()
            finally:
                run.finish(
                    exit_code=0
                )  # the run itself is complete, even where the artifact failed
        except (wandb.errors.Error, ValueError) as error:
            raise InputError(f"{path}: W&B: {error}") from error
