"""What a sweep leaves for W&B: read back, named in the README, shown on dashboards, and sent later."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner

from runs import TINY, command, make
from skillgraft.analysis import collect, plots
from skillgraft.analysis.claims.statements import ClaimResult, ClaimStatement
from skillgraft.cli import grafts
from skillgraft.experiments import sweep_report
from skillgraft.runtime.errors import InputError
from skillgraft.runtime.files import read_json, write_json
from skillgraft.store import checksums, index, metric_names
from skillgraft.store.folders import Store
from skillgraft.tracking import dashboard, sync, wandb_names
from wandb_server import serving

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "src" / "skillgraft" / "README.md").read_text(encoding="utf-8")
LEARNED = (
    *(option for option in TINY if not option.startswith(("logger", "task.ood"))),
    "task.ood=[toy_gadget]",
    "graft.steps=2",
    "graft.examples_per_step=8",
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
    write_json(folder / "record.json", record)
    plots.save(Figure(figsize=(1, 1)), folder / "figure.png")
    statement = ClaimStatement("made up: of two seeds", "–", {13: 0.5, 21: 0.6})
    outcome = ClaimResult([statement], pd.DataFrame({"task": ["a"], "value": [0.5]}), Figure)
    sweep_report.summarize(folder, record, collect.collect(Store(root), runs), outcome)
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


@functools.cache
def entries_of(file: Path) -> list[dict[str, Any]]:
    """Return the entries of a record, by W&B's own reader."""
    return sync.read_record(file)


def rows_of(file: Path) -> list[dict[str, Any]]:
    """Return the rows of the history of a record, without W&B's own names."""
    rows = [entry["history"]["item"] for entry in entries_of(file) if entry["type"] == "history"]
    own = [{n: value for n, value in row.items() if not n.startswith("_")} for row in rows]
    return [row for row in own if row]


def runs_of(root: Path) -> list[Path]:
    return [Store(root).run(status["id"]) for status in Store(root).runs()]


@pytest.fixture(scope="module")
def told(swept: Path) -> dict[str, set[str]]:
    """The names that the sweep's runs have in each place, as the README calls the places."""
    names: dict[str, set[str]] = {}
    for folder in runs_of(swept):
        metrics, overlap = (read_json(folder / f"{n}.json") for n in ("metrics", "overlap"))
        names.setdefault("metrics.json", set()).update(metric_names.flatten(metrics))
        names.setdefault("overlap.json", set()).update(metric_names.flatten({"overlap": overlap}))
        summary = inspect(record_of(folder))["summary"]
        names.setdefault("summary", set()).update(n for n in summary if not n.startswith("_"))
        for row in rows_of(record_of(folder)):
            # media have their facts below their name
            known = {
                n.split(".")[0] if n.startswith(("reliability", "overlap_")) else n for n in row
            }
            names.setdefault("history", set()).update(known)
    (folder,) = (swept / "sweeps").iterdir()
    summary = inspect(record_of(folder))["summary"]
    names["sweep"] = {name for name in summary if not name.startswith("_")}
    status = read_json(runs_of(swept)[0] / "status.json")
    (first, *rest) = [json.loads(row) for _, row in index.rows(swept)]
    found = set(first).union(*rest) - set(status)
    names["index"] = {name for name in found if not name.startswith("config/")}
    return names


# --------------------------------------------------------------------------------- read back


def test_the_records_of_a_sweep_have_what_its_runs_have(swept: Path) -> None:
    """By W&B's own reader: summary, configuration, group, curves; and the sweep's table of runs."""
    for folder in runs_of(swept):
        status, metrics, overlap = (
            read_json(folder / f"{name}.json") for name in ("status", "metrics", "overlap")
        )
        found = inspect(record_of(folder))
        expected = metric_names.measured(metrics, overlap)
        assert expected["graft/test/score"] == metrics["graft"]["test"]["accuracy"]
        for name, value in expected.items():
            assert found["summary"].get(name) == value, name
        config = found["config"]
        assert config["task"]["name"] == status["task"]
        assert config["graft"]["selector"] == status["selector"]
        assert (config["sparsity"], config["seed"]) == (status["sparsity"], status["seed"])
        curves = [row for row in rows_of(record_of(folder)) if "mask/step" in row]
        kept = read_json(folder / "history.json")
        assert curves == kept
        tuned = Store(swept).finetuned(status["finetuned"]) / "history.json"
        steps = [row for row in rows_of(record_of(folder)) if "finetune/step" in row]
        assert steps == read_json(tuned)
        (point,) = [row for row in rows_of(record_of(folder)) if "graft/test/score" in row]
        assert point == {name: expected[name] for name in point}
        assert point["region/size"] == metrics["region"]["size"]
    (folder,) = (swept / "sweeps").iterdir()
    (table,) = folder.glob("wandb/offline-run-*/files/media/table/runs_*.json")
    shown = json.loads(table.read_text())
    assert len(shown["data"]) == 2
    for line in shown["data"]:
        row = dict(zip(shown["columns"], line, strict=True))
        metrics = read_json(swept / row["id"] / "metrics.json")
        flat = metric_names.flatten(metrics)
        assert {n: row[n] for n in metric_names.MEASURES} == {
            n: flat[n] for n in metric_names.MEASURES
        }


# ------------------------------------------------------------------------------ metric names

PLACEHOLDERS = {
    "model": (
        r"(pretrained|finetuned|graft|(finetuned|graft)_temperature_scaled|wise_[\d.]+|(lottery|inside)_\d+)"
    ),
    "other": r"(graft|(finetuned|graft)_temperature_scaled|wise_[\d.]+|(lottery|inside)_\d+)",
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
    assert read_json(file) == content
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


def test_an_offline_record_names_no_file_outside_its_run(swept: Path) -> None:
    """It has no artifact, also none for its tables; nothing is kept elsewhere; all tables are there."""
    ((_, runs),) = sync.plan(Store(swept))
    for run in runs:
        entries = entries_of(run.record)
        assert {entry["type"] for entry in entries} <= {"files", *wandb_names.HARMLESS}
        assert "local_path" not in json.dumps(entries)
        named = {f["path"] for e in entries if e["type"] == "files" for f in e["files"]["files"]}
        tables = {n: v for n, v in inspect(run.record)["summary"].items() if isinstance(v, dict)}
        shown = {
            v["path"] for v in tables.values() if v.get("_type") in ("table-file", "image-file")
        }
        assert shown
        assert shown <= named
    known = {".cache", ".finetuned", ".locks", ".partial"}
    assert {path.name for path in swept.glob(".*")} <= known


def test_what_wandb_does_not_promise_is_there_and_in_one_file() -> None:
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb_workspaces.reports.v2 import Report
    from wandb_workspaces.workspaces import Workspace

    assert set(wandb_names.ONLY_ARTIFACTS) <= set(wandb.Settings.model_fields)
    kinds = {f.name for f in Record.DESCRIPTOR.oneofs_by_name["record_type"].fields}
    assert {"files", "artifact", *wandb_names.HARMLESS} <= kinds
    assert callable(wandb.Table.bind_to_run)
    for view in (Report, Workspace):
        assert callable(view._to_model)
    private = re.compile(
        r"wandb\.(proto|sdk|util|apis)\b|_to_model|bind_to_run|\bx_(primary|disable|save)|\.synced"
    )
    sources = Path(wandb_names.__file__).parent.rglob("*.py")
    found = {f.name for f in sources if private.search(f.read_text(encoding="utf-8"))}
    assert found == {"wandb_names.py"}


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
    """A dry run finds every file, says what would be sent where, in the sweep's order, and sends nothing."""
    code, lines, _ = dry_run(moved)
    assert code == 0
    (record,) = [read_json(f) for f in moved.glob("sweeps/*/record.json")]
    (name,) = [f.name for f in (moved / "sweeps").iterdir()]
    assert [line["run"] for line in lines] == [*record["runs"], name]
    assert {(line["sweep"], line["state"]) for line in lines} == {(name, "to send")}
    assert {(line["entity"], line["project"]) for line in lines} == {(None, "skillgraft")}
    ((_, runs),) = sync.plan(Store(moved))
    for run, line in zip(runs, lines, strict=True):
        files = {Path(file) for file in line["files"]}
        assert all(run.folder in file.parents and file.is_file() for file in files)
        media = {f for f in (run.record.parent / "files" / "media").rglob("*") if f.is_file()}
        graft = run.folder / "graft.safetensors"
        assert files == {run.record.parent / "files/requirements.txt", *media} | (
            set() if line["run"] == name else {graft}
        )
    options = ["--entity", "them", "--project", "other", "--dry-run"]
    done = CliRunner().invoke(grafts.app, ["sync", str(moved), *options])
    assert "| them " in done.stdout
    assert "| other " in done.stdout
    for file in (file for line in lines for file in line["files"]):
        assert file in done.stdout
    assert not list(moved.rglob("*synced"))


HOSTILE = {
    "../../../../id_rsa": "not a file of the run: ../../../../id_rsa",
    "/etc/hostname": "not a file of the run: /etc/hostname",
    "media/../../../status.json": "not a file of the run: media/../../../status.json",
    "artifact": "may name files that are not the run's: artifact",
    "tbrecord": "may name files that are not the run's: tbrecord",
    "a kind that is not known": "may name files that are not the run's: a kind that is not known",
}


@pytest.mark.parametrize("named", HOSTILE)
def test_a_record_that_names_other_files_is_not_sent(
    swept: Path, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((_, (run, *_)),) = sync.plan(Store(swept))
    other = {"type": "files", "files": {"files": [{"path": named}]}}
    if "." not in named and "/" not in named:
        other = {"type": named, named: {"local_path": "/etc/hostname"}}
    entries = [*entries_of(run.record), other]
    monkeypatch.setattr(sync, "read_record", lambda _: entries)
    found = sync.check(run)
    assert found.wrong == HOSTILE[named]
    assert all(run.folder in file.resolve().parents for file in found.files)


@pytest.mark.parametrize(
    "name", ["graft.safetensors", "wandb/*/files/config.yaml", "wandb/*", "wandb"]
)
def test_no_link_is_followed(moved: Path, tmp_path: Path, name: str) -> None:
    """Neither for what is sent nor where W&B writes its own copies."""
    ((_, (run, *_)),) = sync.plan(Store(moved))
    secret = tmp_path / "id_rsa"
    place = run.folder / name
    if name == "graft.safetensors":
        secret.write_text("private")
        place.unlink()
    elif name.endswith("yaml"):
        place = run.record.parent / "files" / "config.yaml"
        secret.write_text("private")
    else:
        place = run.record.parent if "/" in name else run.record.parent.parent
        place.rename(secret)
    place.symlink_to(secret)
    ((_, (run, *_)),) = sync.plan(Store(moved))
    wrong = sync.check(run).wrong
    assert wrong is not None
    assert wrong.startswith("a symbolic link, which is not sent: ")


def test_the_record_of_another_run_is_not_sent(moved: Path) -> None:
    """It would be written over the run that it names."""
    ((_, (run, other, *_)),) = sync.plan(Store(moved))
    run.record.write_bytes(other.record.read_bytes())
    assert sync.check(run).wrong == f"the record of another run: {run.record}"


def test_damage_is_found(moved: Path) -> None:
    ((_, (run, *_)),) = sync.plan(Store(moved))
    whole = run.record.read_bytes()
    altered = bytearray(whole)
    altered[len(whole) // 2] ^= 1
    for broken in (bytes(altered), whole[:-3], whole[: len(whole) // 2], b"something else", b""):
        run.record.write_bytes(broken)
        wrong = sync.check(run).wrong
        assert wrong is not None
        assert wrong.startswith(f"damaged: {run.record}: ")
        assert "\n" not in wrong


def test_what_was_sent_is_skipped_and_what_is_missing_named(moved: Path) -> None:
    ((_, runs),) = sync.plan(Store(moved))
    wandb_names.sent_mark(runs[0].record).touch()
    runs[0].graft_mark.touch()
    gone = next(file for file in sync.check(runs[1]).files if file.name.startswith("reliability"))
    gone.unlink()
    # a run that no sweep has comes last
    (file,) = moved.glob("sweeps/*/record.json")
    write_json(file, {**read_json(file), "runs": [runs[0].name]})
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


def test_a_store_without_offline_runs(tmp_path: Path) -> None:
    done = CliRunner().invoke(grafts.app, ["sync", str(tmp_path), "--dry-run"])
    assert done.exit_code == 1
    assert "no offline W&B run" in done.stderr


# ------------------------------------------------------------------------- against a server


@pytest.mark.slow
def test_a_moved_store_arrives(moved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`wandb sync` itself, against a stand-in for the server: the files arrive, and just once."""
    ((_, offline),) = sync.plan(Store(moved))
    expected = {str(file.name) for run in offline for file in sync.check(run).files}
    told = {run.id: inspect(run.record) for run in offline}
    made = {run.id: entries_of(run.record)[1]["run"] for run in offline}
    rows = {run.id: len(rows_of(run.record)) for run in offline}
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        done = command("sync", str(moved), "--json", cwd=moved, program="grafts")
        assert done.returncode == 0, done.stderr
        lines = json.loads(done.stdout)
        assert {line["state"] for line in lines} == {"sent"}
        assert set(server.runs) == {run.id for run in offline}
        for folder in runs_of(moved):
            path = f"/artifact/graft-{folder.name.rpartition('-')[2]}/graft.safetensors"
            assert server.files[path] == (folder / "graft.safetensors").read_bytes()
        assert checksums.verify(moved / offline[1].name) == []
        assert any(path.startswith("/run/media/images/figure") for path in server.files)
        # nothing else: W&B's own files of a run, and the manifests of the artifacts
        own = {"config.yaml", "wandb-summary.json", "wandb-metadata.json", "manifest"}
        assert {path.rpartition("/")[2] for path in server.files} == expected | own
        made_artifacts = [g for name, g in server.operations if name == "CreateArtifact"]
        assert sorted(g["input"]["artifactCollectionName"] for g in made_artifacts) == sorted(
            f"graft-{folder.name.rpartition('-')[2]}" for folder in runs_of(moved)
        )
        for given in (g["input"] for g in made_artifacts):
            assert json.loads(given["metadata"])["selector"] == "learned"
            assert given["artifactCollectionName"] == f"graft-{given['runName']}"
        # what W&B has of a run is what the run recorded, although it was resumed
        for run in offline:
            shown = server.runs[run.id]
            mine = {n: v for n, v in shown["summary"].items() if not n.startswith("_")}
            recorded = told[run.id]["summary"]
            assert mine == {n: v for n, v in recorded.items() if not n.startswith("_")}
            config = {
                n: v["value"] for n, v in json.loads(shown["config"]).items() if n != "_wandb"
            }
            assert config == {n: v for n, v in told[run.id]["config"].items() if n != "_wandb"}
            assert len(shown["history"]) == rows[run.id]
            assert shown["exitcode"] == 0
            about = made[run.id]
            assert (shown["displayName"], shown["host"]) == (about["display_name"], about["host"])
            assert (shown["groupName"], shown["jobType"]) == (about["run_group"], about["job_type"])
            assert shown["tags"] == about["tags"]
            axes = [
                {json.dumps(axis, sort_keys=True) for axis in known["m"]}
                for name, given in server.operations
                if name == "UpsertBucket" and given["name"] == run.id
                for known in [json.loads(given["config"])["_wandb"]["value"]]
            ]
            assert len(axes) == (2 if run.graft is None else 4)  # begun and ended, each time
            assert {len(axis) for axis in axes[1::2]} == {len(axes[1])}
        server.operations.clear()
        again = command("sync", str(moved), "--json", cwd=moved, program="grafts")
        assert again.returncode == 0, again.stderr
        assert {line["state"] for line in json.loads(again.stdout)} == {"sent before"}
        assert not server.operations
        # as if it had been killed after the record: the graft alone is sent
        offline[0].graft_mark.unlink()
        server.files.clear()
        more = command("sync", str(moved), "--json", cwd=moved, program="grafts")
        assert more.returncode == 0, more.stderr
        states = [line["state"] for line in json.loads(more.stdout)]
        assert states == ["sent", "sent before", "sent before"]
        graft = f"/artifact/graft-{offline[0].id}/graft.safetensors"
        assert set(server.files) == {graft, "/manifest"}
        # W&B does not know the run: said, not marked, and exit code 1
        offline[0].graft_mark.unlink()
        server.runs.clear()
        unknown = command("sync", str(moved), "--json", cwd=moved, program="grafts")
        assert unknown.returncode == 1, unknown.stdout
        assert json.loads(unknown.stdout)[0]["state"] == "not sent"
        assert not offline[0].graft_mark.exists()
        assert "Traceback" not in unknown.stderr


@pytest.mark.slow
def test_a_private_key_in_a_record_stays_here(
    moved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record made by W&B itself that has an artifact of a file outside of the run, and its id."""
    key = tmp_path / "id_rsa"
    key.write_text("private")
    ((_, runs),) = sync.plan(Store(moved))
    shutil.rmtree(runs[0].record.parent)
    code = (
        "import sys, wandb\n"
        "folder, id, key = sys.argv[1:]\n"
        "with wandb.init(project='skillgraft', id=id, dir=folder, mode='offline') as run:\n"
        "    artifact = wandb.Artifact('key', type='key')\n"
        "    artifact.add_file(key, policy='immutable')\n"
        "    run.log_artifact(artifact)\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(runs[0].folder), runs[0].id, str(key)],
        check=True, cwd=tmp_path, env={n: v for n, v in os.environ.items() if n != "WANDB_SERVICE"},
    )  # fmt: skip
    for link in [path for path in (runs[0].folder / "wandb").rglob("*") if path.is_symlink()]:
        link.unlink()
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        done = command("sync", str(moved), "--json", cwd=moved, program="grafts")
        assert done.returncode == 1
        states = [line["state"] for line in json.loads(done.stdout)]
        assert states == ["may name files that are not the run's: artifact", "sent", "sent"]
        assert b"private" not in server.files.values()
        assert runs[0].id not in server.runs


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
