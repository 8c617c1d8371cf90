"""Weights & Biases: a run's curves, metrics, figures and graft. Nothing else logs there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from skillgraft.config import Mode, RunConfig, plain
from skillgraft.errors import InputError
from skillgraft.store import Identity, Store

SIZE = "region/size"
OVER_SIZE = (
    "graft/test/score",
    "graft/test/ece",
)  # curves of a point a run, over the region's size
SECRET = ("store", "force")  # of this machine only; the rest of the configuration is logged


class Tracker:
    """One W&B run, or nothing where logger.mode is none."""

    def __init__(self, run: Any = None) -> None:
        self.run = run

    def log(self, row: Mapping[str, Any]) -> None:
        """Log one row of a curve: its names say which step axis it is on."""
        if self.run is not None:
            self.run.log({name: value for name, value in row.items() if value is not None})

    def summarize(self, values: Mapping[str, Any]) -> None:
        """Write final values; an undefined one stays out of the summary."""
        if self.run is not None:
            self.run.summary.update({n: v for n, v in values.items() if v is not None})

    def point(self, values: Mapping[str, Any]) -> None:
        """Log a run's one point of the curves over the region's size: W&B draws no line of summaries."""
        self.log({name: values[name] for name in (SIZE, *OVER_SIZE)})

    def image(self, name: str, path: Path) -> None:
        """Log a figure."""
        if self.run is not None:
            import wandb

            self.run.log({name: wandb.Image(str(path))})

    def table(self, name: str, frame: pd.DataFrame) -> None:
        """Log a table."""
        if self.run is not None:
            import wandb

            defined = frame.astype(object).where(frame.notna(), None)  # NaN is no value
            self.run.log({name: wandb.Table(dataframe=defined)})

    def graft(self, path: Path, name: str, metadata: Mapping[str, Any]) -> None:
        """Log the graft file as an artifact."""
        if self.run is not None:
            import wandb

            artifact = wandb.Artifact(name, type="graft", metadata=dict(metadata))
            artifact.add_file(str(path))
            self.run.log_artifact(artifact)


@contextmanager
def own_folders(folder: Path, staged: Path) -> Iterator[None]:
    """Keep W&B's caches inside a run, and its staged artifacts in the store: else they are in the home.

    An offline record names its staged files by absolute path: they may not be where a run is made,
    since it is renamed when it is whole, and a later sync would not find them.
    """
    names = {
        "WANDB_DATA_DIR": staged,
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
def tracking(cfg: RunConfig, identity: Identity, folder: Path) -> Iterator[Tracker]:
    """Yield the tracker of one run; an exception ends its W&B run as failed."""
    config = {name: value for name, value in plain(cfg).items() if name not in SECRET}
    tags = [cfg.task.name, cfg.model.name, cfg.graft.selector.value]
    with opened(
        plain(cfg)["logger"],
        folder,
        Store(cfg.store).staged(identity.hash),
        id=identity.hash,
        name=identity.id,
        group=identity.group,
        job_type="run",
        config=config,
        tags=tags,
    ) as tracker:
        if tracker.run is not None:
            for stage in ("finetune", "graft"):
                tracker.run.define_metric(f"{stage}/step", hidden=True)
                tracker.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            tracker.run.define_metric(SIZE, hidden=True)
            for name in OVER_SIZE:
                tracker.run.define_metric(name, step_metric=SIZE)
        yield tracker


@contextmanager
def summary(record: Mapping[str, Any], folder: Path) -> Iterator[Tracker]:
    """Yield the tracker of a sweep's summary, a W&B run of job type `sweep` in the sweep's folder."""
    name, _, digest = folder.name.rpartition("-")
    with opened(
        record["logger"],
        folder,
        folder / "wandb" / "staged",
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
    logger: Mapping[str, Any], folder: Path, staged: Path, *, tags: list[str], **about: Any
) -> Iterator[Tracker]:
    """Yield a tracker whose W&B record lies in `folder`, and end its run, as failed after an exception."""
    place = folder / "wandb"
    shutil.rmtree(place, ignore_errors=True)  # a killed try's: two with one id cannot be synced
    mode = Mode(logger["mode"])
    if mode is Mode.none:
        yield Tracker()
        return
    import wandb

    place.mkdir()
    shutil.rmtree(staged, ignore_errors=True)
    with own_folders(place, staged):
        try:
            run = wandb.init(
                project=logger["project"],
                entity=logger["entity"],
                tags=[*tags, *logger["tags"]],
                dir=str(folder),
                mode="online" if mode is Mode.online else "offline",
                reinit="create_new",
                settings=wandb.Settings(
                    silent=True, console="off", disable_git=True, disable_code=True
                ),
                **about,
            )
        except wandb.errors.Error as error:  # no key, no network, an entity that refuses
            raise InputError(
                f"logger.mode={mode.value}: W&B: {error}; use logger=wandb_offline or logger=none"
            ) from error
        try:
            yield Tracker(run)
        except BaseException:
            run.finish(exit_code=1)
            raise
        run.finish()
    shutil.rmtree(place / "cache", ignore_errors=True)
    for link in [path for path in place.rglob("*") if path.is_symlink()]:
        link.unlink()  # they point to where the run was made, not to where it will be
