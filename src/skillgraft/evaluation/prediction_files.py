"""Convert a run's predictions to and from a table, and read the file of predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from skillgraft.evaluation.predict import Predictions


def to_frame(
    predictions: Mapping[str, Predictions],
    labels: Mapping[str, Sequence[int]],
    names: Sequence[str],
) -> pd.DataFrame:
    """Return predictions as a table with one row per example, model and split.

    The columns are `model`, `split`, `row` (the example's position), `label` and a `p/<label>` each.
    """
    parts = []
    for model, splits in predictions.items():
        for split, probabilities in splits.items():
            frame = pd.DataFrame(probabilities, columns=[f"p/{name}" for name in names])
            frame.insert(0, "label", [names[i] for i in labels[split]])
            frame.insert(0, "row", np.arange(len(frame)))
            frame.insert(0, "split", split)
            frame.insert(0, "model", model)
            parts.append(frame)
    return pd.concat(parts, ignore_index=True)


def from_frame(frame: pd.DataFrame) -> dict[str, Predictions]:
    """Return predictions as model → split → (N, classes) probabilities: the inverse of `to_frame`."""
    columns = [name for name in frame.columns if name.startswith("p/")]
    out: dict[str, Predictions] = {}
    for (model, split), part in frame.groupby(["model", "split"], sort=False):
        out.setdefault(str(model), {})[str(split)] = part[columns].to_numpy(np.float32, copy=True)
    return out


def read_predictions(path: Path) -> dict[str, Predictions]:
    """Return the predictions of a parquet file as model → split → (N, classes) probabilities."""
    return from_frame(pd.read_parquet(path))
