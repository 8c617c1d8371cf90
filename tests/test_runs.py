"""A store in a notebook: its runs as objects, and as one table that says what the files say."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import skillgraft
from runs import FEW, TINY, make
from skillgraft import Graft, Run, Runs
from skillgraft.analysis.runs import NAMES
from skillgraft.runtime import files
from skillgraft.runtime.errors import InputError
from skillgraft.store import metric_names
from stores import add, status


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, undrawn: None) -> Path:
    root = tmp_path_factory.mktemp("runs")
    return make(root, *TINY, *FEW, "graft.steps=2", "graft.score_every=2")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six made-up runs, and one that has failed."""
    for n in range(6):
        add(tmp_path, n)
    names = ("task", "model", "selector", "sparsity", "seed")
    record = {"id": "x", "state": "failed", **{name: status(7)[name] for name in names}}
    files.write_json(tmp_path / ".partial" / "x.json", record)
    return tmp_path


def test_one_run_gives_what_its_folder_has(real: Path) -> None:
    (run,) = Runs(real.parent)
    assert (run.id, run.folder, run.state) == (real.name, real, "complete")
    assert run.config.finetune.steps == 4
    assert run.metrics == files.read_json(real / "metrics.json")
    assert run.graft().size == run.metrics["region"]["size"]
    assert isinstance(run.graft(), Graft)
    assert set(run.predictions()["model"]) == {"pretrained", "finetuned", "graft"}
    history = run.history()
    assert history["finetune/step"].dropna().tolist()[-1] == 4
    assert history["mask/step"].dropna().tolist() == [0, 1, 2]
    assert run.id in repr(run)


def test_the_table_that_ends_a_run_as_html(real: Path, capsys: pytest.CaptureFixture) -> None:
    """The same cells as on the terminal."""
    from skillgraft.experiments import summary

    page = Run(real)._repr_html_()
    cells = re.findall(r"<t[hd]>([^<]*)</t[hd]>", page)
    test = cells[cells.index("test") :][1:9]
    measured = Run(real).metrics
    assert test[2] == f"{measured['graft']['test']['accuracy']:.3f}"
    assert test[3] == f"{measured['pretrained']['test']['ece']:.3f}"
    summary.show(real)
    said = capsys.readouterr().out
    (line,) = (line for line in said.splitlines() if line.strip().startswith("test"))
    assert line.split()[1:] == test
    assert said.splitlines()[0] in page


def test_text_of_users_is_escaped(tmp_path: Path) -> None:
    add(tmp_path, 0, task="<b>bold</b>")
    (run,) = Runs(tmp_path)
    assert "<b>" not in run._repr_html_()
    assert "&lt;b&gt;bold" in run._repr_html_()


def test_the_table_has_what_the_files_have(root: Path) -> None:
    found = Runs(root)
    table = found.to_pandas()
    assert table.columns[:10].tolist() == list(NAMES.values())
    assert len(found) == len(table) == len(list(found)) == 7
    assert table["id"].tolist() == sorted(run.id for run in found)
    for _, line in table[table["state"] == "complete"].iterrows():
        record = files.read_json(root / line["id"] / "status.json")
        names = {"task": "task", "graft": "selector", "sparsity": "sparsity", "seed": "seed"}
        assert {new: line[new] for new in names} == {new: record[old] for new, old in names.items()}
        metrics = metric_names.flatten(files.read_json(root / line["id"] / "metrics.json"))
        assert line["size"] == metrics.pop("region/size")
        for name, value in metrics.items():
            np.testing.assert_equal(line[name], np.nan if value is None else value)
    failed = table[table["state"] == "failed"]
    assert failed["id"].tolist() == ["x"]
    assert failed["graft/test/accuracy"].isna().all()


def test_a_run_is_found_by_the_start_of_its_id(root: Path) -> None:
    found = Runs(root)
    name = status(3)["id"]
    assert found[name].folder == root / name
    assert found[name[:-9]] == found[name]
    for wrong, words in (
        ("toy_0", "expected the start of one run's id, found toy_0"),
        ("y", "none"),
    ):
        with pytest.raises(InputError, match=words):
            found[wrong]
    with pytest.raises(InputError, match="x: failed, not complete"):
        _ = found["x"].metrics
    assert "failed" in found["x"]._repr_html_()
    with pytest.raises(InputError, match="no such folder"):
        Runs(root / "none")


def test_an_empty_store_has_an_empty_table(tmp_path: Path) -> None:
    table = Runs(tmp_path).to_pandas()
    assert table.empty
    assert table.columns.tolist() == list(NAMES.values())
    assert len(Runs(tmp_path)) == 0


def test_polars_has_the_same_table(root: Path) -> None:
    pytest.importorskip("polars")
    table, other = Runs(root).to_pandas(), Runs(root).to_polars()
    assert other.columns == table.columns.tolist()
    for name in ("id", "seed", "graft/test/accuracy"):
        values = [None if pd.isna(value) else value for value in table[name]]
        assert other[name].to_list() == values


def test_without_polars_it_is_said(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(InputError, match=r"skillgraft\[polars\]"):
        Runs(root).to_polars()


def test_it_is_exported() -> None:
    assert {"Run", "Runs"} <= set(skillgraft.__all__)
