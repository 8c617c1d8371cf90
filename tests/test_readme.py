"""Every README says what is true: commands compose, code compiles, links lead somewhere, tables are fresh."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
import typer
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException

import find_lines
import measure_house
from skillgraft.config import packages
from skillgraft.config.compose import register

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "bench"))
import render  # noqa: E402

READMES = [
    ROOT / "README.md",
    *sorted(
        path
        for folder in ("conf", "multirun_sweeps", "src", "tests")
        for path in (ROOT / folder).rglob("README.md")
    ),
]
NAMES = [path.relative_to(ROOT).as_posix() for path in READMES]
TOP = READMES[0].read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SWEEPS = ("embedded=", "paper=", "beyond=", "sweep=")
LAUNCHERS = {
    "cores": "hydra_plugins.hydra_joblib_launcher",
    "slurm": "hydra_plugins.hydra_submitit_launcher",
    "slurm_local": "hydra_plugins.hydra_submitit_launcher",
    "ray_cluster": "hydra_plugins.hydra_ray_launcher",
}


def blocks(text: str, *languages: str) -> list[str]:
    """Return the code blocks of these languages."""
    return [code for language, code in FENCE.findall(text) if language in languages]


def commands(program: str) -> list[str]:
    """Return every line of the READMEs' shell blocks that calls a program, continuations joined."""
    found = []
    for path in READMES:
        for block in blocks(path.read_text(encoding="utf-8"), "bash", "sh"):
            lines = re.sub(r"\\\n\s*", "", block).splitlines()
            found += [line.strip() for line in lines if line.startswith(f"{program} ")]
    return list(dict.fromkeys(found))


def words(line: str) -> list[str]:
    """Return the arguments of a command, without the comment behind it."""
    return shlex.split(line, comments=True)[1:]


# ------------------------------------------------------------------------------- commands


@pytest.mark.parametrize("line", commands("skillgraft"))
def test_skillgraft_command_composes(line: str, tmp_path: Path) -> None:
    """The configuration of the command, or of a sweep's first job, is composed and fits the schema."""
    options = get_args_parser().parse_args(words(line))
    overrides = list(options.overrides)
    sweeps = any(word.startswith(SWEEPS) for word in overrides)  # their files say MULTIRUN
    if options.multirun or sweeps:
        overrides = [word if "[" in word else word.split(",")[0] for word in overrides]
    for launcher, module in LAUNCHERS.items():
        if f"hydra/launcher={launcher}" in overrides:
            pytest.importorskip(module)
    if options.config_dir:  # the user's own folder: any task and sweep file will do
        for word in overrides:
            group, _, name = word.partition("=")
            if group in ("task", "sweep"):
                file = tmp_path / group / f"{name}.yaml"
                file.parent.mkdir()
                base = "# @package _global_\nseed: 13\n" if group == "sweep" else "defaults: [mr]\n"
                file.write_text(base)
        overrides.append(f"hydra.searchpath=[file://{tmp_path},file://{packages.SWEEPS}]")
    register()
    with initialize_config_dir(str(packages.CONF), version_base="1.3"):
        try:
            cfg = compose("run", overrides=overrides, return_hydra_config=True)
        except HydraException as error:
            pytest.fail(f"{line}\n{error}")
    assert cfg.task.name


@pytest.mark.parametrize("line", commands("grafts"))
def test_grafts_command_is_known(line: str) -> None:
    """The command exists and takes these arguments and options; nothing is run."""
    from skillgraft.cli.grafts import app

    group = typer.main.get_command(app)
    assert isinstance(group, click.Group | typer.core.TyperGroup)
    name, *arguments = words(line)
    context = group.make_context("grafts", [name], resilient_parsing=True)
    command = group.get_command(context, name)
    assert command is not None, f"grafts has no command {name}"
    try:
        command.make_context(name, arguments, parent=context)
    except Exception as error:
        if hasattr(error, "format_message"):  # click's own, or typer's copy of it
            pytest.fail(f"{line}\n{error.format_message()}")
        raise


@pytest.mark.parametrize("line", commands("python"))
def test_python_command_names_a_script_and_its_options(line: str) -> None:
    script, *arguments = words(line)
    if script.startswith("-"):  # python -m MODULE
        assert script == "-m"
        spec = find_spec(arguments[0])
        assert spec is not None, line
        return
    text = (ROOT / script).read_text(encoding="utf-8")
    for option in (word.split("=")[0] for word in arguments if word.startswith("--")):
        assert f'"{option}"' in text, option


@pytest.mark.parametrize("name", NAMES)
def test_code_compiles(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for code in blocks(text, "python"):
        compile(code, name, "exec")
    for code in blocks(text, "toml"):
        tomllib.loads(code)
    for code in blocks(text, "yaml"):
        yaml.safe_load(code)


def test_the_languages_of_blocks_are_known() -> None:
    """A block in another language would be checked by nobody."""
    known = {"bash", "python", "toml", "yaml", "text", "json", "bibtex"}
    for path in READMES:
        assert {language for language, _ in FENCE.findall(path.read_text("utf-8"))} <= known, path


def test_both_installs_keep_to_the_lock() -> None:
    installs = [b for b in blocks(TOP, "bash") if "-m venv" in b and "download.pytorch" not in b]
    assert len(installs) == 2
    assert all("pip install -c .ci/constraints.txt " in block for block in installs)


def test_the_cpu_build_is_that_of_the_lock() -> None:
    lock = (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8")
    (version,) = re.findall(r"^torch==(\S+)$", lock, re.MULTILINE)
    assert f"pip install torch=={version} " in TOP


def test_ci_finds_the_test_command() -> None:
    """.ci/run takes the command that follows the marker."""
    part = TOP.split("<!-- test -->\n")[1]
    (line,) = blocks(part[: part.index("\n```\n") + 5], "bash")[0].splitlines()
    assert line.endswith("pytest -n 2")


# ------------------------------------------------------------------------------ form and links


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    path = ROOT / name
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?:|#", target):
            assert (path.parent / target.split("#")[0]).exists(), target


def test_the_top_readme_is_short() -> None:
    assert len(TOP.encode()) <= 15_000
    plain = FENCE.sub("", TOP)
    for paragraph in re.split(r"\n\s*\n", plain):
        lines = paragraph.strip().splitlines()
        if lines and lines[0][0] not in "|#-!<":
            assert len(lines) <= 4, paragraph
            assert max(map(len, lines)) <= 160, paragraph


def test_the_picture_is_small_and_there() -> None:
    (name,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", TOP)
    assert (ROOT / name).read_text(encoding="utf-8").startswith("<?xml")
    assert (ROOT / name).stat().st_size < 100_000


@pytest.mark.parametrize("name", NAMES)
def test_spelling_is_american(name: str) -> None:
    british = (
        r"\b(licence\w*|\w*isations?|\w*colour\w*|behaviour\w*"
        r"|\w*(?:optim|general|initial|normal|verbal)is(?:e|ed|es|er|ing))\b"
    )
    text = FENCE.sub("", (ROOT / name).read_text(encoding="utf-8"))
    assert not re.findall(british, text, re.IGNORECASE)


# ------------------------------------------------------------------------------ fresh tables


def test_the_picture_of_the_rooms_is_the_contract_of_import_linter() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    text = (ROOT / "src" / "skillgraft" / "README.md").read_text(encoding="utf-8")
    (picture,) = blocks(text.split("<!-- rooms -->")[1].split("<!-- /rooms -->")[0], "text")
    assert [re.split(r"  +", line)[0] for line in picture.splitlines()] == layers


def test_the_table_that_finds_lines_is_fresh() -> None:
    text = find_lines.README.read_text(encoding="utf-8")
    assert text == find_lines.rendered(text), "run: python tests/find_lines.py --write"


def test_the_measures_of_the_house_are_fresh() -> None:
    text = measure_house.README.read_text(encoding="utf-8")
    now = measure_house.rendered(text)
    assert len(text.splitlines()) == len(now.splitlines()), (
        "run: python tests/measure_house.py --write"
    )
    for written, found in zip(text.splitlines(), now.splitlines(), strict=True):
        stale = measure_house.is_stale(written, found)
        assert not stale, f"run: python tests/measure_house.py --write\n{written}\n{found}"


def test_a_table_is_stale_where_a_word_or_a_number_has_changed() -> None:
    line = "| largest file, lines | 910 (run.py) | 300 (a.py) |"
    assert not measure_house.is_stale(line, line.replace("300", "310"))
    assert measure_house.is_stale(line, line.replace("300", "330"))
    assert measure_house.is_stale(line, line.replace("a.py", "b.py"))


def test_import_levels_count_the_longest_chain() -> None:
    chain = {"a": {"b"}, "b": {"c"}, "c": set(), "d": {"c"}}
    assert measure_house.levels(chain) == 3
    assert measure_house.levels({**chain, "c": {"b"}}) == 2  # b and c stand on one level


def test_the_tables_of_the_benchmarks_are_fresh() -> None:
    text = render.README.read_text(encoding="utf-8")
    assert text == render.rendered(text), "run: python tests/bench/render.py --write"
