"""What users get: the wheel, the sweep files, and a README whose commands are true."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from runs import SMALL, command, composed
from skillgraft.config.keys import dotted_keys

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def readme_commands() -> list[str]:
    """Return every `skillgraft` or `grafts` line of the README's shell blocks, continuations joined."""
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", README, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [
        line.split("  #")[0].strip() for line in lines if re.match(r"(skillgraft|grafts) ?", line)
    ]


def key_table() -> Iterator[tuple[str, str | None]]:
    """Yield every key of the README's table with its default, None where a group gives it.

    Keys of one row are a.b, .c: all but the first without what they share.
    """
    table = README.partition("<!-- keys -->")[2].partition("\n\n")[0]
    for line in table.strip().splitlines()[2:]:
        named, given, *_ = line.strip("| ").split(" | ")
        first, *rest = re.findall("`([^`]+)`", named)
        keys = [first, *(k if k[0] != "." else first.rpartition(".")[0] + k for k in rest)]
        values = re.findall("`([^`]+)`", given) or [None]
        yield from zip(keys, values * len(keys) if len(values) == 1 else values, strict=True)


def test_the_table_of_keys_is_the_schema_with_its_defaults() -> None:
    names = list(dict(dotted_keys()))
    schema = [n for n in names if not any(other.startswith(f"{n}.") for other in names)]
    listed = dict(key_table())
    assert sorted(listed) == sorted(schema)
    cfg = OmegaConf.to_container(composed(), resolve=True, enum_to_str=True)
    flat = OmegaConf.create({"at": cfg})
    for key, text in listed.items():
        if text is not None:
            found = OmegaConf.select(flat, f"at.{key}")
            assert found == OmegaConf.create(f"value: {text}").value, key


def test_the_picture_is_small_and_there() -> None:
    (name,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert (ROOT / name).read_text(encoding="utf-8").startswith("<?xml")
    assert (ROOT / name).stat().st_size < 100_000


def test_top_level_is_what_it_should_be() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    top = {name.split("/")[0] for name in listed if not name.startswith(".")}
    assert top == {"pyproject.toml", "conf", "src", "tests", "multirun_sweeps", "README.md"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(out),
            str(ROOT),
        ],
        check=True,
        capture_output=True,
    )
    return next(out.glob("*.whl"))


def test_graft_and_localize_import_no_framework() -> None:
    """Torch is enough for the method: nobody who applies a graft waits for Hydra or transformers."""
    listed = "import sys; from skillgraft import Graft, localize; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", listed], capture_output=True, text=True, check=True, timeout=100
    )
    frameworks = {
        "datasets", "hydra", "huggingface_hub", "lightning", "matplotlib", "omegaconf", "pandas",
        "pytorch_lightning", "scipy", "torchmetrics", "transformers", "wandb",
    }  # fmt: skip
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "torch" in loaded
    assert not loaded & frameworks


def test_no_module_finds_files_beside_itself() -> None:
    """It would look elsewhere once it is moved; importlib.resources knows where a package lies."""
    assert not [f for f in (ROOT / "src").rglob("*.py") if "__file__" in f.read_text("utf-8")]


def test_wheel_has_the_configuration_and_the_model(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("conf", "multirun_sweeps"):
        files = {
            f"skillgraft/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / folder).rglob("*.yaml")
        }
        files = {name for name in files if not name.startswith("skillgraft/conf/local/")}
        assert files
        assert files == {n for n in names if n.startswith(f"skillgraft/{folder}/")}
    assert "skillgraft/embedded/model/model.safetensors" in names
    assert "skillgraft/py.typed" in names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl", ".pickle"))]


def test_wheel_runs_from_another_directory(wheel: Path, tmp_path: Path) -> None:
    """Installed without its dependencies, which come from a look into the test environment."""
    place = tmp_path / "venv"
    venv.create(place, with_pip=False)
    purelib = Path(sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)}))
    # A path in a .pth file makes the packages importable, but not the checkout's editable install.
    (purelib / "test_environment.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(place / "bin" / "python"), "install",
         "--no-deps", "--no-index", "--ignore-installed", "-q", str(wheel)],
        check=True,
        capture_output=True,
    )  # fmt: skip
    program = str(place / "bin" / "skillgraft")
    where = subprocess.run(
        [program, "--info", "searchpath"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert str(purelib) in where
    assert str(ROOT) not in where
    composed = subprocess.run(
        [program, "embedded=movement", "--cfg", "job"], cwd=tmp_path, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert "match: learned" in composed.stdout
    done = subprocess.run(
        [program, *SMALL, "task.ood=[]"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "runs").glob("toy_film-*"))


def test_the_lock_lies_within_the_bounds() -> None:
    """Everything that users and tests ask for is in the lock, in a version that the bounds allow."""
    lines = (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8").split()
    lock = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    for requirement in map(Requirement, wanted):
        version = lock[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), requirement.name
    assert f"torch=={lock['torch']} " in README  # what machines without a GPU install first


def test_both_installs_of_the_readme_keep_to_the_lock() -> None:
    blocks = re.findall(r"```sh\n(python3 -m venv .*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    assert all("pip install -c .ci/constraints.txt " in block for block in blocks)


@pytest.mark.parametrize("line", readme_commands())
def test_readme_command(line: str, tmp_path: Path) -> None:
    """Runs of the program are composed; of `grafts`, the options are checked."""
    program, *arguments = shlex.split(line)
    if program == "skillgraft":
        if "-m" in arguments:  # Hydra shows no configuration of a sweep: its first job's will do
            arguments = [a.split(",")[0] for a in arguments if a != "-m"]
        shown = command(*arguments, "--cfg", "hydra", cwd=tmp_path)
        assert shown.returncode == 0, shown.stderr
        assert "hydra:" in shown.stdout or "Powered by Hydra" in shown.stdout
    else:
        shown = command(arguments[0], "--help", cwd=tmp_path, program="grafts")
        assert shown.returncode == 0, shown.stderr
        for option in (a.split("=")[0] for a in arguments if a.startswith("--")):
            assert option in shown.stdout
