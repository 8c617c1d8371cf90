"""The runs of a store as one table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from skillgraft.store import index
from skillgraft.store.folders import Store


def collect(store: Store, only: Sequence[str] | None = None) -> pd.DataFrame:
    """Return one row per complete run, of `only` these: its status record and its metrics.

    Names of metrics are joined by '/'; `…/score` is the task's own metric. `config/…` are the values
    that name the run, `folder` is its path.
    """
    chosen = None if only is None else set(only)
    found = [one for one in index.rows(store.root) if chosen is None or one[0] in chosen]
    columns: dict[str, list[Any]] = {"folder": [str(store.run(name)) for name, _ in found]}
    # one at a time: ten thousand as objects are many times their size
    for n, (_, row) in enumerate(found):
        for name, value in json.loads(row).items():
            column = columns.setdefault(name, [])
            column.extend([np.nan] * (n - len(column)))
            column.append(value)
    for column in columns.values():
        column.extend([np.nan] * (len(found) - len(column)))
    return pd.DataFrame(columns)
