"""Leases between real processes: one owner at a time, and none for ever."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from skillgraft.runtime import leases
from skillgraft.store.folders import Store
from skillgraft.training.checkpoints import write_tensors

# Adds one to a number in a file, slowly, so that two at a time would lose an addition.
ADD = """
import sys, time
from pathlib import Path
from skillgraft.runtime import leases
path, counter = map(Path, sys.argv[1:3])
leases.POLL = 0.01
for _ in range(int(sys.argv[3])):
    with leases.hold(path):
        number = int(counter.read_text())
        time.sleep(0.01)
        counter.write_text(str(number + 1))
"""
HOLD = """
import sys, time
from pathlib import Path
from skillgraft.runtime import leases
with leases.hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""
KILLED = """
import os, signal, sys
from pathlib import Path
from skillgraft.runtime import leases
STEP = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
with leases.hold(Path(sys.argv[1])):
    pass
"""
FORK = """
import os, sys
from pathlib import Path
from skillgraft.runtime import leases
with leases.hold(Path(sys.argv[1])) as held:
    if os.fork() == 0:
        held.release()
        os._exit(0)
    os.wait()
    held.check()
"""


def later_of_its_pid() -> dict[str, Any]:
    """Return the record of a process that has ended, whose pid is this one's now."""
    own = leases.record_of_this_process()
    return own | {"started": own["started"] - 1000, "ticks": -1}


def program(text: str, *arguments: object, **options: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", text, *map(str, arguments)], text=True, **options
    )


def leave(path: Path, age: float = 0.0, **record: object) -> Path:
    """Leave a lease of another host, last touched `age` seconds ago."""
    path.mkdir(parents=True)
    file = path / "0123"
    file.write_text(json.dumps({"host": "far", "machine": "far", "pid": 1, "started": 0, **record}))
    then = file.stat().st_mtime - age
    os.utime(file, (then, then))
    return file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".locks" / "run-s0.01.lock"


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "POLL", 0.02)


def taken_within(path: Path, seconds: float) -> bool:
    """Return whether a thread gets the lease in that time, and have it given up again."""
    got, over = threading.Event(), threading.Event()

    def want() -> None:
        with leases.hold(path):
            got.set()
            over.wait(30)

    thread = threading.Thread(target=want, daemon=True)
    thread.start()
    result = got.wait(seconds)
    over.set()
    if result:
        thread.join()
    return result


@pytest.mark.parametrize(
    "step",
    ["Path.write_text", "Path.rename", "leases.Lease.__init__", "Path.unlink", "Path.rmdir"],
)
def test_owner_killed_at_any_step_blocks_nobody(path: Path, step: str) -> None:
    """Before the record, before and after the lease is acquired, and before and within the release."""
    assert program(KILLED.replace("STEP", step), path).wait(timeout=60) == -signal.SIGKILL
    assert taken_within(path, 5)


def test_live_owner_of_another_machine_with_the_same_host_name_keeps_it(path: Path) -> None:
    gone = later_of_its_pid()
    leave(path, **(gone | {"machine": "another boot"}))
    assert leases.holder(path) is not None
    assert not taken_within(path, 0.3)


def test_many_processes_have_it_one_at_a_time(path: Path, tmp_path: Path) -> None:
    """They start from a stale lease, which all of them see at about the same time."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    leave(path, age=100)
    processes = [program(ADD, path, counter, 15) for _ in range(6)]
    assert [process.wait(timeout=120) for process in processes] == [0] * 6
    assert counter.read_text() == "90"
    assert list(path.parent.iterdir()) == []


def test_release_leaves_nothing(path: Path) -> None:
    with leases.hold(path):
        record = leases.holder(path)
        assert record is not None
        assert record["pid"] == os.getpid()
        assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert list(path.parent.iterdir()) == []
    assert leases.holder(path) is None
    with pytest.raises(KeyError), leases.hold(path):
        raise KeyError
    assert list(path.parent.iterdir()) == []


def test_killed_owner_on_the_same_host_is_followed_at_once(path: Path) -> None:
    """Also where nobody has waited for the killed process, as for a job of a launcher that lives."""
    process = program(HOLD, path, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    assert leases.holder(path) is not None
    assert not taken_within(path, 0.3)
    process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while leases.holder(path) is not None:
        assert time.monotonic() < deadline
    assert taken_within(path, 5)
    process.communicate()


def test_without_waiting(path: Path) -> None:
    with leases.at_once(path) as mine, leases.at_once(path) as again:
        assert (mine, again) == (True, False)
        assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert list(path.parent.iterdir()) == []
    leave(path, age=100)
    with leases.at_once(path) as mine:
        assert mine


def test_reused_pid_is_not_the_owner(path: Path) -> None:
    leave(path, **later_of_its_pid())
    assert leases.holder(path) is None
    assert taken_within(path, 5)


def test_a_step_of_the_clock_robs_no_owner() -> None:
    """It moves the boot's time, and with it the times of all starts; records had no ticks once."""
    own = leases.record_of_this_process()
    stepped = own | {"started": own["started"] - 3600}
    assert leases.is_gone(stepped) == (own["ticks"] is None)
    assert leases.is_gone(later_of_its_pid())
    for without in ({n: v for n, v in r.items() if n != "ticks"} for r in (own, stepped)):
        assert leases.is_gone(without) == (without["started"] != own["started"])


def test_other_host_is_judged_by_its_last_touch(path: Path) -> None:
    file = leave(path, age=leases.STALE - 20)
    assert leases.holder(path) is not None
    assert not taken_within(path, 0.3)
    assert file.exists()
    os.utime(file, (file.stat().st_mtime - 30,) * 2)
    assert leases.holder(path) is None
    assert taken_within(path, 5)
    assert not file.exists()


def test_damaged_record_is_judged_by_its_last_touch(path: Path) -> None:
    file = leave(path)
    file.write_text("{")
    assert leases.holder(path) == {}
    os.utime(file, (0, 0))
    assert taken_within(path, 5)


def test_late_taker_removes_no_fresh_lease(path: Path) -> None:
    """Whoever saw a stale lease and acts on it after another has taken over does nothing."""
    leave(path, age=100)
    seen = leases.look(path)
    assert seen is not None
    with leases.hold(path) as fresh:
        with pytest.raises(FileNotFoundError):
            seen[0].unlink()
        fresh.check()


def test_heartbeat_keeps_it_beyond_the_limit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT", 0.05)
    monkeypatch.setattr(leases, "STALE", 0.6)
    monkeypatch.setattr(leases, "machine", lambda: os.urandom(4).hex())  # as if on different hosts
    with leases.hold(path):
        assert not taken_within(path, 1.5)


def test_owner_that_was_silent_publishes_nothing(tmp_path: Path) -> None:
    place = Store(tmp_path)
    partial = place.partial("a")
    with place.lock("a"):
        (file,) = place.lease("a").iterdir()
        file.unlink()  # what whoever takes over does
        another = leave(tmp_path / "another")
        another.parent.rename(place.lease("a"))
        with pytest.raises(leases.LeaseLost, match="a: another process took over"):
            place.publish(partial, place.run("a"), {})
    assert not place.run("a").exists()
    assert (place.lease("a") / another.name).exists()  # release removes its own alone


def test_owner_that_was_silent_writes_no_checkpoint(tmp_path: Path) -> None:
    """Not over that of the process which took over, whichever of its leases it lost."""
    place, file = Store(tmp_path), tmp_path / "resume.safetensors"
    with place.lock("run"), place.lock("finetuned-a"):
        write_tensors(file, {"a": torch.zeros(1)}, {})
        before = file.read_bytes()
        next(place.lease("run").iterdir()).unlink()
        with pytest.raises(leases.LeaseLost, match="run: another process took over"):
            write_tensors(file, {"a": torch.ones(1)}, {})
    assert file.read_bytes() == before
    write_tensors(
        file, {"a": torch.ones(1)}, {}
    )  # what this process no longer wants is not checked


def test_forked_child_leaves_the_lease_of_its_parent(path: Path) -> None:
    assert program(FORK, path).wait(timeout=60) == 0


def test_empty_file_of_an_earlier_version_is_in_nobodys_way(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.touch()
    assert leases.holder(path) is None
    assert taken_within(path, 5)
