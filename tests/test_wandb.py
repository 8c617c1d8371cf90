"""What a sweep leaves for W&B: read back, named in the README, shown on dashboards, and sent later."""

from __future__ import annotations

import functools
import json
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from runs import TINY, command, make
from typer.testing import CliRunner
from wandb_server import serving

from skillgraft import compare, dashboard, figure, grafts, index, store, sweep, sync
from skillgraft.errors import InputError
from skillgraft.store import Store
from skillgraft.verdict import Outcome, Statement

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
LEARNED = (
    *(option for option in TINY if not option.startswith(("logger", "task.ood"))),
    "task.ood=[toy_gadget]",
    "graft.steps=2",
    "graft.examples=8",
    "graft.batch_size=4",
    "graft.score_every=1",
)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a sweep of two tasks, a claim's figure, and the W&B runs of all three."""
    root = tmp_path_factory.mktemp("store") / "runs"
    runs = [make(root, *LEARNED, f"task={task}").name for task in ("toy_film", "toy_book")]
    folder = root / "sweeps" / "sweep-0123456789"
    folder.mkdir(parents=True)
    record = {
        "name": "sweep",
        "command": "skillgraft -m task=toy_film,toy_book",
        "overrides": ["task=toy_film,toy_book"],
        "axes": {},
        "claim": {"name": "made_up"},
        "logger": {"mode": "offline", "project": "skillgraft", "entity": None, "tags": []},
        "jobs": str(root / ".jobs" / "none"),
        "planned": [],
        "started": 0.0,
        "runs": runs,
    }
    store.write_json(folder / "record.json", record)
    figure.save(Figure(figsize=(1, 1)), folder / "figure.png")
    statement = Statement("made up: of two seeds", "–", {13: 0.5, 21: 0.6})
    outcome = Outcome([statement], pd.DataFrame({"task": ["a"], "value": [0.5]}), Figure)
    sweep.summarize(folder, record, compare.collect(Store(root), runs), outcome)
    return root


@functools.cache
def inspect(file: Path) -> dict[str, Any]:
    """Return what W&B's own reader finds in a record: summary, configuration, state."""
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", "--summary", str(file)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def record_of(folder: Path) -> Path:
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    return file


def rows_of(file: Path) -> list[dict[str, Any]]:
    """Return the rows of the history of a record, without W&B's own names."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows = []
    for content in sync.read_log(file.read_bytes()):
        items = Record.FromString(content).history.item
        row = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
        rows.append({name: value for name, value in row.items() if not name.startswith("_")})
    return [row for row in rows if row]


def runs_of(root: Path) -> list[Path]:
    return [Store(root).run(status["id"]) for status in Store(root).runs()]


@pytest.fixture(scope="module")
def told(swept: Path) -> dict[str, set[str]]:
    """The names that the sweep's runs have in each place, as the README calls the places."""
    names: dict[str, set[str]] = {}
    for folder in runs_of(swept):
        metrics, overlap = (store.read_json(folder / f"{n}.json") for n in ("metrics", "overlap"))
        names.setdefault("metrics.json", set()).update(index.flatten(metrics))
        names.setdefault("overlap.json", set()).update(index.flatten({"overlap": overlap}))
        summary = inspect(record_of(folder))["summary"]
        names.setdefault("summary", set()).update(n for n in summary if not n.startswith("_"))
        for row in rows_of(record_of(folder)):
            # media have their facts below their name
            known = {
                n.split("/")[0] if n.startswith(("reliability", "overlap_")) else n for n in row
            }
            names.setdefault("history", set()).update(known)
    (folder,) = (swept / "sweeps").iterdir()
    summary = inspect(record_of(folder))["summary"]
    names["sweep"] = {name for name in summary if not name.startswith("_")}
    status = store.read_json(runs_of(swept)[0] / "status.json")
    (first, *rest) = [json.loads(row) for _, row in index.rows(swept)]
    found = set(first).union(*rest) - set(status)
    names["index"] = {name for name in found if not name.startswith("config/")}
    return names


# --------------------------------------------------------------------------------- read back


def test_the_records_of_a_sweep_have_what_its_runs_have(swept: Path) -> None:
    """By W&B's own reader: summary, configuration, group, curves; and the sweep's table of runs."""
    for folder in runs_of(swept):
        status, metrics, overlap = (
            store.read_json(folder / f"{name}.json") for name in ("status", "metrics", "overlap")
        )
        found = inspect(record_of(folder))
        expected = index.measured(metrics, overlap)
        assert expected["graft/test/score"] == metrics["graft"]["test"]["accuracy"]
        for name, value in expected.items():
            assert found["summary"].get(name) == value, name
        config = found["config"]
        assert config["task"]["name"] == status["task"]
        assert config["graft"]["selector"] == status["selector"]
        assert (config["sparsity"], config["seed"]) == (status["sparsity"], status["seed"])
        curves = [row for row in rows_of(record_of(folder)) if "graft/step" in row]
        kept = store.read_json(folder / "history.json")
        assert curves == kept
        tuned = Store(swept).finetuned(status["finetuned"]) / "history.json"
        steps = [row for row in rows_of(record_of(folder)) if "finetune/step" in row]
        assert steps == store.read_json(tuned)
        (point,) = [row for row in rows_of(record_of(folder)) if "graft/test/score" in row]
        assert point == {name: expected[name] for name in point}
        assert point["region/size"] == metrics["region"]["size"]
    (folder,) = (swept / "sweeps").iterdir()
    (table,) = folder.glob("wandb/offline-run-*/files/media/table/runs_*.json")
    shown = json.loads(table.read_text())
    assert len(shown["data"]) == 2
    for line in shown["data"]:
        row = dict(zip(shown["columns"], line, strict=True))
        metrics = store.read_json(swept / row["id"] / "metrics.json")
        flat = index.flatten(metrics)
        assert {n: row[n] for n in store.MEASURES} == {n: flat[n] for n in store.MEASURES}


# ------------------------------------------------------------------------------ metric names

PLACEHOLDERS = {
    "model": r"(pretrained|finetuned|graft|(finetuned|graft)_scaled|wise_[\d.]+|(lottery|inside)_\d+)",
    "other": r"(graft|(finetuned|graft)_scaled|wise_[\d.]+|(lottery|inside)_\d+)",
    "split": "(validation|test|(ood|tasks)/[^/]+)",
    "task": "[^/]+",
    "part": "[^/]+",
    "metric": "(accuracy|f1|matthews|score|ece|nll|brier)",
    "statement": ".+",
    "value": "(mean|low|high|n)",
}


def readme_names() -> list[tuple[list[str], bool, list[str]]]:
    """Return the rows of the README's table: patterns, whether an option is needed, and places."""
    table = README.split("<!-- names -->\n")[1].split("\n\n")[0].splitlines()[2:]
    rows = []
    for line in table:
        names, what, _, where = (cell.strip() for cell in line.strip("|").split("|"))
        patterns = [
            "".join(
                PLACEHOLDERS[part[1:-1]] if part.startswith("<") else re.escape(part)
                for part in re.split(r"(<\w+>)", name)
            )
            for name in re.findall("`([^`]+)`", names)
        ]
        rows.append((patterns, "with `" in what, where.split(", ")))
    return rows


def test_the_readme_has_every_name_and_no_other(told: dict[str, set[str]]) -> None:
    """Every name that a run has somewhere is in a row for that place; every pattern has a name there."""
    rows = readme_names()
    assert {place for _, _, places in rows for place in places} == set(told)
    for place, names in told.items():
        patterns = [p for found, _, places in rows if place in places for p in found]
        assert not {n for n in names if not any(re.fullmatch(p, n) for p in patterns)}, place
    for patterns, optional, places in rows:
        for place in () if optional else places:
            for pattern in patterns:
                assert any(re.fullmatch(pattern, name) for name in told[place]), (place, pattern)


def test_what_is_measured_has_one_name(swept: Path, told: dict[str, set[str]]) -> None:
    """What the files have is in the index, that is in W&B's summary, and beside it only curves are."""
    assert told["metrics.json"] | told["overlap.json"] < told["index"]
    rows = [json.loads(row) for _, row in index.rows(swept)]
    defined = {name for row in rows for name, value in row.items() if value is not None}
    assert told["index"] & defined <= told["summary"]
    curves = {n for n in told["history"] if not n.startswith("graft/test/")}
    assert told["summary"] - told["index"] <= curves


# -------------------------------------------------------------------------------- dashboards


def panels_of(specification: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the panels of a specification: `run` and `sweep` by the runs that they are filtered for."""
    section = specification["workspace"]["spec"]["section"]
    assert [f["value"] for f in section["runSets"][0]["filters"]["filters"]] == ["run"]
    found = {"run": [p for s in section["panelBankConfig"]["sections"] for p in s["panels"]]}
    for report in specification["reports"]:
        (grid,) = (b for b in report["spec"]["blocks"] if b["type"] == "panel-grid")
        (runs,) = grid["metadata"]["runSets"]
        (job_type,) = (f["value"] for f in runs["filters"]["filters"])
        panels = grid["metadata"]["panelBankSectionConfig"]["panels"]
        found[job_type] = found.get(job_type, []) + panels
    return found


def keys_of(panel: dict[str, Any]) -> list[tuple[str, str]]:
    """Return where a panel takes what from: `history`, `summary`, `config`, `media` or `table`."""
    config = panel["config"]
    keys = []
    if group := config.get("groupBy"):
        keys.append(("config", group))
    match panel["viewType"]:
        case "Run History Line Plot":
            keys += [("history", name) for name in (config["xAxis"], *config["metrics"])]
        case "Scatter Plot":
            keys += [tuple(config[axis].split(":")) for axis in ("xAxis", "yAxis")]
        case "Parallel Coordinates Plot":
            keys += [tuple(column["accessor"].split(":")) for column in config["columns"]]
        case "Bar Chart" | "Scalar Chart":
            keys += [tuple(m.replace("_metrics.", ":").split(":")) for m in config["metrics"]]
        case "Media Browser":
            keys += [("media", name) for name in config["mediaKeys"]]
        case "Weave":
            keys.append(("table", config["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]["val"]))
        case other:
            raise AssertionError(other)
    return keys


def logged(folders: Collection[Path]) -> dict[str, set[str]]:
    """Return what some W&B runs have, as `keys_of` calls it."""
    found: dict[str, set[str]] = {
        n: set() for n in ("history", "summary", "config", "media", "table")
    }

    def walk(node: dict[str, Any], prefix: str) -> None:
        for name, value in node.items():
            path = f"{prefix}.{name}" if prefix else f"{name}.value"  # as W&B's app names them
            found["config"].add(path)
            if isinstance(value, dict):
                walk(value, path)

    for folder in folders:
        told = inspect(record_of(folder))
        for name, value in told["summary"].items():
            kind = value.get("_type") if isinstance(value, dict) else None
            kinds = {"image-file": "media", "table-file": "table"}
            found[kinds.get(kind or "", "summary")].add(name)
        walk(told["config"], "")
        found["history"].update(name for row in rows_of(record_of(folder)) for name in row)
    return found


def test_a_dashboard_names_only_what_runs_log(swept: Path) -> None:
    """Each key of each panel is where the panel looks for it, in a real record."""
    names = dashboard.names_of(Store(swept))
    panels = panels_of(dashboard.specification("skillgraft", "", names))
    known = {"run": logged(runs_of(swept)), "sweep": logged(list((swept / "sweeps").iterdir()))}
    asked = {(kind, key) for kind in panels for panel in panels[kind] for key in keys_of(panel)}
    wrong = [(kind, place, name) for kind, (place, name) in asked if name not in known[kind][place]]
    assert not wrong
    wanted = {
        ("history", "region/size"), ("history", "graft/test/score"), ("config", "sparsity.value"),
        ("config", "task.value.name"), ("config", "model.value.name"), ("config", "seed.value"),
        ("config", "graft.value.selector"), ("summary", "graft/test/ece"),
        ("summary", "graft/test/accuracy"), ("summary", "overlap/toy_film/iou"),
        ("summary", "graft/ood/toy_gadget/score"), ("media", "overlap_map"), ("media", "reliability"),
    }  # fmt: skip
    assert wanted <= {key for kind, key in asked if kind == "run"}


def test_the_specification_is_the_same_each_time_and_a_file(swept: Path, tmp_path: Path) -> None:
    file, arguments = tmp_path / "board.json", ["dashboard", "mine", "--entity", "me"]
    done = CliRunner().invoke(grafts.app, [*arguments, "--store", str(swept), "--out", str(file)])
    assert done.exit_code == 0, done.output
    names = dashboard.names_of(Store(swept))
    content = dashboard.specification("mine", "me", names)
    assert store.read_json(file) == content
    assert (content["workspace"]["project"], content["workspace"]["entity"]) == ("mine", "me")
    titles = [report["displayName"] for report in content["reports"]]
    assert titles == [f"skillgraft: {part.title}" for part in dashboard.PARTS]
    # without a store: the panels on a task's own names are not there, nor a report without any
    bare = dashboard.specification("mine", "me", set())
    assert len(bare["reports"]) == len(titles) - 1
    assert "toy_" not in json.dumps(bare)


def test_a_dashboard_without_its_library_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [n for n in sys.modules if n.startswith("wandb_workspaces")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)  # as if it were not there
    with pytest.raises(InputError, match=r"skillgraft\[dashboard\]"):
        dashboard.specification("mine", "me", set())


# -------------------------------------------------------------------------------------- sync


@given(st.lists(st.integers(0, 3 * 2**15) | st.integers(2**15 - 30, 2**15 + 30), max_size=6))
def test_a_log_is_read_as_it_was_written(sizes: list[int]) -> None:
    """Any records, also those that end at or near the end of a block."""
    records = [bytes([n % 251]) * size for n, size in enumerate(sizes)]
    log = sync.write_log(b":W&B\xe1\xbe\x00", records)
    assert sync.read_log(log) == records


def test_a_log_is_framed_as_wandb_does(swept: Path) -> None:
    """The same bytes again from what was read; damage is an error that names the place."""
    log = record_of(runs_of(swept)[0]).read_bytes()
    assert sync.write_log(log[:7], sync.read_log(log)) == log
    altered = bytearray(log)
    altered[100] ^= 1
    for broken in (bytes(altered), log[:-3], log[: len(log) // 2]):
        with pytest.raises(ValueError, match=r"cut off|altered|no end"):
            sync.read_log(broken)
    with pytest.raises(ValueError, match="not a W&B record"):
        sync.read_log(b"something else")
    (checksum,) = struct.unpack_from("<I", log, 7)
    (size,) = struct.unpack_from("<H", log, 11)
    assert checksum == zlib.crc32(log[13 : 14 + size])


@pytest.fixture
def moved(swept: Path, tmp_path: Path) -> Iterator[Path]:
    """The store at another place, the old one being gone for those who only know paths."""
    root = tmp_path / "elsewhere"
    shutil.copytree(swept, root)
    shutil.rmtree(root / ".cache")
    (old := swept.with_name("away")).mkdir(exist_ok=True)
    swept.rename(old / "runs")
    yield root
    shutil.rmtree(swept, ignore_errors=True)  # where W&B's background process goes on with its log
    (old / "runs").rename(swept)


def dry_run(root: Path) -> tuple[int, list[dict[str, Any]], str]:
    done = CliRunner().invoke(grafts.app, ["sync", str(root), "--dry-run", "--json"])
    return done.exit_code, json.loads(done.stdout), done.stderr


def test_a_moved_store_has_all_that_its_records_name(moved: Path) -> None:
    """A dry run finds every file, says what would be sent in the sweep's order, and sends nothing."""
    code, lines, _ = dry_run(moved)
    assert code == 0
    (record,) = [store.read_json(f) for f in moved.glob("sweeps/*/record.json")]
    (name,) = [f.name for f in (moved / "sweeps").iterdir()]
    assert [line["run"] for line in lines] == [*record["runs"], name]
    assert {(line["sweep"], line["state"]) for line in lines} == {(name, "to send")}
    ((_, runs),) = sync.plan(Store(moved))
    for run, line in zip(runs, lines, strict=True):
        checked = sync.check(run)
        assert len(checked.files) == line["files"]
        assert all(moved in file.parents and file.is_file() for file in checked.files)
    # the first run's graft is among them
    files = sync.check(runs[0]).files
    content = (moved / runs[0].name / "graft.safetensors").read_bytes()
    assert [file.read_bytes() == content for file in files].count(True) == 1
    assert not list(moved.rglob("*.synced"))


def test_a_repaired_record_differs_in_its_paths_only(moved: Path, tmp_path: Path) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    ((_, runs),) = sync.plan(Store(moved))
    for run in runs:
        before = run.record.read_bytes()
        checked = sync.check(run)
        assert checked.log is not None
        pairs = zip(sync.read_log(before), sync.read_log(checked.log), strict=True)
        changed = 0
        for one, other in pairs:
            if one == other:
                continue
            old, new = Record.FromString(one), Record.FromString(other)
            for a, b in zip(
                old.artifact.manifest.contents, new.artifact.manifest.contents, strict=True
            ):
                assert not Path(a.local_path).exists()
                assert Path(b.local_path).is_file()
                assert Path(a.local_path).name == Path(b.local_path).name
                b.local_path = a.local_path
                changed += 1
            assert old == new
        assert changed == sum("staging" in str(file) for file in checked.files)
        assert run.record.read_bytes() == before
    file = tmp_path / run.record.name
    file.write_bytes(checked.log)
    shown, as_before = inspect(file), inspect(run.record)  # W&B's own reader takes it
    assert {n for n in shown if shown[n] != as_before[n]} <= {"file", "path", "last_write"}
    assert shown["summary"] == as_before["summary"]


def test_a_store_in_its_place_is_sent_as_it_is(swept: Path) -> None:
    ((_, runs),) = sync.plan(Store(swept))
    assert [sync.check(run).log for run in runs] == [None] * 3


def test_what_was_sent_is_skipped_and_what_is_missing_named(moved: Path) -> None:
    ((_, runs),) = sync.plan(Store(moved))
    sync.mark(runs[0].record).touch()
    gone = next(file for file in sync.check(runs[1]).files if file.name.startswith("reliability"))
    gone.unlink()
    # a run that no sweep has comes last
    (file,) = moved.glob("sweeps/*/record.json")
    store.write_json(file, {**store.read_json(file), "runs": [runs[0].name]})
    code, lines, said = dry_run(moved)
    assert code == 1
    assert [line["state"] for line in lines] == ["sent before", "to send", f"missing: {gone}"]
    assert [line["run"] for line in lines] == [runs[0].name, runs[2].name, runs[1].name]
    assert lines[2]["sweep"] is None
    assert runs[1].name in said
    runs[1].record.write_bytes(runs[1].record.read_bytes()[:-1])
    code, lines, _ = dry_run(moved)
    assert code == 1
    assert [line["state"] for line in lines[:2]] == ["sent before", "to send"]
    assert lines[2]["state"].startswith(f"damaged: {runs[1].record}: ")
    assert "cut off" in lines[2]["state"]


def test_a_store_without_offline_runs(tmp_path: Path) -> None:
    done = CliRunner().invoke(grafts.app, ["sync", str(tmp_path), "--dry-run"])
    assert done.exit_code == 1
    assert "no offline W&B run" in done.stderr


# ------------------------------------------------------------------------- against a server


@pytest.mark.slow
def test_a_moved_store_arrives(moved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`wandb sync` itself, against a stand-in for the server: the files arrive, and just once."""
    ((_, offline),) = sync.plan(Store(moved))
    true = sync.check(offline[0]).log
    assert true is not None
    offline[0].record.write_bytes(true)  # as of a run that was made here: sent as it is
    assert sync.check(offline[0]).log is None
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        done = command("sync", str(moved), "--json", cwd=moved, program="grafts")
        assert done.returncode == 0, done.stderr
        lines = json.loads(done.stdout)
        assert {line["state"] for line in lines} == {"sent"}
        sent = {given["name"] for name, given in server.operations if name == "UpsertBucket"}
        hashes = {folder.name.rpartition("-")[2] for folder in runs_of(moved)}
        assert sent == {*hashes, "sweep-0123456789"}
        for folder in runs_of(moved):
            path = f"/artifact/graft-{folder.name.rpartition('-')[2]}/graft.safetensors"
            assert server.files[path] == (folder / "graft.safetensors").read_bytes()
        assert store.verify(moved / offline[1].name) == []
        assert any(path.startswith("/run/media/images/figure") for path in server.files)
        server.operations.clear()
        again = command("sync", str(moved), "--json", cwd=moved, program="grafts")
        assert again.returncode == 0, again.stderr
        assert {line["state"] for line in json.loads(again.stdout)} == {"sent before"}
        assert not server.operations


def test_what_wandb_says_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import wandb

    def refusing() -> None:
        raise wandb.errors.UsageError("no API key")

    monkeypatch.setattr(wandb, "Api", refusing)
    done = CliRunner().invoke(grafts.app, ["dashboard", "mine", "--store", str(tmp_path), "--send"])
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == "grafts: --send: W&B: no API key"


@pytest.mark.slow
def test_a_dashboard_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        done = command(
            "dashboard", "mine", "--entity", "me", "--send", cwd=tmp_path, program="grafts"
        )
        assert done.returncode == 0, done.stderr
        views = [
            given for name, given in server.operations if name.lower().startswith("upsertview")
        ]
        expected = dashboard.specification("skillgraft", "me", set())
        titles = [expected["workspace"]["displayName"]]
        titles += [report["displayName"] for report in expected["reports"]]
        assert [view["displayName"] for view in views] == titles
        specifications = [dashboard.plain(json.loads(view["spec"])) for view in views]
        assert specifications[0] == expected["workspace"]["spec"]
        assert len(done.stdout.splitlines()) == len(titles)
