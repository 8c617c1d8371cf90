"""What the house measures: files, functions, classes and imports of the package, as one table.

    python tests/measure_house.py                      # print the table
    python tests/measure_house.py --write              # write it into src/skillgraft/README.md
    python tests/measure_house.py --record COMMIT      # measure another commit, and store it as "before"

`tests/house_before.json` holds the figures of the commit before the package was divided into rooms,
measured by this script. The figures after are those of the sources as they stand: a test says when the
table in the README is stale. `embedded/` is left out: most of it is a lexicon.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import statistics
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "src" / "skillgraft" / "README.md"
BEFORE = ROOT / "tests" / "house_before.json"
START, END = "<!-- house -->", "<!-- /house -->"
SKIPPED = ("embedded",)
MANY_METHODS = 15
TOLERANCE = 0.05  # a figure that has moved by less is not stale
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> Iterator[Function]:
    """Yield every function and method, nested ones too."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def lines_of(node: Function) -> int:
    """Return the number of lines of a function, from `def` to its last line, decorators left out."""
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def module_level_names(tree: ast.Module) -> Iterator[str]:
    """Yield the names of a module's functions and classes."""
    return (node.name for node in tree.body if isinstance(node, Function | ast.ClassDef))


def imported(tree: ast.Module, package: str) -> Iterator[str]:
    """Yield the children of the package that a file imports, in functions and for types too."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                modules = [name.name for name in names]
            case ast.ImportFrom(module=str(module), level=0, names=names):
                direct = module == package  # from skillgraft import x
                modules = [f"{module}.{name.name}" for name in names] if direct else [module]
            case _:
                continue
        yield from (m.split(".")[1] for m in modules if m.startswith(f"{package}."))


def levels(imports: Mapping[str, set[str]]) -> int:
    """Return the number of levels of an import graph: the modules on its longest chain.

    Modules that import each other stand on one level.
    """
    reached: dict[str, set[str]] = {}
    for name in imports:
        seen, left = {name}, [name]
        while left:
            new = imports.get(left.pop(), set()) - seen
            seen |= new
            left += new
        reached[name] = seen
    circles = {
        name: frozenset(n for n in seen if name in reached[n]) for name, seen in reached.items()
    }
    depth: dict[frozenset[str], int] = {}
    for circle in sorted(set(circles.values()), key=lambda c: len(reached[min(c)])):
        below = {circles[n] for name in circle for n in imports[name]} - {circle}
        depth[circle] = 1 + max((depth[c] for c in below), default=0)
    return max(depth.values())


def measure(package: Path) -> dict[str, Any]:
    """Return the figures of a package's Python files by name."""
    paths = (
        p for p in sorted(package.rglob("*.py")) if p.relative_to(package).parts[0] not in SKIPPED
    )
    texts = {path: path.read_text(encoding="utf-8") for path in paths}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    sizes = {path: len(text.splitlines()) for path, text in texts.items() if text}
    lines = [line.strip() for text in texts.values() for line in text.splitlines()]
    found = [function for tree in trees.values() for function in functions(tree)]
    lengths = [lines_of(function) for function in found]
    classes = [n for tree in trees.values() for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]
    methods = {c.name: sum(isinstance(n, Function) for n in c.body) for c in classes}
    names = [name for tree in trees.values() for name in module_level_names(tree)]
    imports: dict[str, set[str]] = {}
    for path, tree in trees.items():
        own = path.relative_to(package).parts[0].removesuffix(".py")
        if own != "__init__":
            imports.setdefault(own, set()).update(set(imported(tree, package.name)) - {own})
    children = {name: found & set(imports) for name, found in imports.items()}
    largest = max(sizes, key=lambda path: sizes[path])
    return {
        "files": len(texts),
        "median file, lines": round(statistics.median(sizes.values())),
        "largest file, lines": f"{sizes[largest]} ({largest.relative_to(package).as_posix()})",
        "files over 300 lines": sum(size > 300 for size in sizes.values()),
        "functions": len(found),
        "median function, lines": round(statistics.median(lengths)),
        "90 % of functions, lines at most": round(statistics.quantiles(lengths, n=10)[-1]),
        "longest function, lines": f"{max(lengths)} ({max(found, key=lines_of).name})",
        "functions over 45 lines": sum(length > 45 for length in lengths),
        f"classes over {MANY_METHODS} methods": count_and_names(methods),
        "functions and classes of modules that are public": share(
            sum(n[0] != "_" for n in names), len(names)
        ),
        "comment lines": share(sum(line.startswith("#") for line in lines), len(lines)),
        "functions with a docstring": share(
            sum(bool(ast.get_docstring(f)) for f in found), len(found)
        ),
        "functions with a return type": share(
            sum(f.returns is not None for f in found), len(found)
        ),
        "children of the package, levels of import": f"{len(children)}, {levels(children)}",
    }


def count_and_names(methods: Mapping[str, int]) -> str:
    """Return how many classes have too many methods, and which with how many."""
    many = sorted((n for n in methods if methods[n] > MANY_METHODS), key=lambda n: -methods[n])
    named = ", ".join(f"{name} {methods[name]}" for name in many)
    return f"{len(many)} ({named})" if many else "0"


def share(part: int, total: int) -> str:
    """Return a share in percent with its counts."""
    return f"{100 * part / total:.1f} % ({part:,} of {total:,})"


def of_commit(commit: str) -> dict[str, Any]:
    """Return the figures of the package at another commit."""
    archive = subprocess.run(
        ["git", "archive", commit, "src/skillgraft"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
        return measure(Path(folder) / "src" / "skillgraft")


def table() -> str:
    """Return the Markdown table of the figures before and after."""
    record, after = json.loads(BEFORE.read_text(encoding="utf-8")), measure(README.parent)
    before = record["figures"]
    rows = [f"| {name} | {before.get(name, '')} | {after[name]} |" for name in after]
    head = f"| | before ({record['commit']}) | now |"
    return "\n".join([head, "|---|---|---|", *rows])


def rendered(text: str) -> str:
    """Return the README's text with the table of today between its markers."""
    head, _, rest = text.partition(START)
    return f"{head}{START}\n{table()}\n{END}{rest.partition(END)[2]}"


def is_stale(written: str, found: str) -> bool:
    """Return whether a written line differs from what is found in a word, or in a number by more than 5 %."""
    number = r"\d[\d,]*\.?\d*"
    if re.sub(number, "#", written) != re.sub(number, "#", found):
        return True
    pairs = zip(*(re.findall(number, line) for line in (written, found)), strict=True)
    values = [(float(a.replace(",", "")), float(b.replace(",", ""))) for a, b in pairs]
    return any(abs(a - b) > TOLERANCE * max(a, b) for a, b in values)


def main() -> None:
    """Print, write or record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--record", metavar="COMMIT")
    options = parser.parse_args()
    if options.record:
        record = {"commit": options.record, "figures": of_commit(options.record)}
        BEFORE.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.write:
        README.write_text(rendered(README.read_text(encoding="utf-8")), encoding="utf-8")
    print(table())


if __name__ == "__main__":
    main()
