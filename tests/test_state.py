"""What becomes of a job that fails or is stopped: its record, its log, and the rest of its sweep."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runs import TINY, command, make
from skillgraft.experiments.stages import evaluate
from skillgraft.runtime import leases, signals
from skillgraft.runtime.errors import InputError
from skillgraft.runtime.files import read_json, write_json
from skillgraft.store import folders, job_state
from skillgraft.store.names import RUN_FILE

MOVEMENT = (*TINY, "graft=movement")


def test_a_run_that_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Class and message beside the partial run; made again, it is whole and the record is gone."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError("of a test")

    monkeypatch.setattr(evaluate, "evaluate", broken)
    with pytest.raises(ZeroDivisionError):
        make(tmp_path, *MOVEMENT)
    (file,) = tmp_path.glob(".partial/*.json")
    record = read_json(file)
    assert record["state"] == "failed"
    assert (record["error"], record["message"]) == ("ZeroDivisionError", "of a test")
    assert (record["task"], record["selector"], record["seed"]) == ("toy_film", "movement", 13)
    (listed,) = job_state.unfinished(folders.Store(tmp_path))
    assert listed["state"] == "failed"
    write_json(file, record | {"state": "running"})  # killed: nobody holds its lease
    (listed,) = job_state.unfinished(folders.Store(tmp_path))
    assert listed["state"] == "interrupted"
    with folders.Store(tmp_path).lock(record["id"]):
        (listed,) = job_state.unfinished(folders.Store(tmp_path))
        assert listed["state"] == "running"
    monkeypatch.undo()
    folder = make(tmp_path, *MOVEMENT)
    assert folder.name == record["id"]
    assert not job_state.unfinished(folders.Store(tmp_path))
    assert not list(tmp_path.glob(".partial/*"))


def test_a_signal_outside_training_ends_the_run_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = signal.getsignal(signal.SIGUSR2)
    monkeypatch.setattr(evaluate, "evaluate", lambda *_: signal.raise_signal(signal.SIGUSR2))
    with pytest.raises(signals.Interrupted) as caught:
        make(tmp_path, *MOVEMENT)
    assert caught.value.code == 128 + signal.SIGUSR2
    (file,) = tmp_path.glob(".partial/*.json")
    assert read_json(file)["state"] == "interrupted"
    assert signal.getsignal(signal.SIGUSR2) is handler


@pytest.mark.parametrize(
    ("number", "cause"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")]
)
def test_an_interruption_names_its_cause_and_exit_code(number: signal.Signals, cause: str) -> None:
    error = signals.Interrupted(number)
    assert (error.code, error.cause) == (128 + number, cause)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_in_training_leaves_a_checkpoint_of_that_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Not only of the last evaluation: the step in which it came is the last of the checkpoint."""
    from safetensors import safe_open

    from skillgraft.training import fine_tuning

    kept = fine_tuning.FineTuning.training_step

    def third(self: fine_tuning.FineTuning, batch: dict, batch_idx: int) -> object:
        if batch_idx == 2:
            signal.raise_signal(number)
        return kept(self, batch, batch_idx)

    monkeypatch.setattr(fine_tuning.FineTuning, "training_step", third)
    options = (*MOVEMENT, "finetune.steps=20", "finetune.evaluate_every=20")
    with pytest.raises(signals.Interrupted) as caught:
        make(tmp_path, *options)
    assert caught.value.code == 128 + number
    (file,) = tmp_path.glob(".partial/finetuned-*/resume.safetensors")
    with safe_open(file, framework="pt") as checkpoint:
        assert json.loads(checkpoint.metadata()["progress"])["step"] == 3
    monkeypatch.undo()
    (file,) = tmp_path.glob(".partial/*/seconds.json")
    before = read_json(file)["seconds"]["finetune"]
    resumed = make(tmp_path, *options)
    facts = read_json(resumed / "provenance.json")
    assert facts["attempts"] == 2
    assert facts["seconds"]["finetune"] > before
    whole = make(tmp_path / "whole", *options)
    for name in ("metrics.json", "predictions.parquet", "graft.safetensors"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGINT, signal.SIGTERM),  # Lightning is told of the first by a SIGTERM of our own
        (signal.SIGUSR2, signal.SIGINT),
    ],
)
def test_asked_twice_in_training_a_run_ends_at_once(
    monkeypatch: pytest.MonkeyPatch, first: signal.Signals, second: signal.Signals
) -> None:
    with signals.watching(), signals.between_steps():
        signal.raise_signal(first)
        signal.raise_signal(first)  # at once: sent to the process and to its group, as by timeout
        assert signals.asked == [first]
        monkeypatch.setattr(signals, "TOGETHER", 0.0)
        with pytest.raises(signals.Interrupted) as caught:
            signal.raise_signal(second)
    assert caught.value.code == 128 + second
    assert not signals.asked


def test_a_record_is_whole_at_any_moment(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    with job_state.recorded(file, id=None) as tell:
        assert read_json(file)["state"] == "running"
        tell(id="x")
        assert read_json(file)["id"] == "x"
    assert read_json(file)["state"] == "complete"
    assert read_json(file)["id"] == "x"
    with pytest.raises(InputError), job_state.recorded(file):
        raise InputError("no")
    assert read_json(file)["state"] == "failed"
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


BREAKS = """
import sys
from skillgraft.cli import skillgraft
from skillgraft.experiments.stages import evaluate
kept = evaluate.evaluate
def breaking(selected):
    if selected.finetuned.loaded.inputs.cfg.seed == 21:
        raise ZeroDivisionError("of a test")
    return kept(selected)
evaluate.evaluate = breaking
sys.argv[0] = "skillgraft"
skillgraft.main()
"""


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    """A sweep of three seeds on the command line, logged to W&B, of which the second fails."""
    folder = tmp_path_factory.mktemp("broken")
    options = [o for o in MOVEMENT if not o.startswith("logger")]
    done = subprocess.run(
        [sys.executable, "-c", BREAKS, "-m", "seed=13,21,42", *options],
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    return folder, done


def test_a_job_that_fails_leaves_the_others_running(
    broken: tuple[Path, subprocess.CompletedProcess],
) -> None:
    folder, done = broken
    assert done.returncode == 1
    assert "2 of 3 jobs complete" in done.stdout
    assert "fine-tunings: 3 made, 0 taken from the store" in done.stdout
    assert "failed: seed=21" in done.stderr
    assert "ZeroDivisionError: of a test" in done.stderr
    assert (
        "run the same command to complete only these jobs: skillgraft -m seed=13,21,42"
        in done.stderr
    )
    assert "job 3 of 3, 1 failed" in done.stdout
    (jobs,) = (folder / "runs" / ".jobs").iterdir()
    log = (jobs / "1" / "skillgraft.log").read_text()
    assert "Traceback" in log
    assert "ZeroDivisionError: of a test" in log
    assert "Traceback" not in (jobs / "0" / "skillgraft.log").read_text()
    listed = command("list", "runs", "--json", cwd=folder, program="grafts")
    states = {line["seed"]: line["state"] for line in json.loads(listed.stdout)}
    assert states == {13: "complete", 21: "failed", 42: "complete"}


def test_the_rest_of_a_sweep_is_made_by_the_same_command(
    broken: tuple[Path, subprocess.CompletedProcess],
) -> None:
    folder, _ = broken
    options = [o for o in MOVEMENT if not o.startswith("logger")]
    again = command("-m", "seed=13,21,42", *options, cwd=folder)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("already complete") == 2
    assert "3 of 3 jobs complete" in again.stdout
    assert "fine-tunings: 0 made, 1 taken from the store" in again.stdout


def test_a_sweep_has_a_summary_on_wandb(broken: tuple[Path, subprocess.CompletedProcess]) -> None:
    """One run of job type `sweep`, with the table of its runs and their means over seeds."""
    folder, _ = broken
    (sweep,) = (folder / "runs" / "sweeps").iterdir()
    (file,) = sweep.glob("wandb/offline-run-*/*.wandb")
    program = str(Path(sys.executable).parent / "wandb")
    shown = subprocess.run(
        [program, "leet", "inspect", "--json", str(file)],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    records = [json.loads(line) for line in shown.splitlines()]
    (about,) = (record["run"] for record in records if record["type"] == "run")
    assert about["job_type"] == "sweep"
    assert about["display_name"] == sweep.name
    names = {path.name.split("_")[0] for path in sweep.glob("wandb/*/files/media/table/*")}
    assert names == {"runs", "over"}


def test_what_earlier_jobs_of_a_sweep_may_still_make(tmp_path: Path) -> None:
    """Running, or not started for a moment; not what has ended, was killed, or is silent without a lease."""
    place, job = folders.Store(tmp_path / "runs"), tmp_path / "2"
    files = [tmp_path / str(number) / RUN_FILE for number in range(4)]
    for file in files:
        file.parent.mkdir()
    with job_state.recorded(files[2], id=None) as tell:
        tell()
        own = read_json(files[2])
        assert job_state.earlier(job, place)  # 0 and 1 are to start
        write_json(files[2], own | {"since": time.time() - 2 * job_state.START})
        assert not job_state.earlier(job, place)  # they never will
        write_json(files[3], own)  # a later one does not count
        for ended in ("complete", "failed", "interrupted"):
            write_json(files[0], own | {"state": ended})
            assert not job_state.earlier(job, place)
        write_json(files[1], own)
        assert job_state.earlier(job, place)
        another = {"started": own["started"] - 100, "ticks": -1}  # of its pid
        write_json(files[1], own | another)
        assert not job_state.earlier(job, place)
        elsewhere = own | {"machine": "far", "id": "a-run"}
        write_json(files[1], elsewhere)
        assert job_state.earlier(job, place)
        silent = time.time() - 2 * leases.STALE
        os.utime(files[1], (silent, silent))
        assert not job_state.earlier(job, place)
        with place.lock("a-run"):
            assert job_state.earlier(job, place)
