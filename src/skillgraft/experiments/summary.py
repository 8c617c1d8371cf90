"""What a run prints at its end."""

from __future__ import annotations

import sys
from pathlib import Path

from skillgraft.analysis import summary
from skillgraft.runtime import files
from skillgraft.store.names import METRICS, STATUS

NARROW = {  # titles of the short table, in two lines
    "pre-trained": "pre-\ntrained", "fine-tuned": "fine-\ntuned", "graft": "\ngraft",
    "agreement": "agree-\nment", "relative gain": "rel.\ngain",
}  # fmt: skip


def show(folder: Path) -> None:
    """Print a run's short table and its folder."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    metrics, status = (files.read_json(folder / name) for name in (METRICS, STATUS))
    titles, lines = summary.results(metrics)
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    last = ""
    for measure, name in titles:  # over their columns, narrow enough for 80 characters
        table.add_column(
            f"{measure if measure != last else ''}\n{NARROW.get(name, name)}", justify="right"
        )
        last = measure
    for line in lines:
        table.add_row(*line)
    # a pipe or a log has no width of its own: the table must not be cut there
    console = Console(width=None if sys.stdout.isatty() else 120)
    # a table would break its heading at its own width
    console.print(summary.heading(status, metrics), highlight=False, soft_wrap=True)
    console.print(table)
    console.print(str(folder), highlight=False, soft_wrap=True)
