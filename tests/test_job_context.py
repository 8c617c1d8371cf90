"""What a run is told of its job: made by `cli`, handed down, and read nowhere else."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from hydra.conf import ConfigSourceInfo
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

import skillgraft
from runs import TINY, command
from skillgraft.cli import job_context
from skillgraft.config import packages
from skillgraft.config.compose import register
from skillgraft.runtime.files import read_json
from skillgraft.runtime.job import JobContext

SOURCE = Path(skillgraft.__file__).parent
BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
JOBLIB = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
# Hydra's state, the command line and what says where a program runs: the business of `cli` alone.
ASKED = re.compile(r"HydraConfig|GlobalHydra|sys\.argv|stderr\.isatty|environ(\.get)?[\[(]\"CI\"")


def test_below_cli_nobody_asks_hydra_or_the_command_line() -> None:
    files = [file for file in SOURCE.rglob("*.py") if file.relative_to(SOURCE).parts[0] != "cli"]
    asking = [file for file in files if ASKED.search(file.read_text(encoding="utf-8"))]
    assert len(files) > 100
    assert asking == []
    assert ASKED.search((SOURCE / "cli" / "job_context.py").read_text(encoding="utf-8"))


@pytest.fixture
def hydra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DictConfig]:
    """Hydra's settings of a job on a terminal, outside of CI, as a job finds them."""
    register()
    process = SimpleNamespace(stderr=SimpleNamespace(isatty=lambda: True), argv=["skillgraft"])
    monkeypatch.setattr(job_context, "sys", process)
    monkeypatch.delenv("CI", raising=False)
    with initialize_config_dir(str(packages.CONF), version_base="1.3"):
        cfg = compose("run", ["seed=7"], return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = str(tmp_path)
        cfg.hydra.launcher._target_ = BASIC
    monkeypatch.setattr(HydraConfig, "get", lambda: cfg.hydra)
    with open_dict(cfg):
        yield cfg.hydra


def test_context_of_a_single_job(hydra: DictConfig, tmp_path: Path) -> None:
    hydra.runtime.config_sources = [
        ConfigSourceInfo("/own", "file", "command-line"),
        ConfigSourceInfo("/conf", "file", "main"),
        ConfigSourceInfo("", "structured", "schema"),
    ]
    hydra.mode = RunMode.RUN
    assert job_context.of_hydra_job() == JobContext(
        config_folders=(Path("/own"), Path("/conf")),
        folder=tmp_path,
        number=None,
        multirun=False,
        launcher=BASIC,
        command=("skillgraft", "--config-dir=/own", "seed=7"),
        progress=True,
    )


@pytest.mark.parametrize(("launcher", "bars"), [(BASIC, True), (JOBLIB, False)])
def test_context_of_a_job_of_a_sweep(hydra: DictConfig, launcher: str, bars: bool) -> None:
    """Bars of jobs that run beside each other would write over each other."""
    hydra.mode, hydra.job.num, hydra.launcher._target_ = RunMode.MULTIRUN, 3, launcher
    context = job_context.of_hydra_job()
    assert (context.number, context.multirun, context.launcher) == (3, True, launcher)
    assert context.progress is bars


def test_context_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        JobContext().progress = True  # type: ignore[misc]


def test_provenance_has_the_command_of_the_job_alone(tmp_path: Path) -> None:
    """Also where a sweep has started it; what a user shows for the configuration has no other keys."""
    tiny = [option for option in TINY if option != "logger=none"]
    done = command(
        "-m", "seed=3,4", "logger=none", "graft=movement", *tiny, f"store={tmp_path}", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("toy_film-*-seed3-*/provenance.json")
    made_by = read_json(file)["command"]
    assert made_by[0] == "skillgraft"
    assert {"seed=3", "graft=movement", *tiny} <= set(made_by)
    assert "-m" not in made_by
