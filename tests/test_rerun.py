"""Reruns say bit-identical, or all that differs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import Result
from typer.testing import CliRunner

from runs import FEW, TINY, make, results
from skillgraft.analysis import collect
from skillgraft.analysis.claims import judging
from skillgraft.cli.grafts import app
from skillgraft.config.schema import ClaimConfig
from skillgraft.core.graft import Graft
from skillgraft.embedded import generator
from skillgraft.experiments import provenance, rerun
from skillgraft.runtime import files
from skillgraft.store.folders import Store

pytestmark = pytest.mark.usefixtures("undrawn")

LEARNED = (*TINY, *FEW, "graft.steps=2", "graft.score_every=2")
MATCHED = (*TINY, "graft=random", "graft.size_from=learned")


def grafts(*arguments: str | Path) -> Result:
    """Call a command of `grafts` in this process."""
    return CliRunner().invoke(app, [str(a) for a in arguments])


def rewrite(file: Path, keys: Sequence[str], value: Any) -> None:
    """Change one value of a JSON file."""
    content = node = files.read_json(file)
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    files.write_json(file, content)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, undrawn: None) -> Path:
    """A run on files of one's own; they lie beside its store."""
    folder = tmp_path_factory.mktemp("own")
    for split in ("train", "test"):
        rows = pd.DataFrame(generator.rows("toy_film", split)[:60])
        rows.to_json(folder / f"{split}.jsonl", orient="records", lines=True)
    return make(
        folder / "runs", *LEARNED, "task=custom", "task.name=mine",
        f"task.train={folder}/train.jsonl", f"task.test={folder}/test.jsonl",
        "task.template='*text* it was *mask* .'", "task.verbalizer=[terrible,great]",
        "task.labels=[negative,positive]",
    )  # fmt: skip


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, undrawn: None) -> Path:
    """The folder of a sweep of two runs that share a fine-tuning, the second of the first's size."""
    place = Store(tmp_path_factory.mktemp("swept") / "runs")
    runs = [make(place.root, *options).name for options in (LEARNED, MATCHED)]
    folder = place.sweeps / "toy-0123456789"
    folder.mkdir(parents=True)
    claim = vars(ClaimConfig("sparsity_curve"))
    jobs = str(place.root / ".jobs" / "x")
    record = {"name": "toy", "claim": claim, "jobs": jobs, "planned": [[], []], "runs": runs}
    files.write_json(folder / "record.json", record)
    judging.conclude(folder, record, collect.collect(place, runs))
    return folder


@pytest.fixture
def copied(own: Path, tmp_path: Path) -> Path:
    """The run in a store that was copied, to be altered."""
    shutil.copytree(own.parent, tmp_path / "runs")
    return tmp_path / "runs" / own.name


# ------------------------------------------------------------------------------------ bit-identical


def test_rerun_is_bit_identical_and_fine_tunes(own: Path, tmp_path: Path) -> None:
    done = grafts("rerun", own, "--keep", tmp_path / "scratch")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"bit-identical: {own}\n"
    made = tmp_path / "scratch" / own.name
    assert results(made) == results(own)
    assert "finetune" in files.read_json(made / "provenance.json")["seconds"]
    again = grafts("rerun", own, "--keep", tmp_path / "scratch")
    assert again.exit_code == 1
    assert "not empty" in again.stderr


def test_run_is_found_by_id_and_by_its_path_in_wandb(own: Path) -> None:
    place = Store(own.parent)
    digest = own.name.rpartition("-")[2]
    for name in (str(own), own.name, f"someone/skillgraft/{digest}"):
        assert rerun.find(name, place) == own
    done = grafts("rerun", "someone/skillgraft/0000000000", "--store", own.parent)
    assert done.exit_code == 1
    assert "no complete run" in done.stderr


def test_cached_weights_are_said(own: Path) -> None:
    done = grafts("rerun", own.name, "--store", own.parent, "--cached")
    assert done.exit_code == 0, done.output
    assert "fine-tuned weights: from the store, not made again" in done.stderr
    assert done.stdout.startswith("bit-identical, with the fine-tuned weights of the store")


# ----------------------------------------------------------------------------------- what differs


def test_every_altered_result_is_listed(copied: Path, own: Path) -> None:
    """A metric, a prediction, a grafted value, and the digest of the weights."""
    rewrite(copied / "metrics.json", ["graft", "test", "accuracy"], 0.123)
    rewrite(copied / "provenance.json", ["finetuned", "weights"], "0" * 64)
    frame = pd.read_parquet(copied / "predictions.parquet")
    frame.loc[0, "p/negative"] += 0.25
    frame.to_parquet(copied / "predictions.parquet", index=False)
    graft = Graft.load(copied / "graft.safetensors")
    next(v for v in graft.values.values() if v.numel())[0] += 1
    graft.save(copied / "graft.safetensors")
    done = grafts("rerun", copied, "--cached", "--json")
    assert done.exit_code == 1, done.output
    said = json.loads(done.stdout)
    assert said["identical"] is False
    found = {line["what"]: line for line in said["differences"]}
    assert set(found) == {
        "metric graft/test/accuracy", "predictions.parquet", "digest of grafted values",
        "digest of fine-tuned weights",
    }  # fmt: skip
    assert found["metric graft/test/accuracy"]["recorded"] == 0.123
    true = files.read_json(own / "metrics.json")["graft"]["test"]["accuracy"]
    assert found["metric graft/test/accuracy"]["found"] == true
    assert found["predictions.parquet"]["found"] == "1 of them with other values"


def test_changed_file_is_named_before_anything_runs(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = own.parents[1] / "test.jsonl"
    before = file.read_bytes()
    monkeypatch.setattr(rerun, "reproduce", lambda *_: pytest.fail("it ran"))
    try:
        file.write_bytes(before.replace(b"negative", b"positive", 1))
        done = grafts("rerun", own)
        assert done.exit_code == 1
        lines = done.stderr.splitlines()
        assert lines[0].startswith(f"file {file}: recorded ")
        assert lines[1].startswith("digest of data: recorded ")
        assert len(lines) == 3
        assert "--anyway" in lines[2]
        file.write_text("{broken\n")
        assert "test.jsonl, row 1: not JSON" in grafts("rerun", own).stderr
    finally:
        file.write_bytes(before)


def test_changed_rows_anyway(own: Path) -> None:
    """It is another run then: its id and results differ."""
    file = own.parents[1] / "test.jsonl"
    before = file.read_bytes()
    try:
        file.write_bytes(before.replace(b"negative", b"positive", 1))
        done = grafts("rerun", own, "--cached", "--anyway")
    finally:
        file.write_bytes(before)
    assert done.exit_code == 1, done.output
    assert f"id: recorded {own.name}, found mine-tiny-" in done.stdout


def test_other_versions_are_named_and_go_on(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {**provenance.versions(), "torch": "0.0.1"}
    monkeypatch.setattr(provenance, "versions", lambda: versions)
    done = grafts("rerun", own, "--cached")
    assert done.exit_code == 0, done.output
    recorded = files.read_json(own / "provenance.json")["versions"]["torch"]
    assert f"version of torch: recorded {recorded}, found 0.0.1" in done.stderr


def test_configuration_that_no_longer_fits(copied: Path) -> None:
    (copied / "config.yaml").write_text((copied / "config.yaml").read_text() + "spasity: 1\n")
    done = grafts("rerun", copied)
    assert done.exit_code == 1
    assert "config.yaml" in done.stderr
    assert "spasity" in done.stderr


# ------------------------------------------------------------------------- runs that read other runs


def test_runs_that_read_others_in_a_store_that_was_moved(tmp_path: Path) -> None:
    """A stage of a sequence and a union of stored grafts name their runs by the old place."""
    old, new = tmp_path / "old", tmp_path / "new"
    moved = (*TINY, "graft=movement")
    after = (*moved, "continual.tasks=[toy_film,toy_book]")
    film, book = (make(old, *after, f"task={task}") for task in ("toy_film", "toy_book"))
    union = make(old, *TINY, "graft=file", f"graft.paths=[{film.name},{film}]")
    old.rename(new)
    for run in (book, union):
        done = grafts("rerun", run.name, "--store", new)
        assert done.exit_code == 0, done.output
        assert done.stdout.startswith("bit-identical")


# ---------------------------------------------------------------------------------------- figures


def test_matched_run_alone_takes_the_size_of_the_original_store(swept: Path) -> None:
    place = Store(swept.parents[1])
    name = files.read_json(swept / "record.json")["runs"][1]
    done = grafts("rerun", name, "--store", place.root, "--cached")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("bit-identical")


def test_figure_is_drawn_again_from_its_runs(swept: Path, tmp_path: Path) -> None:
    options = ("--keep", tmp_path / "scratch", "--out", tmp_path / "figure")
    done = grafts("rerun", "--figure", "sparsity_curve", swept, *options)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("bit-identical")
    names = files.read_json(swept / "record.json")["runs"]
    assert [run["id"] for run in Store(tmp_path / "scratch").runs()] == sorted(names)
    seconds = [
        files.read_json(tmp_path / "scratch" / name / "provenance.json")["seconds"]
        for name in names
    ]
    assert ["finetune" in s for s in seconds] == [True, False], "it is shared"
    for file in ("table.csv", "verdict.json"):
        assert (tmp_path / "figure" / file).read_bytes() == (swept / file).read_bytes()
    assert (tmp_path / "figure" / "figure.png").is_file()


def test_differing_cells_of_a_figure_are_listed(swept: Path, tmp_path: Path) -> None:
    shutil.copytree(swept.parents[1], tmp_path / "runs")
    folder = tmp_path / "runs" / "sweeps" / swept.name
    table = (folder / "table.csv").read_text().splitlines()
    (folder / "table.csv").write_text("\n".join([table[0], table[1].replace("random", "r")]))
    rewrite(folder / "verdict.json", ["statements", 0, "verdict"], "passed")  # type: ignore[list-item]
    done = grafts("rerun", "--figure", "sparsity_curve", folder, "--cached")
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert any(line.startswith("table.csv row 2 ") for line in lines), lines
    assert any(line.startswith("verdict.json ") and '"passed"' in line for line in lines)
    other = grafts("rerun", "--figure", "calibration", folder)
    assert other.exit_code == 1
    assert "sparsity_curve" in other.stderr
