"""A figure of the report with its table, and its files."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from skillgraft.analysis import plots
from skillgraft.runtime.files import atomic_write, write_text

SUFFIXES = ("svg", "png", "csv", "tex")  # of a figure's files


@dataclass(frozen=True)
class Item:
    """A figure of the report with the table behind it; `name` is that of its files."""

    name: str
    title: str
    caption: str
    table: pd.DataFrame
    figure: Figure


def graft_of(rows: pd.DataFrame) -> str:
    """Return which graft the rows of `shown` are of, as a sentence."""
    return f"Graft: {rows['selector'].iloc[0]} at sparsity {rows['sparsity'].iloc[0]:g}."


def plain_name(text: object) -> str:
    """Return a text as part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", str(text))


def publish(item: Item, folder: Path) -> str:
    """Write a figure and its table beside the page, and return the figure as a data URI."""
    svg = plots.save(item.figure, folder / f"{item.name}.svg")
    plots.save(item.figure, folder / f"{item.name}.png")
    tabulate(item.table, folder / item.name)
    # as an image, not as elements of the page: matplotlib's ids are unique within one figure only
    return "data:image/svg+xml;base64," + base64.b64encode(svg.read_bytes()).decode()


def tabulate(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV in full, and as LaTeX (booktabs, longtable) with four digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path.with_name(f"{path.name}.csv")) as scratch:
        table.to_csv(scratch, index=False)
    long = len(table) > 40  # does not fit a page
    latex = table.to_latex(
        index=False, escape=True, float_format="%.4g", na_rep="–", longtable=long
    )
    write_text(path.with_name(f"{path.name}.tex"), latex)
