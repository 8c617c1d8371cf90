"""Find the line: for each claim, selector, baseline and metric the file in which a newcomer finds it.

    python tests/find_lines.py --write      # write the table into src/skillgraft/README.md

A name is found as a reader would find it: first a file that has the name, then a file of the room that
has the words by which the thing is known. A name that is found nowhere is an error.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "skillgraft"
README = PACKAGE / "README.md"
START, END = "<!-- lines -->", "<!-- /lines -->"

# What is not a file of its own: its room, and the words by which it is found there.
BASELINES = {
    "temperature scaling": ("evaluation", r"def fit_temperature"),
    "WiSE-FT": ("experiments", r"def \w*wise\w*", r"compare\.wise\w*"),
    "lottery ticket": ("experiments", r"def \w*lottery\w*", r"compare\.lottery\w*"),
    "training inside the region": ("experiments", r"def \w*inside\w*", r"compare\.inside\w*"),
    "BitFit": ("training", r"Train\w*\.bias"),
    "LoRA": ("training", r"peft\.LoraConfig"),
    "proximal ℓ1 step": ("training", r"def (proximal_step|proximal_step)"),
}
METRICS = {
    "accuracy": ("evaluation", r'"accuracy"'),
    "f1": ("evaluation", r'"f1"'),
    "matthews": ("evaluation", r"def matthews"),
    "ece": ("evaluation", r'\["ece"\]'),
    "nll": ("evaluation", r'\["nll"\]'),
    "brier": ("evaluation", r'\["brier"\]'),
    "agreement": ("evaluation", r"def agreement"),
    "relative_gain": ("evaluation", r"def relative_gain"),
    "temperature": ("evaluation", r"def fit_temperature"),
    "reliability": ("evaluation", r"def reliability"),
    "region/size, region/sparsity": ("core", r"def sparsity"),
    "region/layer": ("core", r"def layer_of"),
    "region/module": ("core", r"def module_of"),
    "overlap (iou, a_in_b, b_in_a, chance)": ("core", r'"a_in_b"'),
    "mean and interval over seeds": ("evaluation", r"def over_seeds"),
    "verdict on a claim": ("evaluation", r"def verdict"),
    "McNemar's test": ("evaluation", r"def mcnemar"),
}


def selectors() -> list[str]:
    """Return the names of the selectors: the files of conf/graft."""
    return sorted(path.stem for path in (ROOT / "conf" / "graft").glob("[!_]*.yaml"))


def claims() -> list[str]:
    """Return the names of the claims that a sweep of the embedded suite tests."""
    files = sorted((ROOT / "multirun_sweeps" / "embedded").glob("[!_]*.yaml"))
    return [path.stem for path in files if yaml.safe_load(path.read_text("utf-8")).get("claim")]


def find(room: str, *words: str, name: str | None = None) -> tuple[Path, str]:
    """Return the file of a room that has a name, or else some words, and the words as they stand there.

    The patterns in `words` are tried in order. Raises LookupError where nothing is found.
    """
    files = sorted((PACKAGE / room).rglob("*.py"))
    for file in files:
        if file.stem == name:
            found = re.search(rf"^(def|class) \w+|^{name}\b", file.read_text("utf-8"), re.MULTILINE)
            return file, found[0] if found else file.stem
    for pattern in words:
        for file in files:
            if found := re.search(pattern, file.read_text("utf-8")):
                return file, found[0]
    raise LookupError(f"{room}: no file is called {name}, and none has {words}")


def rows() -> Iterator[tuple[str, str, Path, str]]:
    """Yield kind and name of each thing, its file, and the words to search for in the file."""
    for name in claims():
        yield "claim", name, *find("analysis/claims", rf"def {name}\b", name=name)
    for name in selectors():
        yield (
            "selector",
            name,
            *find("experiments", rf"Selector\.{name}\b", rf"_scores\.{name}\b", name=name),
        )
    for kind, known in (("baseline", BASELINES), ("metric", METRICS)):
        for name, (room, *words) in known.items():
            yield kind, name, *find(room, *words)


def table() -> str:
    """Return the Markdown table."""
    lines = ["| what | name | file | search for |", "|---|---|---|---|"]
    for kind, name, file, words in rows():
        path = file.relative_to(PACKAGE).as_posix()
        lines.append(f"| {kind} | {name} | [{path}]({path}) | `{words}` |")
    return "\n".join(lines)


def rendered(text: str) -> str:
    """Return the README's text with the table of today between its markers."""
    head, _, rest = text.partition(START)
    return f"{head}{START}\n{table()}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """Print the table, or write it into the README."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        README.write_text(rendered(README.read_text(encoding="utf-8")), encoding="utf-8")
    print(table())


if __name__ == "__main__":
    main()
