"""Functions with many parameters say what each of them is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import skillgraft

PACKAGE = Path(skillgraft.__file__).parent
MANY = 5  # parameters, without self and cls
BEING_REWRITTEN = {"experiments/making.py", "experiments/run.py"}
MODULES = [
    file.relative_to(PACKAGE).as_posix()
    for file in sorted(PACKAGE.rglob("*.py"))
    if file.relative_to(PACKAGE).as_posix() not in BEING_REWRITTEN
]


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Return the names of a function's parameters, without self and cls."""
    of = function.args
    named = [*of.posonlyargs, *of.args, *of.kwonlyargs, *filter(None, (of.vararg, of.kwarg))]
    return [one.arg for one in named if one.arg not in ("self", "cls")]


def is_command(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return whether this is a command of `grafts`: its options have help texts of their own."""
    calls = (one.func for one in function.decorator_list if isinstance(one, ast.Call))
    return any(isinstance(called, ast.Name) and called.id == "command" for called in calls)


def functions(tree: ast.Module) -> Iterator[tuple[str, list[str], str]]:
    """Yield name, parameters and docstring of every function; a class documents its __init__."""
    holders = {
        id(part): node
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for part in node.body
    }
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not is_command(node):
            of = holders.get(id(node)) if node.name == "__init__" else None
            name = f"{of.name}.{node.name}" if of is not None else node.name
            yield name, parameters(node), ast.get_docstring(of or node) or ""


def undocumented(names: list[str], docstring: str) -> list[str]:
    """Return the parameters that have no line of their own in the Args section of a docstring."""
    section = docstring.partition("\nArgs:\n")[2].partition("\n\n")[0]
    lines = {line.strip().partition(": ")[0] for line in section.splitlines() if ": " in line}
    return [name for name in names if name not in lines]


@pytest.mark.parametrize("module", MODULES)
def test_five_parameters_and_more_are_documented(module: str) -> None:
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    wrong = {
        name: missing
        for name, of, docstring in functions(tree)
        if len(of) >= MANY and (missing := undocumented(of, docstring))
    }
    assert wrong == {}


def test_what_is_missing_is_found() -> None:
    tree = ast.parse('''
class A:
    """A class.

    Args:
        a: one.
        b, c: two.
    """

    def __init__(self, a, b, *, c, d, **e): ...
''')
    ((name, names, docstring),) = functions(tree)
    assert (name, names) == ("A.__init__", list("abcde"))
    assert undocumented(names, docstring) == list("bcde")


def test_citations_name_what_readers_have() -> None:
    """Not the sections of a description of the method that does not travel with the package."""
    for module in MODULES:
        text = (PACKAGE / module).read_text(encoding="utf-8")
        assert "method: section" not in text, module
