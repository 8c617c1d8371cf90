"""The names of files stand in one module each, and nowhere else in the package."""

from __future__ import annotations

import ast
from pathlib import Path

import skillgraft
from skillgraft.store import names as store_names
from skillgraft.training import names as training_names

PACKAGE = Path(skillgraft.__file__).parent


def file_names(module: object) -> set[str]:
    """Return the file names among the constants of a module."""
    constants = {value for name, value in vars(module).items() if name.isupper()}
    return {value for value in constants if "." in value}


NAMES = file_names(store_names) | file_names(training_names)


def spelled(file: Path) -> set[str]:
    """Return the names in the string literals of a module, alone or at the end of a path."""
    literals = [
        node.value
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return {text.rpartition("/")[2] for text in literals if " " not in text} & NAMES


def test_a_file_name_is_spelled_in_one_place() -> None:
    assert {"metrics.json", "graft.safetensors", "run.json", "resume.safetensors"} <= NAMES
    found = {
        file.relative_to(PACKAGE).as_posix(): names
        for file in sorted(PACKAGE.rglob("*.py"))
        if (names := spelled(file))
    }
    own = {"store/names.py", "training/names.py"}
    assert {name: names for name, names in found.items() if name not in own} == {}
    assert set(found) == own
