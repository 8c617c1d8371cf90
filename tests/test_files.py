"""Atomic writes: complete or not at all, for every kind of writer."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from skillgraft.runtime import files

WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("new"),
    "bytes": lambda path: path.write_bytes(b"new"),
    "safetensors": lambda path: save_file({"new": torch.ones(2)}, path),
}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("fixed", [False, True])
def test_the_file_appears_at_the_end_alone(
    tmp_path: Path, writer: str, exists: bool, fixed: bool
) -> None:
    path, scratch = tmp_path / "file", tmp_path / "file.partial" if fixed else None
    if exists:
        path.write_text("old")
    before = path.read_bytes() if exists else None
    with files.atomic_write(path, scratch) as written:
        WRITERS[writer](written)
        assert (path.read_bytes() if path.exists() else None) == before
        content = written.read_bytes()
        assert written == (scratch or written)
    assert path.read_bytes() == content
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("exists", [False, True])
def test_a_writer_that_raises_changes_nothing(
    tmp_path: Path, error: type[BaseException], exists: bool
) -> None:
    path = tmp_path / "file"
    if exists:
        path.write_text("old")

    def write() -> None:
        with files.atomic_write(path) as scratch:
            scratch.write_text("half of the ne")
            raise error

    with pytest.raises(error):
        write()
    assert names(tmp_path) == (["file"] if exists else [])
    assert not exists or path.read_text() == "old"


def test_a_rename_that_fails_leaves_no_scratch_file(tmp_path: Path) -> None:
    (folder := tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        files.write_text(folder, "text")
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_those_that_open_gives(tmp_path: Path, writer: str, mask: int) -> None:
    path, plain = tmp_path / "file", tmp_path / "plain"
    before = os.umask(mask)
    try:
        plain.touch()
        with files.atomic_write(path) as scratch:
            WRITERS[writer](scratch)
    finally:
        os.umask(before)
    assert path.stat().st_mode == plain.stat().st_mode


def test_scratch_names_are_unique_and_a_fixed_one_is_used_again(tmp_path: Path) -> None:
    path, fixed = tmp_path / "file", tmp_path / "file.partial"
    with files.atomic_write(path) as first, files.atomic_write(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # whose block ended last
    fixed.write_text("left by a kill, and longer")
    fixed.chmod(0o600)
    with files.atomic_write(path, fixed) as scratch:
        scratch.write_text("new")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file"]


def test_scratch_files_of_records_are_no_records(tmp_path: Path) -> None:
    """Readers look for *.json and *.safetensors in folders that others write to."""
    for name in ("a.json", "a.safetensors"):
        with files.atomic_write(tmp_path / name) as scratch:
            assert not list(tmp_path.glob(f"*{Path(name).suffix}"))
            assert scratch.parent == tmp_path


def test_json_is_strict_and_complete_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"ä": [1.5, None]})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="Out of range float"):
        files.write_json(path, {"a": float("nan")})
    assert path.read_bytes() == before
    assert names(tmp_path) == ["a.json"]
