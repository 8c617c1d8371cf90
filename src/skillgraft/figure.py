"""Figures of one run: reliability diagrams and the heat map of overlaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from skillgraft.evaluate import BINS, reliability

# Okabe and Ito's palette: told apart with any colour vision, and in grey print.
COLOURS = {"pretrained": "#999999", "finetuned": "#D55E00", "graft": "#0072B2"}


def reliability_diagram(
    predictions: Mapping[str, np.ndarray], labels: Sequence[int], title: str
) -> Figure:
    """Return accuracy against confidence in 15 bins, a panel a model, darker with more rows."""
    figure = Figure(figsize=(3.2 * len(predictions), 3.4), layout="constrained")
    axes = figure.subplots(1, len(predictions), sharey=True, squeeze=False)[0]
    for axis, (model, probabilities) in zip(axes, predictions.items(), strict=True):
        bins = reliability(probabilities, labels)
        share = bins["count"] / bins["count"].sum()
        axis.plot([0, 1], [0, 1], color="#666666", linewidth=0.8, linestyle="--")
        axis.bar(
            (bins.index + 0.5) / BINS,
            bins["accuracy"],
            width=0.9 / BINS,
            color=[to_rgba(COLOURS[model], 0.3 + 0.7 * s) for s in share / share.max()],
        )
        axis.plot(bins["confidence"], bins["accuracy"], ".", color="black", markersize=3)
        axis.set(title=model, xlabel="confidence", xlim=(0, 1), ylim=(0, 1))
    axes[0].set_ylabel("accuracy")
    figure.suptitle(title)
    return figure


def overlap_map(names: Sequence[str], iou: np.ndarray, title: str) -> Figure:
    """Return the heat map of a symmetric (T, T) matrix of IoU, each cell with its value."""
    side = 1.6 + 0.7 * len(names)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axis = figure.subplots()
    off = iou[~np.eye(len(names), dtype=bool)]
    image = axis.imshow(iou, cmap="viridis", vmin=0, vmax=max(0.01, float(off.max(initial=0))))
    for (row, column), value in np.ndenumerate(iou):
        bright = value < 0.6 * image.norm.vmax  # type: ignore[operator]
        axis.text(
            column,
            row,
            f"{value:.2f}",
            ha="center",
            va="center",
            fontsize=7,
            color="white" if bright else "black",
        )
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axis.set_yticks(range(len(names)), names)
    axis.set_title(title)
    figure.colorbar(image, label="IoU")
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG without a time stamp, so that equal data give equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return path
