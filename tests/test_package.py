"""What users get: the wheel with its configuration, sweep files and license, and the lock."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from runs import SMALL

ROOT = Path(__file__).resolve().parents[1]


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


def test_wheel_has_the_license_and_the_citation(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (info,) = {n.split("/")[0] for n in archive.namelist() if ".dist-info/" in n}
    facts = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
    assert facts["License-Expression"] == "Apache-2.0"
    files = {name.rpartition("/")[2]: name for name in facts.get_all("License-File", [])}
    assert sorted(files) == ["CITATION.cff", "LICENSE"]
    texts = {n: archive.read(f"{info}/licenses/{file}").decode() for n, file in files.items()}
    assert "Apache License" in texts["LICENSE"]
    assert "END OF TERMS AND CONDITIONS" in texts["LICENSE"]
    citation = yaml.safe_load(texts["CITATION.cff"])
    assert citation["version"] == facts["Version"]
    assert citation["license"] == facts["License-Expression"]
    assert citation["references"][0]["year"] == 2023


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
    assert "size_from: learned" in composed.stdout
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
