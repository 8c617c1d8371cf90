"""What a run was made with: the code's own commit, and the files that were read."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from runs import expanded
from skillgraft.config import packages
from skillgraft.experiments import provenance
from skillgraft.runtime.digests import file_digest


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    provenance.code.cache_clear()
    yield
    provenance.code.cache_clear()


def checkout(folder: Path, name: str) -> Path:
    """A repository of one commit whose project has this name; its package lies where ours does."""
    (folder / "src" / "skillgraft").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(f'[project]\nname = "{name}"\n')
    git = ("git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@example.org")
    for arguments in (("init", "-q"), ("add", "-A"), ("commit", "-qm", "first")):
        subprocess.run([*git, *arguments], check=True, capture_output=True)
    return folder / "src" / "skillgraft"


def test_commit_and_whether_it_was_dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "PACKAGE", checkout(tmp_path, "skillgraft"))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "another"))  # as inside a git hook
    clean = provenance.code()
    assert clean is not None
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "skillgraft"\n# changed\n')
    assert provenance.code() is clean  # the code that was imported has not changed
    provenance.code.cache_clear()
    assert provenance.code() == {**clean, "dirty": True}


@pytest.mark.parametrize(
    ("name", "dirty"), [("src/skillgraft/new.py", True), ("conf/task/new.yaml", True),
                        ("src/notes.txt", False), ("runs/config.yaml", False)],
)  # fmt: skip
def test_code_that_git_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, dirty: bool
) -> None:
    monkeypatch.setattr(packages, "PACKAGE", checkout(tmp_path, "skillgraft"))
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    code = provenance.code()
    assert code is not None
    assert code["dirty"] is dirty


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux forgets")
def test_the_peak_of_memory_is_the_runs_own() -> None:
    """Not of an earlier run of the same process."""
    provenance.forget_peaks("cpu")
    before = provenance.peaks("cpu")["peak_memory_mib"]
    held = b"x" * 2**27
    del held
    assert provenance.peaks("cpu")["peak_memory_mib"] >= before + 100
    provenance.forget_peaks("cpu")
    assert provenance.peaks("cpu")["peak_memory_mib"] < before + 64


def test_repository_of_somebody_else_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "PACKAGE", checkout(tmp_path, "theirs"))
    assert provenance.code() is None


def test_files_of_a_folder_of_data(tmp_path: Path) -> None:
    """Of the run's task all splits, of an OOD set the test rows; meta.json says what labels mean."""
    read = {"sst2/train.jsonl", "sst2/test.csv", "sst2/meta.json", "cr/test.jsonl"}
    for name in (*read, "cr/train.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    cfg = expanded("task=sst2", f"data_dir={tmp_path}", "task.ood=[cr]")
    found = provenance.files(cfg, tmp_path / "cache")
    below = {Path(path) for path in found if tmp_path in Path(path).parents}
    assert {path.relative_to(tmp_path).as_posix() for path in below} == read
    assert all(digest == file_digest(Path(path)) for path, digest in found.items())
