"""A run in one line and one short table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from skillgraft.evaluation.compared import MODELS
from skillgraft.store.metric_names import metric_of


def heading(status: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Return what a run is in one line: task, selector, size of the region, seed."""
    region = metrics["region"]
    return (
        f"{status['task']}, {status['selector']} region of {region['size']:,} of "
        f"{region['graftable']:,} parameters ({region['sparsity']:.2e}), seed {status['seed']}"
    )


def results(metrics: Mapping[str, Any]) -> tuple[list[tuple[str, str]], list[list[str]]]:
    """Return a run's short table: titles as (measure, model), and a line a split with its name first."""
    metric = metric_of(metrics["graft"]["test"])
    measures = ("acc." if metric == "accuracy" else metric, "ECE")
    titles = [(measure, model) for measure in measures for model in MODELS.values()]

    def number(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    lines = []
    for split, measured in metrics["graft"].items():
        own = metric_of(measured)  # another task of a mixture may have another
        values = [metrics[model][split][name] for name in (own, "ece") for model in MODELS]
        lines.append(
            [
                split if own == metric else f"{split} ({own})",
                *(number(value, ".3f") for value in values),
                number(measured["agreement"], ".3f"),
                number(measured["relative_gain"], ".2f"),
            ]
        )
    return [*titles, ("", "agreement"), ("", "relative gain")], lines
