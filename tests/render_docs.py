"""Writes what the READMEs show of files: `python tests/render_docs.py` after a change of one of these.

Keys of the configuration come from the schema, tasks from conf/task, sweeps from multirun_sweeps, and
what was measured from multirun_sweeps/results. tests/test_documents.py says when a README is stale.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import re
import textwrap
import types
import typing
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from skillgraft.analysis.claims import results
from skillgraft.config import packages, selectors
from skillgraft.config.compose import plain, register, task_parts
from skillgraft.config.keys import nested
from skillgraft.config.schema import ClaimConfig, RunConfig, TaskConfig
from skillgraft.config.validation import verbalizer
from skillgraft.experiments.sweep import planned

ROOT = Path(__file__).resolve().parents[1]
SWEEPS, RESULTS = ROOT / "multirun_sweeps", ROOT / "multirun_sweeps" / "results"
VERDICTS = {"holds": "hold", "does not hold": "do not hold", "not decided": "not decided"}
LONG = 48  # characters of a default that is still shown
WORDS = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    Any: "list or mapping",
}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of one kind as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([*row.values()] for row in rows)]
    cells = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


# ------------------------------------------------------------------------------------------- keys


def field_docs(schema: type) -> dict[str, str]:
    """Return the docstring below each field of a dataclass, and of the dataclasses that it extends."""
    docs: dict[str, str] = {}
    for base in reversed([kind for kind in schema.__mro__ if dataclasses.is_dataclass(kind)]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        for node, below in pairwise(typing.cast(ast.ClassDef, tree).body):
            if not isinstance(node, ast.AnnAssign) or not isinstance(below, ast.Expr):
                continue
            if isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
                docs[ast.unparse(node.target)] = " ".join(below.value.value.split())
    return docs


def type_words(hint: Any, limits: Mapping[str, Any]) -> str:
    """Return a field's type and range in words."""
    if isinstance(hint, types.UnionType):
        (inner,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
        return f"{type_words(inner, limits)}, or null"
    if typing.get_origin(hint) is list:
        return f"list: {type_words(typing.get_args(hint)[0], limits)}"
    if typing.get_origin(hint) is dict:
        return "mapping"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return ", ".join(f"`{choice.value}`" for choice in hint)
    low, high = limits.get("low"), limits.get("high")
    bounds = "" if low is None else f" ≥ {low}" if high is None else f" from {low} to {high}"
    return WORDS[hint] + bounds


def shown(value: Any) -> str:
    """Return a default as it would be written on the command line."""
    if isinstance(value, Mapping) and value:
        return "by group"
    text = (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )
    if isinstance(value, list):
        text = f"[{','.join(map(str, value))}]"
    return f"`{text}`" if len(text) <= LONG else "by group"


def key_rows(schema: type, values: Mapping[str, Any], prefix: str) -> Iterator[dict[str, str]]:
    """Yield a row per key of a dataclass and of those inside it, with its default from `values`."""
    docs, hints = field_docs(schema), typing.get_type_hints(schema)
    for entry in dataclasses.fields(schema):
        name = f"{prefix}{entry.name}"
        if entry.name in nested(schema):
            if entry.name == "graft":  # made of the selectors' options: `selector_rows`
                continue
            yield from key_rows(nested(schema)[entry.name], values[entry.name], f"{name}.")
            continue
        yield {
            "key": f"`{name}`",
            "type and range": type_words(hints[entry.name], entry.metadata),
            "default": shown(values[entry.name]),
            "meaning": docs[entry.name],
        }


def keys() -> str:
    """Return the tables of all keys, one per group."""
    values, docs = plain(composed([])), field_docs(RunConfig)
    values["claim"] = dataclasses.asdict(ClaimConfig())  # what a sweep file's claim has by default
    groups = nested(RunConfig)
    rows = list(key_rows(RunConfig, values, ""))
    own = [row for row in rows if "." not in row["key"]]
    parts = [f"### The run's own keys\n\n{table(own)}"]
    for name, schema in groups.items():
        inside = key_rows(schema, values[name], f"{name}.") if name != "graft" else selector_rows()
        parts.append(f"### `{name}`\n\n{docs[name]}\n\n{table(list(inside))}")
    return "\n\n".join(parts)


def selector_rows() -> list[dict[str, str]]:
    """Return a row per key of `graft`, with the selectors that read the key and the default of the first."""
    rows: dict[str, dict[str, str]] = {}
    for name in sorted(selectors.modules()):
        file = packages.CONF / "graft" / f"{name}.yaml"
        given = typing.cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(file)))
        schema = selectors.options_of(name)
        values = {entry.name: given.get(entry.name) for entry in dataclasses.fields(schema)}
        for row in key_rows(schema, values, "graft."):
            known = rows.setdefault(row["key"], {**row, "selectors": ""})
            known["selectors"] += f"{', ' * bool(known['selectors'])}`{name}`"
    everybody = ", ".join(f"`{name}`" for name in sorted(selectors.modules()))
    for row in rows.values():
        row["selectors"] = "all" if row["selectors"] == everybody else row["selectors"]
    return list(rows.values())


# ---------------------------------------------------------------------------------------- options


def options() -> str:
    """Return a table per group: each option with the command and the remark of its file's first line."""
    parts = []
    folders = {file.parent for file in packages.CONF.rglob("*.yaml")} - {packages.CONF}
    groups = sorted(folder.relative_to(packages.CONF).as_posix() for folder in folders)
    for group in (name for name in groups if name not in ("local", "task")):
        rows = []
        for file in sorted((packages.CONF / group).glob("[!_]*.yaml")):
            used, _, remark = comment(file, "skillgraft ").partition("   ")
            rows.append(
                {
                    f"`{group}=`": f"`{file.stem}`",
                    "what": remark.strip() or "–",
                    "command": f"`skillgraft {used}`",
                }
            )
        parts.append(table(rows))
    return "\n\n".join(parts)


def comment(file: Path, start: str) -> str:
    """Return what follows the first `# <start>` of a file, to the end of the line."""
    (found, *_) = re.findall(rf"^# {start}(.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return found.strip()


# ------------------------------------------------------------------------------------------ tasks


def tasks() -> str:
    """Return a row per task that comes with the package."""
    rows = []
    for file in sorted((packages.CONF / "task").glob("[!_]*.yaml")):
        parts = [content for _, content in task_parts(file.stem, [packages.CONF])]
        task = typing.cast(TaskConfig, OmegaConf.merge(OmegaConf.structured(TaskConfig), *parts))
        if file.stem == "custom" or "only a test" in file.read_text(encoding="utf-8"):
            continue
        words = verbalizer(task)
        rows.append(
            {
                "task": f"`{task.name}`",
                "labels (words)": ", ".join(f"{label} ({word})" for label, word in words.items()),
                "template": f"`{task.template}`",
                "metric": task.metric.value,
                "examples from": source(task),
                "measured on too": ", ".join(task.ood) or "–",
            }
        )
    return table(rows)


def source(task: TaskConfig) -> str:
    """Return where the examples of a task come from."""
    if task.source.value != "hub":
        return task.source.value
    if task.hub.path is None:
        return "`data_dir` only"
    named = f" ({task.hub.name})" if task.hub.name else ""
    return f"[{task.hub.path}](https://huggingface.co/datasets/{task.hub.path}){named}"


# ----------------------------------------------------------------------------------------- sweeps


@cache
def configuration(overrides: tuple[str, ...]) -> DictConfig:
    """Return what the command line composes, Hydra's own part included."""
    register()
    with initialize_config_dir(str(packages.CONF), version_base="1.3"):
        return compose("run", overrides=list(overrides), return_hydra_config=True)


def composed(overrides: Sequence[str]) -> DictConfig:
    """Return a run's configuration without Hydra's own part."""
    cfg = configuration(tuple(overrides)).copy()
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    return cfg


def sweep_files(group: str) -> list[Path]:
    """Return the sweep files of a folder of multirun_sweeps."""
    return sorted((SWEEPS / group).glob("[!_]*.yaml"))


def command(file: Path) -> str:
    """Return the command of a sweep file's comment: what stands there before a wide gap."""
    return "skillgraft " + re.split(r"\s{3,}", comment(file, "skillgraft "))[0]


def size(cfg: DictConfig) -> tuple[int, int, str]:
    """Return a sweep's runs, how many fine-tunings these need, and its axes with their lengths.

    A fine-tuning serves all regions that are looked for in it, and that of several tasks serves them all.
    """
    params = OmegaConf.to_container(cfg.hydra.sweeper.params)
    axes = {key: len(planned({key: values}, [])) for key, values in params.items()}
    apart = {
        key: length
        for key, length in axes.items()
        if not key.startswith(("graft", "sparsity")) and not (key == "task" and cfg.finetune.tasks)
    }
    lengths = " × ".join(f"{length} `{key}`" for key, length in axes.items() if length > 1)
    return len(planned(params, [])), math.prod(apart.values()), lengths


def sweeps(group: str) -> str:
    """Return a row per sweep file of a folder, and what all of them cost where that is known together."""
    rows, costs = [], {}
    for file in sweep_files(group):
        runs, trainings, axes = size(configuration((f"{group}={file.stem}",)))
        result = published().get(f"{group}-{file.stem}")
        verdicts = verdict_counts(result)
        if result and result["runs"] < runs:
            verdicts += f", of {result['runs']} runs"
        costs[file.stem] = cost(result["made"]) if result else "–"
        rows.append(
            {
                "file": f"`{file.stem}`",
                "question": comment(file, "Question: "),
                "command": f"`{command(file)}`",
                "runs": f"{runs:,} = {axes}",
                "fine-tunings": trainings,
                "cost": costs[file.stem],
                "verdicts": verdicts,
            }
        )
    if len(set(costs.values())) == 1:
        (together,) = set(costs.values())
        for row in rows:
            del row["cost"]
        return table(rows) + (f"\n\nCost: {together}." if together != "–" else "")
    return table(rows)


def cost(made: Mapping[str, Any]) -> str:
    """Return what a sweep's runs cost: as it was noted, or the hours of their stages."""
    return made.get("cost") or (f"{made['seconds'] / 3600:.1f} h" if "seconds" in made else "–")


# ---------------------------------------------------------------------------------------- results


@cache
def published() -> dict[str, dict[str, Any]]:
    """Return the stored results by the names of their sweeps."""
    return {result["sweep"]: result for result in results.read(RESULTS)}


def verdict_counts(result: Mapping[str, Any] | None) -> str:
    """Return how many statements of a result hold, do not, or are not decided."""
    if result is None:
        return "not run"
    counts = Counter(statement["verdict"] for statement in result.get("statements", ()))
    named = [one if counts[one] == 1 else several for one, several in VERDICTS.items()]
    numbers = [counts[one] for one in VERDICTS]
    found = [f"{count} {name}" for count, name in zip(numbers, named, strict=True) if count]
    return ", ".join(found) or "a table"


def claims() -> str:
    """Return a row per claim of the paper: its question, and what came out on the embedded model."""
    rows = [
        {
            "claim": f"`{file.stem}`",
            "question": comment(file, "Question: "),
            "statements, embedded model": verdict_counts(published().get(f"embedded-{file.stem}")),
        }
        for file in sweep_files("embedded")
    ]
    return table(rows)


def statements(group: str) -> str:
    """Return every statement of a folder's results in one table, as `grafts claims` prints it."""
    found = [r for r in results.read(RESULTS) if r["sweep"].startswith(f"{group}-")]
    return table(results.statement_rows(found))


def table_rows(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the rows of a result's table, numbers and intervals as text."""
    return [
        {name: f"{v:g}" if name == "sparsity" else results.shown(v) for name, v in row.items()}
        for row in result["table"]
    ]


def measured(group: str) -> str:
    """Return what else a folder's results have: a table each, with where and when it was made."""
    parts = []
    for result in results.read(RESULTS):
        if not result["sweep"].startswith(f"{group}-") or "table" not in result:
            continue
        made = result["made"]
        facts = [f"seeds {', '.join(map(str, made['seeds']))}", made["machine"], made["date"]]
        notes = "".join(f"\n- {note}" for note in result["notes"])
        parts.append(
            f"### `{result['sweep']}`\n\n`{result['command']}`: {'; '.join(facts)}.\n{notes}\n\n"
            f"<details><summary>Table</summary>\n\n{table(table_rows(result))}\n\n</details>"
        )
    return "\n\n".join(parts)


BLOCKS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"claims": claims},
    "conf/README.md": {"options": options, "keys": keys, "tasks": tasks},
    "multirun_sweeps/README.md": {
        "sweeps embedded": lambda: sweeps("embedded"),
        "sweeps paper": lambda: sweeps("paper"),
        "sweeps beyond": lambda: sweeps("beyond"),
        "statements embedded": lambda: statements("embedded"),
        "statements beyond": lambda: statements("beyond"),
        "measured beyond": lambda: measured("beyond"),
    },
}


def rendered(name: str) -> str:
    """Return the text of a README with its blocks made anew."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for block, render in BLOCKS[name].items():
        start, end = f"<!-- {block} -->\n", f"<!-- /{block} -->"
        before, found, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"{name}: expected the lines '{start.strip()}' and '{end}'")
        text = f"{before}{start}{render()}\n{end}{after}"
    return text


def main() -> None:
    """Write every README that is stale."""
    for name in BLOCKS:
        text = rendered(name)
        if text != (ROOT / name).read_text(encoding="utf-8"):
            (ROOT / name).write_text(text, encoding="utf-8")
            print(f"{name}: written")


if __name__ == "__main__":
    main()
