"""Metrics by name, as tables, figures and W&B have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def metric_of(measured: Mapping[str, Any]) -> str:
    """Return the name of the task's own metric among those measured: F1, Matthews, or else accuracy."""
    return next((name for name in ("f1", "matthews") if name in measured), "accuracy")


def flatten(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested metrics as one mapping whose names are joined by '/': the keys of W&B and tables."""
    out: dict[str, Any] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            out |= flatten(value, f"{prefix}{name}/")
        else:
            out[prefix + name] = value
    return out


def measured(metrics: Mapping[str, Any], overlap: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run measured by the names of W&B's summary and of every table.

    metrics.json and overlap.json, names joined by '/'; `…/score` is the task's own metric.
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
    """Return a run's status record and what it measured as one mapping."""
    row = {name: value for name, value in status.items() if name != "config"}
    row |= {f"config/{name}": value for name, value in status.get("config", {}).items()}
    return row | measured(metrics, overlap)


# What every table shows unless it is told otherwise: the names of metrics.json joined by '/'.
MEASURES = (
    "pretrained/test/accuracy", "finetuned/test/accuracy", "graft/test/accuracy",
    "pretrained/test/ece", "finetuned/test/ece", "graft/test/ece",
    "graft/test/agreement", "graft/test/relative_gain", "region/size",
)  # fmt: skip
