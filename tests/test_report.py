"""The report page: what is in it, that it needs no network, and that its numbers are the store's."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from runs import FEW, TINY, make
from skillgraft.analysis import collect, labels, plots
from skillgraft.analysis.report import parts, settings
from skillgraft.analysis.report.page import MANIFEST, write
from skillgraft.cli import grafts
from skillgraft.config.schema import ClaimConfig
from skillgraft.evaluation.intervals import over_seeds
from skillgraft.runtime import files
from skillgraft.runtime.errors import InputError
from skillgraft.store import checksums, metric_names
from skillgraft.store.folders import Store

TASKS, SEEDS = ("toy_film", "toy_topic"), (13, 21)
STAGES = f"continual.tasks=[{','.join(TASKS)}]"
BASE = ("threads=1", "graft=movement", "sparsity=0.02")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, selectors and seeds; a longer fine-tuning with an OOD set; a sequence of two tasks."""
    folder = tmp_path_factory.mktemp("report") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save", lambda _, path: path)  # the runs' own figures
        for seed in SEEDS:
            for task in TASKS:
                of = (f"task={task}", f"seed={seed}", *TINY)
                make(folder, *of, *BASE)
                make(folder, *of, *FEW, "graft=attribution", "sparsity=0.02")
        make(folder, "task=toy_topic", *TINY, *BASE, STAGES, "seed=13")
        make(
            folder,
            "task=toy_film",
            *TINY,
            *BASE,
            "seed=13",
            "finetune.steps=6",
            "task.ood=[toy_book]",
            "compare.wise_ft_alphas=[0.5]",
        )
    names = [f.name for f in folder.iterdir() if checksums.is_complete(f)]
    (folder / "sweeps" / "two").mkdir(parents=True)
    claim = dataclasses.asdict(ClaimConfig(name="overlap"))
    record = {"name": "two", "claim": claim, "jobs": str(folder / "none"), "runs": names}
    files.write_json(folder / "sweeps" / "two" / "record.json", record)
    return folder


@pytest.fixture(scope="module")
def out(root: Path) -> Path:
    folder = root.parent / "out"
    done = CliRunner().invoke(grafts.app, ["report", str(root), "--out", str(folder)])
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(folder / "index.html")
    return folder


def sections(page: str) -> list[str]:
    return re.findall(r'<section id="\d.*?</section>', page, re.DOTALL)


def test_page_needs_nothing_from_elsewhere(out: Path) -> None:
    page = (out / "index.html").read_text()
    links = re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', page)
    for link in links:
        if not link.startswith(("data:", "#")):
            assert (out / link).is_file(), link
    assert not re.search(r"@import|url\(|https?://|<script[^>]+src", page)


def test_every_figure_and_table_has_its_files(out: Path) -> None:
    found = {f.relative_to(out).with_suffix("").as_posix() for f in out.glob("*/*")}
    first, second = sorted(f.name for f in out.iterdir() if f.is_dir())
    names = {
        "score_sparsity",
        "ece_sparsity",
        "region_layer",
        "region_module",
        "reliability_toy_film",
    }
    assert {f"{first}/{n}" for n in names} <= found
    assert {
        f"{first}/{n}" for n in ("overlap_movement", "overlap_attribution", "forgetting")
    } <= found
    assert {f"{second}/ood", f"{second}/interpolation"} <= found
    for name in found:
        svg, png = (out / f"{name}{suffix}" for suffix in (".svg", ".png"))
        assert svg.read_bytes().startswith(b"<?xml")
        assert png.read_bytes().startswith(b"\x89PNG")
        assert len(pd.read_csv(out / f"{name}.csv"))
        assert "tabular" in (text := (out / f"{name}.tex").read_text()) or "longtable" in text
    assert len(re.findall("<figure", (out / "index.html").read_text())) == len(found)


def test_what_has_no_data_is_left_out_and_said(out: Path) -> None:
    first, second = sections((out / "index.html").read_text())
    assert (
        "Not shown (no matching runs): out of distribution; between pre-trained and fine-tuned."
        in first
    )
    assert "overlap of tasks&#39; regions; " in second
    assert "forgetting in sequence." in second


def test_numbers_are_those_of_the_store(root: Path, out: Path) -> None:
    table = pd.read_csv(out / "runs.csv").set_index("id")
    folders = [f for f in root.iterdir() if checksums.is_complete(f)]
    assert set(table.index) == {f.name for f in folders}
    for folder in folders:
        metrics = files.read_json(folder / "metrics.json")
        line = table.loc[folder.name]
        for name in metric_names.MEASURES:
            model, split, measure = (*name.split("/"), None)[:3]
            value = metrics[model][split] if measure is None else metrics[model][split][measure]
            np.testing.assert_equal(line[name], np.nan if value is None else value)
        assert line["command"] == f"grafts rerun {folder}"
    curve = pd.read_csv(out / "1-tiny-prompt" / "ece_sparsity.csv")
    line = curve[(curve.task == "toy_film") & (curve.selector == "movement")].set_index("measure")
    values = [
        files.read_json(f / "metrics.json")["graft"]["test"]["ece"]
        for f in folders
        if (s := files.read_json(f / "status.json"))["config"]["finetune.steps"] == 4
        and (s["task"], s["selector"]) == ("toy_film", "movement")
    ]
    expected = over_seeds(values)
    assert expected is not None
    found = line.loc["graft/test/ece"]
    assert found["n"] == len(values) == 2
    np.testing.assert_allclose(
        found[["mean", "low", "high"]].astype(float), [expected.mean, expected.low, expected.high]
    )


def test_other_settings_are_not_averaged(root: Path) -> None:
    rows = settings.name_settings(collect.collect(Store(root)))
    assert sorted(rows["setting of"].unique()) == ["tiny, prompt, steps=4", "tiny, prompt, steps=6"]
    keys = ["setting of", "task", "selector", "sparsity", "stage", "seed"]
    assert not rows.duplicated(keys).any()
    frame = pd.DataFrame(
        {"config/graft.greedy_rounds": [4.0, None, None], "config/graft.lr": [1.0, 1.0, 2.0]}
    )
    base = pd.Series(["attribution", "attribution", "learned"])
    assert settings.distinct(frame, base, list(frame)).tolist() == [
        "attribution, greedy_rounds=4",
        "attribution",
        "learned",
    ]


def test_two_runs_of_one_seed_are_told_apart() -> None:
    row = {
        "model": "m",
        "config/finetune.kind": "prompt",
        "task": "t",
        "selector": "learned",
        "sparsity": 0.1,
        "seed": 0,
    }
    rows = pd.DataFrame([{**row, "region": f"r{n}", "same_but_seed": f"s{n}"} for n in range(2)])
    assert settings.name_settings(rows)["selector"].tolist() == ["learned (s0)", "learned (s1)"]
    assert len(settings.name_settings(rows.assign(region="r"))) == 1


def test_predictions_and_grafts_may_be_gone(root: Path, tmp_path: Path) -> None:
    for folder in root.iterdir():
        if checksums.is_complete(folder) and "seed13" in folder.name and "toy_film" in folder.name:
            shutil.copytree(folder, tmp_path / "runs" / folder.name)
    for name in ("predictions.parquet", "graft.safetensors"):
        for file in tmp_path.glob(f"runs/*/{name}"):
            file.unlink()
    page = write(tmp_path / "runs", tmp_path / "out").read_text()
    assert "reliability (predictions); overlap" in page


def test_errors(root: Path, out: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no complete run"):
        write(tmp_path, tmp_path / "out")
    runner = CliRunner()
    for arguments, words in (
        ([str(tmp_path / "none"), "--out", str(tmp_path / "new")], "no complete run in it"),
        ([str(root), "--out", str(out)], "not empty; --force"),
    ):
        done = runner.invoke(grafts.app, ["report", *arguments])
        assert done.exit_code == 1
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_claims_are_on_the_page_as_grafts_claims_has_them(root: Path, out: Path) -> None:
    table = pd.read_csv(out / "claims.csv")
    done = CliRunner().invoke(grafts.app, ["claims", str(root), "--json"])
    lines = json.loads(done.stdout)
    assert table["statement"].tolist() == [line["statement"] for line in lines]
    assert table["verdict"].tolist() == [line["verdict"] for line in lines]
    for text, line in zip(table["measured"], lines, strict=True):
        known = line["measured"]
        assert text.startswith(f"{known['mean']:.3f}" if known else "–")
    assert "tabular" in (out / "claims.tex").read_text()
    section = (out / "index.html").read_text().partition('<section id="claims">')[2]
    for verdict in table["verdict"]:
        assert f"<td>{verdict}</td>" in section


def test_the_next_report_takes_away_what_the_last_one_wrote(root: Path, tmp_path: Path) -> None:
    """And nothing else; whatever the list says, no file outside of its folder."""
    runs, out = tmp_path / "runs", tmp_path / "out"
    shutil.copytree(root, runs, ignore=shutil.ignore_patterns("sweeps", ".*"))
    (out / "mine").mkdir(parents=True)
    kept = [out / "mine" / "note.txt", tmp_path / "outside.txt"]
    for file in kept:
        file.touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PARTS", {"overlap": parts.overlaps, "ood": parts.ood})
        write(runs, out)
        first = files.read_json(out / MANIFEST)["files"]
        assert {f.relative_to(out).as_posix() for f in out.rglob("*") if f.is_file()} == {
            *first, MANIFEST, "mine/note.txt",
        }  # fmt: skip
        gone = next(f for f in runs.iterdir() if checksums.is_complete(f) and steps(f) == 6)
        shutil.rmtree(gone)
        names = [*first, "../outside.txt", str(kept[1])]
        files.write_json(out / MANIFEST, {"files": names})
        write(runs, out)
    second = files.read_json(out / MANIFEST)["files"]
    assert set(second) < set(first)
    for name in first:
        assert (out / name).is_file() == (name in second)
    assert not [f for f in out.iterdir() if f.is_dir() and not any(f.iterdir())]
    assert all(file.is_file() for file in kept)


def steps(folder: Path) -> int:
    """Return the steps of fine-tuning of a run."""
    return files.read_json(folder / "status.json")["config"]["finetune.steps"]


def test_like_tasks_lie_side_by_side() -> None:
    names = list("abcd")
    matrix = pd.DataFrame(np.eye(4), names, names)
    for one, other in (("a", "c"), ("b", "d")):
        matrix.loc[one, other] = matrix.loc[other, one] = 0.8
    drawn = plots.clustered(matrix, "", "IoU")
    order = [label.get_text() for label in drawn.axes[2].get_xticklabels()]
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset("ac"), frozenset("bd")}
    assert len(drawn.axes[0].collections) > 0  # the tree
    matrix.loc["a", "b"] = matrix.loc["b", "a"] = np.nan
    unknown = plots.clustered(matrix, "", "IoU")
    assert [label.get_text() for label in unknown.axes[0].get_xticklabels()] == names


def test_names_with_numbers_are_in_the_order_of_the_numbers() -> None:
    """On axes and in legends; names without a number are in the order of the alphabet."""
    names = ["b", "a, 0.01", "a, 1e-05", "a, 0.001", "ticket, 100 steps", "ticket, 20 steps", "a"]
    assert sorted(names, key=plots.by_number) == [
        "a", "a, 1e-05", "a, 0.001", "a, 0.01", "b", "ticket, 20 steps", "ticket, 100 steps",
    ]  # fmt: skip


def test_a_model_has_one_colour_in_every_figure() -> None:
    titles = ["fine-tuned", "fine-tuned, temperature scaled", "graft", "BitFit"]
    colours = plots.palette(titles)
    assert len(set(colours)) == len(titles)
    assert (colours[0], colours[2]) == (plots.COLOURS["finetuned"], plots.COLOURS["graft"])


def test_an_axis_names_the_metric_that_all_tasks_have() -> None:
    accuracy, f1 = {"graft/test/accuracy": 0.9}, {"graft/test/accuracy": 0.9, "graft/test/f1": 0.8}
    for rows, label in (
        ([accuracy, accuracy], "accuracy"),
        ([f1, f1], "F1"),
        ([accuracy, f1], "score"),
        ([{**accuracy, "graft/test/matthews": 0.5}], "Matthews correlation"),
    ):
        assert labels.metric_label(pd.DataFrame(rows)) == label
