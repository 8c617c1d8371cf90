"""Runs made small: composing the configuration in process, and calling the installed command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
from hydra import compose, initialize_config_dir
from typer.testing import CliRunner

from skillgraft.config import packages
from skillgraft.config.compose import expand, register
from skillgraft.config.schema import ResolvedConfig, RunConfig
from skillgraft.runtime.errors import InputError
from skillgraft.runtime.job import JobContext

CONTEXT = JobContext(config_folders=(packages.CONF,))  # of a run that is made in this process
# A run of a few seconds: the embedded model, few steps, little data.
SMALL = (
    "shots=8",
    "threads=1",
    "finetune.steps=20",
    "finetune.evaluate_every=10",
    "graft.steps=4",
    "graft.examples_per_step=16",
    "graft.score_every=2",
    "task.max_test_examples=50",
)
# A run of about a second, for what does not depend on how well anything is learned.
TINY = (
    "shots=4",
    "threads=1",
    "finetune.steps=4",
    "finetune.evaluate_every=2",
    "task.max_test_examples=12",
    "task.ood=[]",
    "logger=none",
)
FEW = (
    "graft.examples_per_step=8",
    "graft.batch_size=4",
)  # for selectors that read the training rows
SIZED = tuple(o for o in SMALL if not o.startswith("graft."))  # for selectors without steps


def composed(*overrides: str) -> RunConfig:
    """Return the configuration that the command line would compose."""
    register()
    with initialize_config_dir(str(packages.CONF), version_base="1.3"):
        return cast(RunConfig, compose("run", overrides=list(overrides)))


def expanded(*overrides: str) -> ResolvedConfig:
    """Return the configuration that the command line would compose, with the tasks that it names."""
    return expand(composed(*overrides), [packages.CONF])


def make(store: Path, *overrides: str) -> Path:
    """Make a run in this process and return its folder."""
    from skillgraft.experiments.run import run

    return run(composed(f"store={store}", *overrides), CONTEXT)


def refused(store: Path, words: Sequence[str], *overrides: str) -> None:
    """Check that a run is refused in one line with these words, before anything is trained."""
    with pytest.raises(InputError) as caught:
        make(store, *overrides)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    assert not (store / ".finetuned").exists()


def results(folder: Path, *names: str) -> dict[str, bytes]:
    """Return the bytes of what must not differ between two makings of a run."""
    files = names or ("metrics.json", "predictions.parquet", "graft.safetensors")
    return {name: (folder / name).read_bytes() for name in files}


def command(*arguments: str, cwd: Path, program: str = "skillgraft") -> subprocess.CompletedProcess:
    """Call an installed command and return what it printed."""
    return subprocess.run(
        [str(Path(sys.executable).parent / program), *arguments],
        cwd=cwd,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def grafts(*arguments: str) -> tuple[int, str]:
    """Call a command of `grafts` in this process; return its exit code and all that it printed."""
    from skillgraft.cli.grafts import app

    done = CliRunner().invoke(app, [*arguments])
    return done.exit_code, done.output
