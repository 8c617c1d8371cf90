"""Launchers: their presets, how jobs share cores and GPUs, and the same bits whatever starts them."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from runs import FEW, TINY, command, composed, results
from skillgraft.cli.sweep_recorder import SweepRecorder
from skillgraft.config import launchers as launching
from skillgraft.config import packages
from skillgraft.config.compose import register
from skillgraft.config.launchers import EXTRAS, jobs, missing, too_many
from skillgraft.experiments import sweep
from skillgraft.runtime import shared_machine, signals
from skillgraft.runtime.files import read_json, write_json
from skillgraft.store import job_state, names
from skillgraft.training.trainer import make_trainer

# Our presets, each with the plugin's launcher that it stands on.
PRESETS = {
    "cores": "joblib", "slurm": "submitit_slurm", "slurm_local": "submitit_local",
    "ray_cluster": "ray",
}  # fmt: skip
INSTALLED = [
    name
    for name, plugin in PRESETS.items()
    if importlib.util.find_spec(f"hydra_plugins.hydra_{plugin.partition('_')[0]}_launcher")
]


def preset(*overrides: str) -> DictConfig:
    """Return the whole configuration with Hydra's own part."""
    register()
    with initialize_config_dir(str(packages.CONF), version_base="1.3"):
        return compose("run", overrides=list(overrides), return_hydra_config=True)


def test_every_launcher_has_its_preset() -> None:
    files = (packages.CONF / "hydra" / "launcher").glob("*.yaml")
    assert {file.stem for file in files} == set(PRESETS)
    assert set(PRESETS.values()) == set(EXTRAS)
    assert not set(PRESETS) & set(EXTRAS)  # Hydra would match a file of a plugin's name to it


@pytest.mark.parametrize("name", INSTALLED)
def test_a_preset_stands_on_the_plugin(name: str) -> None:
    """Its types and other values are the plugin's, and Hydra warns of nothing."""
    launcher = preset(f"hydra/launcher={name}", "threads=3").hydra.launcher
    plain = preset(f"hydra/launcher={PRESETS[name]}", "threads=3").hydra.launcher
    assert launcher["_target_"] == plain["_target_"]
    assert launcher["_target_"].startswith("hydra_plugins.")
    first = (packages.CONF / "hydra" / "launcher" / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith(f"# skillgraft -m hydra/launcher={name} ")
    if name == "cores":
        assert (launcher.n_jobs, plain.n_jobs) == (jobs(3), -1)
        assert launcher.pre_dispatch == "2*n_jobs"
    elif name == "ray_cluster":
        assert launcher.ray.remote == {"num_cpus": 3, "num_gpus": None}
    else:
        assert (launcher.cpus_per_task, plain.cpus_per_task) == (3, None)
        assert launcher.gpus_per_node is None
        assert launcher.submitit_folder.endswith("/.submitit/%j")


def test_a_plugin_that_is_not_installed(tmp_path: Path) -> None:
    """The one line says which extra to install, whether our preset was asked for or the plugin's own."""
    assert missing("hydra/launcher/submitit_slurm") == (
        'hydra/launcher=submitit_slurm is not installed: pip install "skillgraft[slurm]"'
    )
    assert missing("hydra/launcher/slrum") is None
    assert missing("task/ray") is None
    if "ray_cluster" not in INSTALLED:
        for name in ("ray_cluster", "ray"):
            done = command("-m", f"hydra/launcher={name}", "seed=1,2", cwd=tmp_path)
            assert done.returncode == 1
            assert done.stderr.strip().endswith('not installed: pip install "skillgraft[ray]"')
            assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("cores", "threads", "fit"), [(8, 1, 8), (8, 2, 4), (8, 3, 2), (2, 2, 1), (1, 2, 1)]
)
def test_jobs_at_once(monkeypatch: pytest.MonkeyPatch, cores: int, threads: int, fit: int) -> None:
    monkeypatch.setattr(launching, "cores", lambda: cores)
    assert jobs(threads) == fit
    assert too_many(fit, threads) is None
    assert f"{fit} would fit" in (too_many(fit + 1, threads) or "")


def test_jobs_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more at once than there are GPUs."""
    monkeypatch.setattr(launching, "cores", lambda: 16)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert jobs(2, "gpu") == 3
    assert jobs(8, "gpu") == 2
    assert launching.gpus("gpu") == 3
    assert launching.gpus("gpu", 1) == 1
    assert jobs(2, "gpu", 2) == 1
    assert jobs(2, "cpu", 2) == 4
    assert "2 and trainer.devices=2" in (too_many(5, 2, "cpu", 2) or "")
    assert launching.gpus("cpu", 1) is None


HOLD = """
import sys, time
from skillgraft.runtime import shared_machine
with shared_machine.acquire_gpus(sys.argv[2:], 1, int(sys.argv[1])) as own:
    print(*own, flush=True)
    time.sleep(600)
"""


@contextmanager
def job_on_a_gpu(number: int, gpus: list[str]) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start a process that takes a GPU; give it, and the index of what it got. It is killed at the end."""
    arguments = [sys.executable, "-c", HOLD, str(number), *gpus]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def test_each_job_gets_a_gpu_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A job takes a free one whatever its number; a killed job's is free again; too many share."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)  # looked up anew
    gpus = ["GPU-a", "GPU-b", "GPU-c"]
    with job_on_a_gpu(1, gpus) as (_, first), job_on_a_gpu(4, gpus) as (killed, second):
        assert (first, second) == (1, 2)  # both begin at 1
        with shared_machine.acquire_gpus(["GPU-b"]) as own:  # all that this job sees, which is lent
            assert own == shared_machine.acquired == [0]
        assert "too few of 1 GPUs are free: this job shares [0]" in caplog.text
        assert shared_machine.acquired == []
        with (
            shared_machine.acquire_gpus(gpus) as own,
            shared_machine.acquire_gpus(gpus, job=2) as shared,
        ):
            assert (own, shared) == ([0], [2])
        with shared_machine.acquire_gpus(gpus, 2) as own:  # the last one has given it back
            assert own == [0, 1]
        killed.kill()
        killed.wait()
        with shared_machine.acquire_gpus(gpus, 2, job=1) as own:
            assert own == [2, 0]


def test_a_wait_under_ray_is_a_task_without_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ray wants it to give a waiting job's cores away; elsewhere it is a plain sleep."""
    asked, slept = [], []

    def remote(**options: int) -> Callable[..., SimpleNamespace]:
        asked.append(options)
        return lambda task: SimpleNamespace(remote=lambda: task)

    monkeypatch.setattr(shared_machine.time, "sleep", slept.append)
    shared_machine.sleep_releasing_cpus(0.5)
    assert (asked, slept) == ([], [0.5])
    ray = SimpleNamespace(is_initialized=lambda: True, remote=remote, get=lambda task: task())
    monkeypatch.setitem(sys.modules, "ray", ray)
    shared_machine.sleep_releasing_cpus(0.25)
    assert (asked, slept) == ([{"num_cpus": 0}], [0.5, 0.25])


def test_cores_are_those_that_may_be_used() -> None:
    assert 1 <= shared_machine.cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(("n_jobs", "warned"), [("64", True), ("-1", True), ("1", False)])
def test_an_explicit_n_jobs_is_obeyed_with_a_warning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    n_jobs: str,
    warned: bool,
) -> None:
    monkeypatch.setattr(launching, "cores", lambda: 4)
    monkeypatch.setattr(sweep, "begun", [])
    cfg = preset(
        "hydra/launcher=cores", f"hydra.launcher.n_jobs={n_jobs}", "threads=2", f"store={tmp_path}"
    )
    with caplog.at_level(logging.WARNING):
        SweepRecorder().on_multirun_start(cfg)
    assert cfg.hydra.launcher.n_jobs == int(n_jobs)
    assert ("2 would fit" in caplog.text) is warned
    assert len(sweep.begun) == 1


@pytest.mark.skipif("cores" not in INSTALLED, reason="joblib's launcher is not installed")
def test_a_job_waits_for_the_one_that_it_builds_on(tmp_path: Path) -> None:
    """Both start at once, and the second wants the size of the region that the first comes to."""
    done = command(
        "-m", "hydra/launcher=cores", "hydra.launcher.n_jobs=2", "graft=learned,movement",
        "graft.size_from=learned", *TINY, *FEW, "graft.steps=40", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "runs").glob("toy_film-*"))) == 2
    log = next((tmp_path / "runs").glob(".jobs/*/1/skillgraft.log"))
    assert "waiting for an earlier job of the sweep" in log.read_text()


def test_the_variables_of_slurm_are_not_lightnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run is one process on one device, though the job may have more tasks, and is queued by submitit."""
    for name, value in (("JOB_ID", "7"), ("NTASKS", "4"), ("PROCID", "0"), ("LOCALID", "0")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    trainer = make_trainer(composed(), 1, tmp_path)
    assert trainer.world_size == 1
    assert trainer.num_nodes == 1


def test_submitit_queues_a_job_again_once_its_run_has_ended() -> None:
    """Its handler of the scheduler's signal comes last, and ends the process with a code of its own."""
    came = []

    def queue_again(number: int, _frame: object) -> None:
        came.append("queued")
        raise SystemExit(144)

    def run() -> None:
        with signals.watching():
            try:
                signal.raise_signal(signal.SIGUSR2)
            finally:
                came.append("ended")

    before = signal.signal(signal.SIGUSR2, queue_again)
    try:
        with pytest.raises(SystemExit) as caught:
            run()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert caught.value.code == 144
    assert came == ["ended", "queued"]


def test_a_job_that_is_queued_again_counts_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_json(tmp_path / names.PLAN, {"total": 2, "started": time.time()})
    for number, became in (
        (0, job_state.INTERRUPTED),
        (1, job_state.COMPLETE),
        (0, job_state.COMPLETE),
    ):
        (tmp_path / str(number)).mkdir(exist_ok=True)
        write_json(tmp_path / str(number) / names.RUN_FILE, {"state": became})
        with caplog.at_level(logging.INFO):
            sweep.progress(tmp_path / str(number))
    assert [record.message.partition(", about")[0] for record in caplog.records] == [
        "job 1 of 2, 1 failed", "job 2 of 2, 1 failed", "job 2 of 2, 0 failed",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_same_bits_under_any_launcher(tmp_path: Path) -> None:
    """The installed command, in processes of the launchers' own: our presets and a plugin's plain values."""
    launchers = ["basic", *(n for n in ("cores", "slurm_local") if n in INSTALLED)]
    launchers += [PRESETS[name] for name in launchers if name == "cores"]
    made = {}
    for name in launchers:
        done = command(
            "-m", "seed=13,21", *TINY, *FEW, "graft.steps=4", "graft.score_every=2",
            f"hydra/launcher={name}", f"store={name}", cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "eprecat" not in done.stderr + done.stdout
        (record,) = (tmp_path / name / "sweeps").glob("*/record.json")
        runs = read_json(record)["runs"]
        assert ["seed13" in run for run in runs] == [True, False]
        made[name] = {run: results(tmp_path / name / run) for run in runs}
    assert all(made[name] == made["basic"] for name in launchers)
