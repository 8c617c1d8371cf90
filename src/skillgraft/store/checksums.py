"""Folders that are complete, and the checksums of their files."""

from __future__ import annotations

from pathlib import Path

from skillgraft.runtime import digests
from skillgraft.store.names import CHECKSUMS, STATUS


def is_complete(folder: Path) -> bool:
    """Return whether a run or fine-tuning is whole: its status is written last, before the rename."""
    return (folder / STATUS).is_file()


def write_checksums(folder: Path) -> None:
    """Write checksums.txt as `sha256sum -c` reads it, over every file of a folder."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and not f.is_symlink())
    lines = [
        f"{digests.file_digest(file)}  {file.relative_to(folder).as_posix()}\n"
        for file in files
        if file.name not in (CHECKSUMS, STATUS)
    ]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def recorded(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file as checksums.txt of a folder has it, by the file's name."""
    listing = folder / CHECKSUMS
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else []
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def verify(folder: Path) -> list[str]:
    """Return what is wrong with the files of a complete folder: missing or altered; else nothing."""
    if not is_complete(folder) or not (folder / CHECKSUMS).is_file():
        return [f"{folder}: not a complete run"]
    wrong = []
    for name, digest in recorded(folder).items():
        file = folder / name
        if not file.is_file():
            wrong.append(f"{file}: missing")
        elif digests.file_digest(file) != digest:
            wrong.append(f"{file}: altered")
    return wrong
