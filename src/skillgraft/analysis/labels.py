"""Words for people: what tables, figures and pages call models and metrics."""

from __future__ import annotations

import pandas as pd

from skillgraft.evaluation.compared import MODELS

SPARSITY = "fraction of parameters kept"  # the measured sparsity, on an axis
OWN_METRICS = {"f1": "F1", "matthews": "Matthews correlation"}  # of tasks; all others: accuracy
WORDS = {
    **MODELS, "accuracy": "accuracy", "ece": "ECE", "relative_gain": "relative gain",
    "size": "parameters", "test": "", "region": "",
}  # fmt: skip


def metric_label(rows: pd.DataFrame, split: str = "test") -> str:
    """Return which metric `score` is in the rows of runs: "score" where their tasks have several."""
    columns = {name: f"graft/{split}/{name}" for name in OWN_METRICS}
    known = {name: rows[column].notna() for name, column in columns.items() if column in rows}
    own = [OWN_METRICS[name] for name, found in known.items() if found.any()]
    others = ~pd.DataFrame(known, rows.index).any(axis=1)
    labels = own + ["accuracy"] * bool(others.any())
    return labels[0] if len(labels) == 1 else "score"


def capital(text: str) -> str:
    """Return a text that begins a sentence or a title."""
    return text[:1].upper() + text[1:]


def title_of(name: str) -> str:
    """Return the words for the name of a metric, parts joined by '/': the metric, then the model."""
    return ", ".join(filter(None, (WORDS.get(part, part) for part in reversed(name.split("/")))))
