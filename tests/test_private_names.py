"""Private names of other packages, which an upgrade may take away: which there are, and where."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import pytest

import skillgraft

SOURCE = Path(skillgraft.__file__).parent
# Attributes of objects, whose class no reader of the source alone can tell: attribute → its full name.
ATTRIBUTES = {"_to_model": "wandb_workspaces.workspaces.interface.Workspace._to_model"}
# No private names: a function of Python's, a key of Hydra's configuration, IPython's protocol.
PUBLIC = {"_exit", "_target_", "_repr_html_"}


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def imports(tree: ast.Module) -> dict[str, str]:
    """The names that a module imports, and what they stand for; its own package's are not among them."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.name if alias.asname else alias.name.partition(".")[0]
                found[alias.asname or name] = name
        elif isinstance(node, ast.ImportFrom):
            found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return {short: full for short, full in found.items() if not full.startswith("skillgraft.")}


def own(tree: ast.Module) -> set[str]:
    """The private names that a module defines or sets itself."""
    names = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    names |= {
        n.attr if isinstance(n, ast.Attribute) else n.id
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute | ast.Name) and isinstance(n.ctx, ast.Store)
    }
    return set(filter(private, names))


def used(tree: ast.Module) -> Iterator[str]:
    """The full names of private things of other packages, which a module uses."""
    known, mine = imports(tree), own(tree)
    for full in known.values():
        if any(map(private, full.split("."))):
            yield full
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr) and node.attr not in PUBLIC:
            first, *rest = ast.unparse(node).split(".")
            if first in known:
                yield ".".join([known[first], *rest])
            elif node.attr not in mine:
                yield ATTRIBUTES.get(node.attr, f"unknown.{node.attr}")


def overridden(tree: ast.Module, module: str) -> Iterator[str]:
    """The private methods of other packages' classes, which a module's classes override."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef) or not node.bases:
            continue
        methods = {n.name for n in node.body if isinstance(n, ast.FunctionDef) and private(n.name)}
        if methods:
            for base in getattr(importlib.import_module(module), node.name).__mro__[1:]:
                if not base.__module__.startswith("skillgraft"):
                    for name in methods & set(vars(base)):
                        yield f"{base.__module__}.{base.__qualname__}.{name}"


def uses() -> dict[str, set[str]]:
    """Full name → files, of the private names that the package uses."""
    found: dict[str, set[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        file = path.relative_to(SOURCE.parent)
        tree, module = ast.parse(path.read_text()), ".".join(file.with_suffix("").parts)
        for name in {*used(tree), *overridden(tree, module)}:
            if name.partition(".")[0] not in sys.stdlib_module_names:
                found.setdefault(name, set()).add(str(file))
    return found


USES = uses()


def resolve(name: str) -> Any:
    """What a full name stands for: a module as far as it goes, then attributes."""
    parts = name.split(".")
    thing, at = importlib.import_module(parts[0]), 1
    for at, part in enumerate(parts[1:], 1):
        if not hasattr(thing, part):
            importlib.import_module(".".join(parts[: at + 1]))
        thing = getattr(thing, part)
    return thing


@pytest.mark.parametrize("name", USES)
def test_a_private_name_is_in_the_installed_version(name: str) -> None:
    files, package = ", ".join(sorted(USES[name])), name.partition(".")[0]
    assert package != "unknown", (
        f"{files} uses {name.partition('.')[2]}: use a public name, or say in ATTRIBUTES whose it is"
    )
    try:
        resolve(name)
    except (AttributeError, ImportError):
        (distribution, *_) = packages_distributions()[package]
        pytest.fail(f"{distribution} {version(distribution)} has no {name}, which {files} uses")


def test_a_package_s_private_names_are_in_one_file() -> None:
    files: dict[str, set[str]] = {}
    for name, where in USES.items():
        files.setdefault(name.partition(".")[0], set()).update(where)
    assert {package: where for package, where in files.items() if len(where) > 1} == {}


def test_what_is_found() -> None:
    """Of a module that has one of each kind, and of the standard library and itself what is left out."""
    tree = ast.parse(
        "import torch\n"
        "import numpy as np\n"
        "import os\n"
        "from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher\n"
        "from hydra._internal.utils import x\n"
        "class A:\n"
        "    def _mine(self): self._kept = 1\n"
        "    def other(self, a): return a._mine, a._kept, a._theirs, os._exit\n"
        "torch._dynamo.config.x = 1\n"
        "np._core.multiarray\n"
    )
    assert sorted(set(used(tree))) == [
        "hydra._internal.utils.x",
        "numpy._core",
        "pytorch_lightning.strategies.launchers._MultiProcessingLauncher",
        "torch._dynamo",
        "unknown._theirs",
    ]
