"""Every command of `grafts`: readable JSON, the same exit code with it, an example in its help."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

from runs import FEW, TINY, make
from skillgraft.analysis import plots
from skillgraft.cli import grafts, program
from skillgraft.config.schema import ClaimConfig
from skillgraft.embedded import MODEL
from skillgraft.runtime import files
from skillgraft.store import garbage, index
from stores import add, status

GROUP = get_command(grafts.app).commands  # type: ignore[attr-defined]
# How each command is called in a store `runs` with the runs `a` and `b`; a new command needs a line.
CALLS: dict[str, str] = {
    "list": "runs",
    "table": "runs",
    "claims": "runs",
    "compare": "{a}",
    "show": "{a}",
    "verify": "{a}",
    "apply": "{a} --out model",
    "overlap": "{a} {b}",
    "combine": "{a} {b} --out both.safetensors",
    "extract": "{base} {base} --out none.safetensors",
    "rerun": "{a} --cached",
    "report": "runs",
    "gc": "runs",
    "push": "{a} me/toy-film --dry-run",
    "dashboard": "skillgraft --store runs",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A store of two runs, and a sweep of them with a claim."""
    folder = tmp_path_factory.mktemp("grafts")
    root = folder / "runs"
    tasks = ("toy_film", "toy_book")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save", lambda _, path: path)
        runs = [make(root, *TINY, *FEW, "graft.steps=0", f"task={task}").name for task in tasks]
    (root / "sweeps" / "of-two").mkdir(parents=True)
    claim = dataclasses.asdict(ClaimConfig(name="sparsity_curve"))
    record = {"name": "of-two", "claim": claim, "jobs": str(folder / "gone"), "runs": runs}
    files.write_json(root / "sweeps" / "of-two" / "record.json", record)
    return folder, runs


@pytest.fixture
def call(
    made: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Call a command in a copy of the store, without drawing."""
    shutil.copytree(made[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)

    def save(drawing: object, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    monkeypatch.setattr(plots, "save", save)
    names = {name: f"runs/{run}" for name, run in zip("ab", made[1], strict=True)}

    def invoke(name: str, *more: str) -> Result:
        arguments = CALLS[name].format(**names, base=MODEL).split()
        return CliRunner().invoke(grafts.app, [name, *arguments, *more])

    return invoke


@pytest.mark.parametrize("name", GROUP)
def test_help_has_the_option_and_an_example(name: str) -> None:
    assert "--json" in [option for p in GROUP[name].params for option in p.opts]
    assert f"Example: grafts {name}" in (GROUP[name].help or "")


@pytest.mark.parametrize(
    "name", sorted(set(GROUP) - {"sync"})
)  # whose own test needs W&B's records
def test_json_is_one_document_on_the_standard_output(
    name: str, call: Callable[..., Result]
) -> None:
    done = call(name, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)


@pytest.mark.parametrize("name", ["list", "show", "verify", "compare", "gc"])
def test_without_the_option_it_is_text(name: str, call: Callable[..., Result]) -> None:
    done = call(name)
    assert done.exit_code == 0, done.output
    assert done.stdout.strip()
    with pytest.raises(json.JSONDecodeError):
        json.loads(done.stdout)


def test_what_else_is_printed_goes_to_the_standard_error(
    call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(garbage, "freeable", lambda _: print("a library's own words") or [])
    done = call("gc", "--json")
    assert json.loads(done.stdout) == {"freed": 0, "items": []}
    assert done.stderr == "a library's own words\n"


def test_what_is_wrong_has_the_same_exit_code_in_both(call: Callable[..., Result]) -> None:
    file = next(Path("runs").glob("toy_film-*/metrics.json"))
    with file.open("a") as stream:
        stream.write(" ")
    codes = []
    for more in ((), ("--json",)):
        done = call("verify", *more)
        codes.append(done.exit_code)
        assert done.stderr == f"{file}: altered\n"
    said = json.loads(done.stdout)
    assert codes == [1, 1]
    assert said["wrong"] == [f"{file}: altered"]
    shutil.rmtree("runs")
    for more in ((), ("--json",)):
        done = call("list", *more)
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr.count("\n") == 1


def test_numbers_of_a_table_are_numbers(call: Callable[..., Result]) -> None:
    lines = json.loads(call("table", "--json", "--columns", "graft/test/ece").stdout)
    for line in lines:
        (file,) = Path("runs").glob(f"{line['task']}-*/metrics.json")
        ece = files.read_json(file)["graft"]["test"]["ece"]
        assert line["graft/test/ece"] == {"mean": ece, "low": None, "high": None, "n": 1}


def offered(line: str) -> list[str]:
    """Return what a shell is told for a command line, by the words of bash's protocol."""
    words = line.split(" ")
    environment = {
        "_GRAFTS_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1),
    }  # fmt: skip
    done = CliRunner().invoke(grafts.app, prog_name="grafts", env=environment)
    assert done.exit_code == 0, done.output
    return done.stdout.split()


def test_a_shell_is_offered_commands_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):
        add(tmp_path / "runs", n)
    monkeypatch.chdir(tmp_path)
    runs = [f"runs/{status(n)['id']}" for n in range(3)]
    assert offered("grafts comb") == ["combine"]
    for line in (
        "grafts show ",
        "grafts verify ru",
        "grafts rerun runs/toy_0",
        f"grafts overlap {runs[0]} r",
    ):
        assert offered(line) == runs
    assert offered(f"grafts show {runs[1][:-1]}") == runs[1:2]
    assert offered(f"grafts show {tmp_path}/runs/") == [f"{tmp_path}/{r}" for r in runs]
    # the index answers: no file of a run is read
    monkeypatch.setattr(index, "entry", lambda *_: pytest.fail("a folder was read"))
    assert offered("grafts show ") == runs


def test_no_index_is_made_where_there_is_no_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for line in ("grafts show ", "grafts show ./", "grafts show none/"):
        assert offered(line) == []
    assert not list((tmp_path / "runs").iterdir())
    assert [f.name for f in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize("width", [200, 40])
def test_a_table_is_drawn_on_a_terminal_that_has_room_for_it(
    call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """Elsewhere it is Markdown; a narrow one would cut the ids."""
    plain = call("gc").stdout
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(width))
    capture = io.StringIO()
    capture.isatty = lambda: True  # type: ignore[method-assign]
    with contextlib.redirect_stdout(capture):
        program.emit(program.CommandResult({}, plain.rstrip("\n")), as_json=False)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capture.getvalue())
    assert (shown == plain) == (width == 40)
    for word in re.findall(r"[\w./-]*\w", plain):
        assert word in shown
