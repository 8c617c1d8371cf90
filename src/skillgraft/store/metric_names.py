"""The names of metrics in tables, in figures and on W&B."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def metric_of(measured: Mapping[str, Any]) -> str:
    """Return the name of the task's own metric among the measured metrics: f1, matthews, or accuracy."""
    return next((name for name in ("f1", "matthews") if name in measured), "accuracy")


def flatten(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested metrics as one flat mapping, with the names of all levels joined by '/'."""
    out: dict[str, Any] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            out |= flatten(value, f"{prefix}{name}/")
        else:
            out[prefix + name] = value
    return out


def measured(metrics: Mapping[str, Any], overlap: Mapping[str, Any]) -> dict[str, Any]:
    """Return all metrics of a run, from metrics.json and overlap.json, with names joined by '/'.

    `<model>/<split>/score` is the task's own metric: accuracy, F1 or Matthews' correlation.
    """
    out = flatten(metrics)
    for model, splits in metrics.items():
        for split, values in splits.items() if isinstance(splits, dict) else ():
            if isinstance(values, dict) and "accuracy" in values:
                out[f"{model}/{split}/score"] = values[metric_of(values)]
    return out | flatten({"overlap": overlap}) | {"overlap/n_compared": len(overlap)}


def row_of(
    status: Mapping[str, Any], metrics: Mapping[str, Any], overlap: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a run's status record, configuration and metrics as one flat mapping."""
    row = {name: value for name, value in status.items() if name != "config"}
    row |= {f"config/{name}": value for name, value in status.get("config", {}).items()}
    return row | measured(metrics, overlap)


# The metrics that a table shows by default, with the names of metrics.json joined by '/'.
MEASURES = (
    "pretrained/test/accuracy", "finetuned/test/accuracy", "graft/test/accuracy",
    "pretrained/test/ece", "finetuned/test/ece", "graft/test/ece",
    "graft/test/agreement", "graft/test/relative_gain", "region/size",
)  # fmt: skip
