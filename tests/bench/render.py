"""The tables of tests/bench/README.md, made of tests/bench/results.json.

    python tests/bench/render.py --write

A group of results.json has the commands and the machine that its figures come from. A figure has a
value, or a range, or both: `value (low–high)` is the median of several rounds and their range.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS, README = HERE / "results.json", HERE / "README.md"
START, END = "<!-- results -->", "<!-- /results -->"


def decimals(number: float) -> int:
    """Return the number of decimals with which a number stands in the file."""
    return len(repr(number).partition(".")[2]) if isinstance(number, float) else 0


def shown(figure: Mapping[str, Any] | None) -> str:
    """Return a figure with its range and unit, all its numbers with the same number of decimals."""
    if figure is None:
        return ""
    numbers = {name: number for name, number in figure.items() if name != "unit"}
    digits = max(decimals(number) for number in numbers.values())
    texts = {name: f"{number:,.{digits}f}" for name, number in numbers.items()}
    unit = f" {figure['unit']}" if "unit" in figure else ""
    span = f"{texts['low']}–{texts['high']}" if "low" in texts else ""
    if "value" not in texts:
        return span + unit
    return texts["value"] + unit + (f" ({span})" if span else "")


def section(group: Mapping[str, Any]) -> str:
    """Return a group as a heading, its commands and machine, and its table."""
    columns = group["columns"]
    rows = [
        [row["what"], *(shown(row["figures"].get(column)) for column in columns)]
        for row in group["rows"]
    ]
    table = [["", *columns], ["---"] * (1 + len(columns)), *rows]
    commands = "\n".join(["```bash", *group["commands"], "```"])
    lines = "\n".join("| " + " | ".join(row) + " |" for row in table)
    return f"### {group['title']}\n\n{commands}\n\nMachine: {group['machine']}.\n\n{lines}"


def rendered(text: str) -> str:
    """Return the README's text with the tables of results.json between its markers."""
    groups = json.loads(RESULTS.read_text(encoding="utf-8"))
    head, _, rest = text.partition(START)
    body = "\n\n".join(section(group) for group in groups)
    return f"{head}{START}\n\n{body}\n\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """Print the README, or write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    text = rendered(README.read_text(encoding="utf-8"))
    if parser.parse_args().write:
        README.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
