"""What the READMEs show of files: keys, tasks, sweeps and what was measured."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

import render_docs
from runs import grafts
from skillgraft.analysis.claims import results
from skillgraft.config import selectors
from skillgraft.config.keys import nested
from skillgraft.config.schema import RunConfig
from skillgraft.evaluation.intervals import Interval
from skillgraft.runtime.errors import InputError

FILES = sorted(render_docs.RESULTS.glob("*.json"))


def schemas(schema: type = RunConfig) -> list[type]:
    """Return a dataclass of the schema and all that are inside it: of `graft` every selector's options."""
    inside = [found for inner in nested(schema).values() for found in schemas(inner)]
    if schema is RunConfig:
        inside.remove(selectors.union())
        inside += [selectors.options_of(name) for name in sorted(selectors.modules())]
    return [schema, *inside]


@pytest.mark.parametrize("name", render_docs.BLOCKS)
def test_readme_shows_what_the_files_have(name: str) -> None:
    found = (render_docs.ROOT / name).read_text(encoding="utf-8")
    assert found == render_docs.rendered(name), "python tests/render_docs.py writes it"


def test_a_readme_that_lacks_a_marker_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render_docs, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text("<!-- claims -->\n")
    with pytest.raises(ValueError, match=r"README\.md: expected the lines '<!-- claims -->' and"):
        render_docs.rendered("README.md")


# ------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    "schema",
    dict.fromkeys(schemas()),
    ids=lambda schema: f"{schema.__module__.rpartition('.')[2]}.{schema.__name__}",
)
def test_every_field_has_a_docstring_that_is_a_sentence(schema: type) -> None:
    docs = render_docs.field_docs(schema)
    assert list(docs) == [entry.name for entry in dataclasses.fields(schema)]
    for name, text in docs.items():
        assert re.match(r"[A-Zλ`].*\.$", text), name


@dataclasses.dataclass
class Shared:
    """Options that two have."""

    steps: int | None = None
    """Steps,
    in two lines."""


@dataclasses.dataclass
class Options(Shared):
    """Options of one."""

    rate: float = dataclasses.field(default=0.5, metadata={"low": 0, "high": 1})
    """A rate."""
    names: list[str] = dataclasses.field(default_factory=list)
    """Names."""


def test_docstrings_of_fields_are_read_with_those_of_the_bases() -> None:
    docs = {"steps": "Steps, in two lines.", "rate": "A rate.", "names": "Names."}
    assert render_docs.field_docs(Options) == docs
    values = {"steps": None, "rate": 0.5, "names": ["a", "b"]}
    rows = [list(row.values()) for row in render_docs.key_rows(Options, values, "graft.")]
    assert rows == [
        ["`graft.steps`", "integer, or null", "`null`", "Steps, in two lines."],
        ["`graft.rate`", "number from 0 to 1", "`0.5`", "A rate."],
        ["`graft.names`", "list: text", "`[a,b]`", "Names."],
    ]


# ----------------------------------------------------------------------------------------- sweeps


def test_every_sweep_file_asks_a_question() -> None:
    for group in ("embedded", "paper", "beyond"):
        for file in render_docs.sweep_files(group):
            assert render_docs.comment(file, "Question: ").endswith("?"), file


@pytest.mark.parametrize(
    ("name", "runs", "trainings"),
    [
        ("embedded=sparsity_curve", 5 * 8 * 3 * 4, 5 * 8),
        ("embedded=adamw", 5 * 3 * 2 * 2, 5 * 3 * 2),
        ("embedded=overlap", 5 * 8 * 2, 5),
        ("beyond=smollm2", 2, 1),
    ],
)
def test_runs_of_a_sweep_are_counted(name: str, runs: int, trainings: int) -> None:
    assert render_docs.size(render_docs.configuration((name,)))[:2] == (runs, trainings)


# ---------------------------------------------------------------------------------------- results


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_result_belongs_to_a_sweep_file(file: Path) -> None:
    result = json.loads(file.read_text(encoding="utf-8"))
    assert result["sweep"] == file.stem
    group, name, *_ = file.stem.split("-")
    assert (render_docs.SWEEPS / group / f"{name}.yaml").is_file()
    assert result["command"].startswith(f"skillgraft {group}={name}")
    made = result["made"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", made["date"])
    assert made["machine"]
    assert re.fullmatch(r"[0-9a-f]{40}", made["commit"])
    assert made["seeds"] == sorted(set(made["seeds"]))
    assert result.get("statements") or result.get("table")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_verdict_is_that_of_its_interval(file: Path) -> None:
    result = json.loads(file.read_text(encoding="utf-8"))
    for statement in result.get("statements", ()):
        found = Interval(**statement["measured"])
        assert found.n == len(result["made"]["seeds"])
        assert found.low is not None
        assert found.high is not None
        assert found.low <= found.mean <= found.high
        assert statement["verdict"] in (*render_docs.VERDICTS, "–")


def test_grafts_claims_prints_the_rows_of_the_readme() -> None:
    code, printed = grafts("claims", str(render_docs.RESULTS))
    assert code == 0, printed
    text = (render_docs.ROOT / "multirun_sweeps" / "README.md").read_text(encoding="utf-8")
    lines = [re.sub(r" +", " ", line) for line in printed.splitlines()[2:] if line]
    assert lines
    assert not [line for line in lines if line not in text]
    code, printed = grafts("claims", str(render_docs.RESULTS), "--json")
    assert code == 0
    assert len(json.loads(printed)) == len(lines)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"mean": 0.5, "low": 0.25, "high": 0.75, "n": 5}, "0.500 [0.250, 0.750] (n=5)"),
        ({"mean": 1234.5, "low": 1000, "high": 1469, "n": 5}, "1,234 [1,000, 1,469] (n=5)"),
        ({"mean": 0.5, "low": None, "high": None, "n": 1}, "0.500 (n=1)"),
        ({"mean": 0.8, "sd": 0.01}, "0.800 ± 0.010"),
        ({"mean": 2706.0, "sd": 98.0}, "2,706 ± 98"),
        (0.5, "0.500"),
        (10566, "10,566"),
        ("sst2", "sst2"),
        (None, "–"),
    ],
)
def test_values_as_text(value: Any, text: str) -> None:
    assert results.shown(value) == text


@pytest.mark.parametrize("content", ["{", "[]", '{"sweep": "a"}'])
def test_a_file_that_is_no_result_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(content)
    with pytest.raises(InputError, match=re.escape(str(file))):
        results.read(tmp_path)
    code, printed = grafts("claims", str(tmp_path))
    assert code == 1
    assert printed.count("\n") == 1


def test_results_are_published_from_a_store_alone(tmp_path: Path) -> None:
    code, printed = grafts("claims", str(render_docs.RESULTS), "--out", str(tmp_path / "out"))
    assert code == 1
    assert "is no store" in printed
    assert not (tmp_path / "out").exists()
