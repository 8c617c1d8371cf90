"""The context of a job: the one place that asks Hydra, the command line and the terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from skillgraft.runtime.job import JobContext


def on_terminal() -> bool:
    """Return whether progress bars have a terminal to be drawn on, outside of CI."""
    return sys.stderr.isatty() and not os.environ.get("CI")


def of_hydra_job() -> JobContext:
    """Return the context of the job that Hydra has started in this process.

    Bars of several jobs of a sweep on one terminal would write over each other: a launcher that starts
    jobs beside each other has none.
    """
    settings = HydraConfig.get()
    sources = settings.runtime.config_sources
    given = [source.path for source in sources if source.provider == "command-line"]
    # a missing value, outside of a sweep, gives None
    number = OmegaConf.select(cast(DictConfig, settings), "job.num")
    launcher = settings.launcher._target_
    return JobContext(
        config_folders=tuple(Path(s.path) for s in sources if s.schema == "file"),
        folder=Path(settings.runtime.output_dir),
        number=None if number is None else int(number),
        multirun=settings.mode is RunMode.MULTIRUN,
        launcher=launcher,
        # a launcher's worker was itself started by another command
        command=(
            "skillgraft",
            *(f"--config-dir={path}" for path in given),
            *settings.overrides.task,
        ),
        progress=on_terminal() and launcher.endswith(".BasicLauncher"),
    )


def of_grafts(no_progress: bool) -> JobContext:
    """Return the context of a command of `grafts`."""
    return JobContext(command=("grafts", *sys.argv[1:]), progress=on_terminal() and not no_progress)
