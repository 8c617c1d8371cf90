"""Real processes: killed and started again, and two that want the same run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runs import SMALL, command
from skillgraft.runtime import files
from skillgraft.store import checksums

PROGRAM = str(Path(sys.executable).parent / "skillgraft")
SAME = ("metrics.json", "predictions.parquet", "graft.safetensors", "history.json")
# Long enough to be caught in the act, each stage with several checkpoints.
SLOW = (
    *(o for o in SMALL if not o.startswith(("finetune.steps", "graft.steps"))),
    "finetune.steps=150",
    "graft.steps=60",
    "task.ood=[]",
    "logger=none",
)


def whole(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if not path.name.startswith(".")]


def start(root: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [PROGRAM, f"store={root}", *SLOW],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("unbroken")
    done = command(f"store={place}", *SLOW, cwd=place)
    assert done.returncode == 0, done.stderr
    return whole(place)[0]


@pytest.mark.parametrize(
    ("checkpoint", "number", "code"),
    [
        ("resume.safetensors", signal.SIGKILL, -signal.SIGKILL),
        ("mask.safetensors", signal.SIGKILL, -signal.SIGKILL),
        ("resume.safetensors", signal.SIGINT, 128 + signal.SIGINT),
        ("mask.safetensors", signal.SIGTERM, 128 + signal.SIGTERM),
    ],
)
def test_killed_run_ends_with_the_same_bits(
    unbroken: Path, tmp_path: Path, checkpoint: str, number: signal.Signals, code: int
) -> None:
    """Killed or stopped in fine-tuning, and in mask training, right after a checkpoint."""
    process = start(tmp_path)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(f".partial/*/{checkpoint}")):
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait() == code
    assert whole(tmp_path) == []
    (record,) = (files.read_json(path) for path in tmp_path.glob(".partial/*.json"))
    stopped = number != signal.SIGKILL  # which leaves no time to say anything
    assert record["state"] == ("interrupted" if stopped else "running")
    (job,) = (files.read_json(path) for path in tmp_path.glob(".jobs/*/run.json"))
    assert (job["state"], job["id"]) == (record["state"], record["id"])
    again = command(f"store={tmp_path}", *SLOW, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert not list(tmp_path.glob(".partial/*"))
    (folder,) = whole(tmp_path)
    assert folder.name == unbroken.name
    for name in SAME:
        assert (folder / name).read_bytes() == (unbroken / name).read_bytes(), name


def test_two_processes_make_a_run_once(tmp_path: Path) -> None:
    processes = [start(tmp_path) for _ in range(2)]
    assert [process.wait(timeout=200) for process in processes] == [0, 0]
    (folder,) = whole(tmp_path)
    logs = [p.read_text() for p in tmp_path.glob(".jobs/*/*.log")]
    assert len(logs) == 2
    assert sum("fine-tuning:" in log for log in logs) == 1
    assert sum("already complete" in log for log in logs) == 1
    assert (folder / "status.json").is_file()


@pytest.mark.long
def test_killed_at_twenty_random_moments(unbroken: Path, tmp_path: Path) -> None:
    """Started, killed and started again, wherever it is: what is whole at last has the same bits."""
    moments, kills, made = random.Random(0), 0, 0
    while kills < 20:
        root = tmp_path / str(made)
        root.mkdir()
        made += 1
        while not whole(root):
            process = start(root)
            try:  # it takes about twenty seconds unbroken, a third of them imports
                assert process.wait(timeout=moments.uniform(3, 20)) == 0
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
        (folder,) = whole(root)
        for name in SAME:
            assert (folder / name).read_bytes() == (unbroken / name).read_bytes(), (name, kills)
        assert checksums.verify(folder) == []
