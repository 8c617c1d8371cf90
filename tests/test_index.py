"""The index answers as the folders do, whatever happened to them or to it."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from skillgraft.analysis import collect, tables
from skillgraft.evaluation.intervals import over_seeds
from skillgraft.store import index, metric_names
from skillgraft.store.folders import Store
from stores import add, metrics, status


def answers(root: Path, n: int = 0) -> list[Any]:
    """Return what the index says in each of its ways, for comparison."""
    key = ("same_but_selector", status(n)["same_but_selector"])
    return [
        list(index.runs(root)),
        list(index.runs(root, *key)),
        dict(index.rows(root)),
        index.columns(root, ["id", "graft/test/accuracy", "graft/test/relative_gain", "none"]),
    ]


def check(root: Path, n: int = 0) -> list[dict[str, Any]]:
    """Check every answer against the files themselves, and return the status records."""
    folders = sorted(p.parent for p in root.glob("[!.]*/status.json"))
    read = [
        [json.loads((f / f"{n}.json").read_text()) for n in ("status", "metrics", "overlap")]
        for f in folders
    ]
    table = {
        f.name: metric_names.row_of(*records) for f, records in zip(folders, read, strict=True)
    }
    runs, alike, rows, columns = answers(root, n)
    assert runs == [records[0] for records in read]
    assert alike == [
        run for run in runs if run["same_but_selector"] == status(n)["same_but_selector"]
    ]
    assert {name: json.loads(row) for name, row in rows.items()} == table
    assert columns == [
        (r["id"], r["graft/test/accuracy"], r["graft/test/relative_gain"], None)
        for r in table.values()
    ]
    return runs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for n in range(12):
        add(tmp_path, n)
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "a_file").touch()
    return tmp_path


def test_added_replaced_and_deleted(root: Path) -> None:
    assert len(check(root)) == 12
    add(root, 12)
    assert len(check(root, 12)) == 13
    name = status(3)["id"]
    (root / name).rename(root / ".partial" / "old")
    assert len(check(root, 3)) == 12
    add(root, 3, seed=99)
    assert [run["seed"] for run in check(root, 3) if run["id"] == name] == [99]
    shutil.rmtree(root / name)
    assert name not in [run["id"] for run in check(root, 3)]
    (root / status(5)["id"] / "status.json").unlink()
    assert len(check(root, 5)) == 11


def test_altered_below_the_root_once_the_index_has_settled(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The root's time says nothing of it; a run that is found is looked at itself."""
    monkeypatch.setattr(index, "SETTLED", -1.0)
    check(root, 4)
    for change in (lambda f: f.write_text(f.read_text().replace("tiny", "mini")), Path.unlink):
        change(root / status(4)["id"] / "status.json")
        (run,) = [
            r["model"]
            for r in index.runs(root, "same_but_selector", status(4)["same_but_selector"])
        ] or ["none"]
        assert run in ("mini", "none")
        check(root, 4)


def test_settled_index_reads_no_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(root)  # makes the folder .cache in the root
    os.utime(root, (0, 0))
    expected = check(root, 4)
    calls = []
    monkeypatch.setattr(index, "list_stamps", lambda root: calls.append(root) or {})
    assert list(index.runs(root, "region", status(4)["region"])) == [expected[4]]
    assert not calls
    monkeypatch.undo()
    os.utime(root, (1, 1))
    check(root, 4)


def test_two_changes_in_one_tick_of_the_clock(root: Path) -> None:
    """An index made in the same moment as a change does not rely on the root's time."""
    check(root)
    time = root.stat().st_mtime_ns
    add(root, 20)
    os.utime(root, ns=(time, time))
    assert len(list(index.runs(root, "same_but_selector", status(20)["same_but_selector"]))) == 1


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + b"x" * 5000])
def test_damaged_index_is_made_anew(root: Path, content: bytes) -> None:
    check(root)
    file = root / ".cache" / "index.sqlite"
    file.write_bytes(content)
    check(root)
    with sqlite3.connect(file) as db:
        assert db.execute("SELECT count(*) FROM runs").fetchone() == (12,)
    db.close()


def test_page_damaged_in_the_middle(root: Path) -> None:
    for n in range(20, 60):
        add(root, n)
    check(root)
    file = root / ".cache" / "index.sqlite"
    pages = bytearray(file.read_bytes())
    pages[4096:-4096] = b"\xff" * (len(pages) - 8192)
    file.write_bytes(pages)
    check(root)


def test_index_of_another_version_is_made_anew(root: Path) -> None:
    (root / ".cache").mkdir()
    with sqlite3.connect(root / ".cache" / "index.sqlite") as db:
        db.execute("CREATE TABLE runs (name TEXT)")
        db.execute("PRAGMA user_version = 999")
    db.close()
    check(root)


def test_store_whose_index_cannot_be_written(root: Path) -> None:
    (root / ".cache").touch()  # for root, too, who may write into any folder
    check(root)
    add(root, 12)
    assert len(check(root)) == 13


def test_absent_and_empty_store(tmp_path: Path) -> None:
    assert answers(tmp_path / "none") == answers(tmp_path) == [[], [], {}, []]
    assert not (tmp_path / "none").exists()
    assert collect.collect(Store(tmp_path)).empty


def adding(root: str, numbers: range) -> None:
    for n in numbers:
        add(Path(root), n)
        assert status(n)["id"] in {run["id"] for run in index.runs(Path(root))}
        assert (
            len(list(index.runs(Path(root), "same_but_selector", status(n)["same_but_selector"])))
            == 1
        )


def test_two_processes_add_and_ask(tmp_path: Path) -> None:
    """They begin with no index, which both of them make."""
    spawn = multiprocessing.get_context("spawn")
    parts = [range(10 * i, 10 * i + 10) for i in range(2)]
    processes = [spawn.Process(target=adding, args=(str(tmp_path), part)) for part in parts]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(check(tmp_path)) == 20


def test_table_over_seeds(root: Path) -> None:
    """Against a plain computation, one cell at a time."""
    frame = collect.collect(Store(root))
    assert frame["id"].tolist() == sorted(status(n)["id"] for n in range(12))
    names = ["graft/test/accuracy", "graft/test/relative_gain", "region/size"]
    table, exact = (tables.over_seeds(frame, names, f) for f in (tables.cell, tables.numbers))
    assert table["n"].tolist() == [5, 5, 2]
    for _, line in table.iterrows():
        measured = [metrics(n) for n in range(12) if status(n)["task"] == line["task"]]
        accuracy = [m["graft"]["test"]["accuracy"] for m in measured]
        size = [m["region"]["size"] for m in measured]
        for name, values, form in ((names[0], accuracy, ".3f"), (names[2], size, ",.0f")):
            found = over_seeds(values)
            assert found is not None
            assert line[name] == f"{found.mean:{form}} ± {found.high - found.mean:{form}}"
            numbers = exact.loc[line.name, name]
            assert numbers == pytest.approx(vars(found))
        assert line[names[1]] == ("1.000" if line["n"] == 2 else "1.000 ± 0.000")  # n=11 has none
    one = tables.over_seeds(frame[:1], names)
    assert "±" not in one[names[0]][0]
    (alone,) = tables.over_seeds(frame[:1], names, tables.numbers)[names[0]]
    assert (alone["low"], alone["high"], alone["n"]) == (None, None, 1)
    none = tables.over_seeds(frame.assign(**{names[1]: pd.Series(None, dtype=object)}), names)
    assert set(none[names[1]]) == {"–"}


def test_only_some_runs(root: Path) -> None:
    ids = [status(n)["id"] for n in (2, 7)]
    assert collect.collect(Store(root), ids)["id"].tolist() == sorted(ids)
