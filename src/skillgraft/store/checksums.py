"""Complete folders, and the SHA-256 checksums of their files."""

from __future__ import annotations

from pathlib import Path

from skillgraft.runtime import digests
from skillgraft.store.names import CHECKSUMS, STATUS


def is_complete(folder: Path) -> bool:
    """Return whether the folder of a run or fine-tuning is complete.

    `status.json` is the last file that is written before the folder is renamed to its final name.
    """
    return (folder / STATUS).is_file()


def write_checksums(folder: Path) -> None:
    """Write checksums.txt, in the format of `sha256sum -c`, with every file of a folder."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and not f.is_symlink())
    lines = [
        f"{digests.file_digest(file)}  {file.relative_to(folder).as_posix()}\n"
        for file in files
        if file.name not in (CHECKSUMS, STATUS)
    ]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def recorded(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file by the file's name, as recorded in a folder's checksums.txt."""
    listing = folder / CHECKSUMS
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else []
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def verify(folder: Path) -> list[str]:
    """Return one line for each missing or altered file of a complete folder, and none where all match."""
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
