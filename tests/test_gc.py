"""What of a store can be freed, and that it can be made again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from runs import TINY, make, results
from skillgraft.cli.grafts import app
from skillgraft.runtime import leases
from skillgraft.runtime.files import write_json
from skillgraft.store import garbage, names
from skillgraft.store.folders import Store

pytestmark = pytest.mark.usefixtures("undrawn")


def listing(folder: Path) -> set[str]:
    """Return every file of a store but the empty ones of its locks."""
    files = (f.relative_to(folder) for f in folder.rglob("*") if f.is_file())
    return {str(f) for f in files if f.parts[0] != ".locks"}


def test_gc_lists_then_frees_then_all_can_be_made_again(tmp_path: Path) -> None:
    options = (*TINY, "graft=movement")
    folder = make(tmp_path, *options)
    before, files = results(folder), listing(folder)
    (tmp_path / ".partial" / "killed").mkdir()
    (tmp_path / ".partial" / "killed" / "resume.safetensors").write_bytes(b"x" * 2**20)
    write_json(tmp_path / ".partial" / "killed.json", {"id": "killed", "state": "running"})
    (tmp_path / ".jobs" / "a").mkdir(parents=True)
    write_json(tmp_path / ".jobs" / "a" / names.RUN_FILE, {"id": folder.name})
    for name, number in (("never made", "0"), (None, "1")):
        (tmp_path / ".jobs" / f"b{number}" / "0").mkdir(parents=True)
        write_json(tmp_path / ".jobs" / f"b{number}" / "0" / names.RUN_FILE, {"id": name})
    everything = listing(tmp_path)
    dry = CliRunner().invoke(app, ["gc", str(tmp_path)])
    assert dry.exit_code == 0, dry.output
    assert "nothing freed yet" in dry.stdout
    assert listing(tmp_path) == everything
    kinds = {item.folder.name: item.kind for item in garbage.freeable(Store(tmp_path))}
    (weights,) = (tmp_path / ".finetuned").iterdir()
    assert kinds == {
        ".cache": "cache", weights.name: "fine-tuned weights", "killed": "partial run",
        "a": "job folder",
    }  # fmt: skip
    done = CliRunner().invoke(app, ["gc", str(tmp_path), "--yes", "--json"])
    said = json.loads(done.stdout)
    assert (said["freed"], len(said["items"])) == (4, 4)
    assert {line["what"]: line["MiB"] for line in said["items"]}["partial run"] == 1
    failed = {".jobs/b0/0/run.json", ".jobs/b1/0/run.json"}
    assert listing(tmp_path) == {f"{folder.name}/{f}" for f in files} | failed
    assert make(tmp_path, *options, "force=true") == folder
    assert results(folder) == before


def test_gc_leaves_what_is_being_made(tmp_path: Path) -> None:
    place = Store(tmp_path)
    for folder in (place.partial("mine"), place.partial("killed"), place.finetuned("0")):
        folder.mkdir(parents=True, exist_ok=True)
    with place.lock("mine"):
        assert [item.folder.name for item in garbage.freeable(place)] == ["killed"]
        stale = garbage.Item("partial run", place.partial("mine"), 0, "mine")
        assert not garbage.free(place, stale), "its lock was taken after it had been listed"
    assert [item.folder.name for item in garbage.freeable(place)] == ["0", "killed", "mine"]


def test_gc_leaves_what_a_run_that_came_meanwhile_may_read(tmp_path: Path) -> None:
    place = Store(tmp_path)
    for folder in (place.cache, place.finetuned("0")):
        folder.mkdir(parents=True)
    items = garbage.freeable(place)
    assert [item.kind for item in items] == ["cache", "fine-tuned weights"]
    with place.lock("run"):  # past its fine-tuning, whose lock it has let go
        assert not any(garbage.free(place, item) for item in items)
    assert all(item.folder.is_dir() for item in items)
    assert all(garbage.free(place, item) for item in items)
    assert garbage.freeable(place) == []


def test_gc_frees_the_locks_of_processes_that_are_gone(tmp_path: Path) -> None:
    """Also an empty one, of a process killed while it let go, and a waiter's; not of those that live."""
    place, gone = Store(tmp_path), leases.record_of_this_process() | {"started": 0.0, "ticks": -1}
    for name, record in (("killed", gone), ("empty", None)):
        place.lease(name).mkdir(parents=True)
        if record:
            write_json(place.lease(name) / "token", record)
    for token, record in (("killed waiter", gone), ("waiter", leases.record_of_this_process())):
        (tmp_path / ".locks" / token).mkdir()
        write_json(tmp_path / ".locks" / token / token, record)
    with place.lock("mine"):
        items = garbage.freeable(place)
        assert [(item.kind, item.folder.stem) for item in items] == [
            ("lock", "empty"), ("lock", "killed"), ("lock", "killed waiter"),
        ]  # fmt: skip
        assert all(garbage.free(place, item) for item in items)
        assert {path.name for path in (tmp_path / ".locks").iterdir()} == {"mine.lock", "waiter"}
        assert leases.holder(place.lease("mine"))


def test_gc_leaves_a_run_that_a_kill_set_aside(tmp_path: Path) -> None:
    aside = Store(tmp_path).partial("run.old")
    write_json(aside / "status.json", {})
    assert garbage.freeable(Store(tmp_path)) == []
    Store(tmp_path).run("run").mkdir()
    assert [item.folder for item in garbage.freeable(Store(tmp_path))] == [aside]


def test_gc_leaves_the_job_folders_that_a_sweep_still_reads(tmp_path: Path) -> None:
    place, job = Store(tmp_path), tmp_path / ".jobs" / "x"
    for number in (0, 1):
        (job / str(number)).mkdir(parents=True)
        write_json(job / str(number) / names.RUN_FILE, {"id": f"run{number}"})
        place.run(f"run{number}").mkdir()
        write_json(place.run(f"run{number}") / "status.json", {})
    (place.sweeps / "s").mkdir(parents=True)
    record = place.sweeps / "s" / "record.json"
    write_json(record, {"jobs": str(job), "runs": []})
    assert garbage.freeable(place) == []
    write_json(record, {"jobs": str(job), "runs": ["run0", "run1"]})
    assert [item.folder for item in garbage.freeable(place)] == [job]
