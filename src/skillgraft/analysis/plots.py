"""Figures: reliability diagrams, heat maps, curves over sparsity, bars by task."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.spatial.distance import squareform

from skillgraft.analysis.labels import SPARSITY
from skillgraft.evaluation.calibration import BINS, reliability
from skillgraft.evaluation.compared import MODELS
from skillgraft.evaluation.intervals import over_seeds
from skillgraft.runtime.files import atomic_write

# Okabe and Ito's palette: told apart with any colour vision, and in grey print.
COLOURS = {"pretrained": "#999999", "finetuned": "#D55E00", "graft": "#0072B2"}
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442"]


def reliability_diagram(
    predictions: Mapping[str, np.ndarray], labels: Sequence[int], title: str
) -> Figure:
    """Return accuracy against confidence in 15 bins: one panel per model, darker with more examples."""
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
        axis.set(title=MODELS[model], xlabel="confidence", xlim=(0, 1), ylim=(0, 1))
    axes[0].set_ylabel("accuracy")
    figure.suptitle(title)
    return figure


def paint(
    axis: Axes,
    matrix: pd.DataFrame,
    label: str,
    limits: tuple[float, float] | None = None,
    scale: Axes | None = None,
) -> None:
    """Draw a matrix as a heat map with its values.

    One of similarities, square and without limits, has a grey diagonal: what is always 1 would look
    like the largest value.

    Args:
        axis: the axes to draw on.
        matrix: one cell per row and column; a missing value leaves its cell empty.
        label: the words beside the colour scale.
        limits: the values of the two ends of the colours; by default those of the matrix.
        scale: the axes for the colour scale; by default beside `axis`.
    """
    values, aside = matrix.to_numpy(dtype=float), None
    if limits is None and list(matrix.index) == list(matrix.columns):
        aside = np.eye(len(values), dtype=bool)
        values = values[~aside]
        axis.set_facecolor("#d9d9d9")
    bottom, top = limits or (np.nanmin(values, initial=0.0), np.nanmax(values, initial=0.01))
    sns.heatmap(
        matrix,
        mask=aside,
        ax=axis,
        cbar_ax=scale,
        cmap="viridis",
        vmin=bottom,
        vmax=top,
        annot=True,
        fmt=".2f",
        annot_kws={"fontsize": 7},
        cbar_kws={"label": label},
    )
    axis.set(xlabel="", ylabel="")
    slant(axis, 45)
    axis.tick_params(axis="y", labelrotation=0)


def heat_map(
    matrix: pd.DataFrame, title: str, label: str, limits: tuple[float, float] | None = None
) -> Figure:
    """Return the heat map of a matrix with its values, as `paint` draws it."""
    height = max(2.6, 1.6 + 0.45 * len(matrix.index))  # room for the scale's label
    width = 2.6 + 0.7 * len(matrix.columns)
    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.subplots()
    paint(axis, matrix, label, limits)
    axis.set_title(title)
    return figure


def clustered(matrix: pd.DataFrame, title: str, label: str) -> Figure:
    """Return the heat map of a symmetric matrix of similarities, like ones side by side, and the tree.

    Average linkage on 1 − similarity. A pair that is not known leaves the matrix in its own order.
    """
    distance = (1 - matrix.to_numpy(dtype=float)) * (1 - np.eye(len(matrix)))
    if len(matrix) < 2 or np.isnan(distance).any():
        return heat_map(matrix, title, label)
    tree = linkage(squareform(distance, checks=False), "average", optimal_ordering=True)
    size = 2.2 + 0.55 * len(matrix)
    figure = Figure(figsize=(size + 1.2, size + 1), layout="constrained")
    grid = figure.subplots(2, 2, height_ratios=[1, 5], width_ratios=[24, 1])
    (top, corner), (axis, scale) = grid
    corner.set_axis_off()
    order = dendrogram(
        tree, ax=top, no_labels=True, color_threshold=0, above_threshold_color="#666666"
    )["leaves"]
    top.set(title=title, ylabel=f"1 − {label}")
    sns.despine(ax=top, bottom=True)
    paint(axis, matrix.iloc[order, order], label, scale=scale)
    return figure


def curves(
    rows: pd.DataFrame,
    value: str,
    hue: str,
    label: str | Callable[[pd.DataFrame], str],
    levels: Sequence[str] = (),
    across: str = SPARSITY,
) -> Figure:
    """Return a value against column `x`: one panel per task, one curve per value of `hue`.

    Points are means over seeds with Student's t intervals. An empty region has no place on a
    logarithmic axis: its point is not shown, and the axis says so.

    Args:
        rows: one row per run, with the columns `task`, `x`, `value`, `hue` and `levels`.
        value: the column on the vertical axis.
        hue: the column whose values have a curve each; its name is the legend's title.
        label: the words for `value`, or a function that returns them for the rows of one task.
        levels: columns of models without a region, drawn as lines (the first dotted, then dashed).
        across: the words for `x`: the measured sparsity has a logarithmic axis, all else a linear one.
    """
    positive = rows["x"][rows["x"] > 0]
    logarithmic = across == SPARSITY and len(positive) > 0
    missing = logarithmic and len(positive) < len(rows)
    tasks = sorted(rows["task"].unique())
    columns = min(4, len(tasks))
    lines = -(-len(tasks) // columns)
    figure = Figure(figsize=(3.2 * columns + 1.2, 2.6 * lines + 0.4), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True).flat
    kinds = sorted(rows[hue].astype(str).unique(), key=by_number)
    for axis, task in zip(grid, tasks, strict=False):
        part = rows[rows["task"] == task]
        placed = part[part["x"] > 0] if logarithmic else part
        draw_curves(axis, placed, value, hue, kinds)
        for level, style in zip(levels, (":", "--"), strict=False):
            axis.axhline(part[level].mean(), color="#666666", linewidth=0.9, linestyle=style)
        below = f"{across} (empty regions not shown)" if missing else across
        axis.set(title=task, xlabel=below, ylabel=label(part) if callable(label) else label)
        if logarithmic:
            show_decades(axis, positive.min(), positive.max())
        elif (rows["x"] % 1 == 0).all():
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in list(grid):  # of a last line that is not full
        axis.set_visible(False)
    add_legend(figure, levels, hue)
    return figure


def draw_curves(axis: Axes, rows: pd.DataFrame, value: str, hue: str, kinds: Sequence[str]) -> None:
    """Draw one curve per value of a column, with the interval over seeds at each point.

    Args:
        axis: where to draw.
        rows: one row per run, with the columns `x`, `value` and `hue`.
        value: the column on the vertical axis.
        hue: the column whose values have a curve each.
        kinds: all values of `hue` in the figure, in the order of their colors.
    """
    sns.lineplot(
        rows.assign(**{hue: rows[hue].astype(str)}),
        x="x",
        y=value,
        hue=hue,
        hue_order=kinds,
        style=hue,
        style_order=kinds,
        markers=True,
        dashes=False,
        palette=list(islice(cycle(PALETTE), len(kinds))),  # the markers differ as well
        errorbar=interval,
        err_style="bars",
        err_kws={"elinewidth": 1, "capsize": 2},  # seen apart where several lie at one x
        ax=axis,
        legend=axis is axis.figure.axes[0],
    )


def show_decades(axis: Axes, low: float, high: float) -> None:
    """Give an axis a logarithmic scale of whole decades around its values."""
    lowest, highest = 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high))
    axis.set(xscale="log", xlim=(lowest / 1.3, highest * 1.3))
    axis.xaxis.set_minor_formatter(NullFormatter())  # whole decades say enough


def add_legend(figure: Figure, levels: Sequence[str], title: str) -> None:
    """Put the first panel's legend beside the figure, with the lines of models without a region."""
    first = figure.axes[0]
    for level, style in zip(levels, (":", "--"), strict=False):
        model = level.split("/")[0]
        label = MODELS.get(model, model)
        first.plot([], [], color="#666666", linewidth=0.9, linestyle=style, label=label)
    handles, labels = first.get_legend_handles_labels()
    if (legend := first.get_legend()) is not None:
        legend.remove()
    figure.legend(handles, labels, loc="outside right upper", title=title, fontsize=8)


def bars(rows: pd.DataFrame, columns: Mapping[str, str], label: str) -> Figure:
    """Return bars of means over seeds with t intervals: a group per task, a bar per column (name → title)."""
    long = rows.melt(id_vars=["task"], value_vars=list(columns), var_name="model")
    long["model"] = long["model"].map(columns)
    tasks = sorted(long["task"].unique(), key=by_number)
    figure = Figure(figsize=(2.4 + 1.1 * len(tasks), 3.4), layout="constrained")
    axis = figure.subplots()
    sns.barplot(
        long,
        x="task",
        y="value",
        hue="model",
        order=tasks,
        hue_order=list(columns.values()),
        palette=palette(list(columns.values())),
        saturation=1,
        errorbar=interval,
        ax=axis,
    )
    axis.set(xlabel="", ylabel=label)
    slant(axis, 30)
    sns.move_legend(axis, "upper left", bbox_to_anchor=(1, 1), title="", fontsize=8)
    return figure


def slant(axis: Axes, degrees: float) -> None:
    """Turn the labels of the horizontal axis, so that each ends below what it names."""
    for tick in axis.get_xticklabels():
        tick.set(rotation=degrees, rotation_mode="anchor", horizontalalignment="right")


def by_number(text: str) -> list[str | float]:
    """Return a key that sorts names with numbers by the numbers: 1e-05 before 0.001, 20 before 100."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", text)
    return [float(part) if odd % 2 else part for odd, part in enumerate(parts)]


def palette(titles: Sequence[str]) -> list[str]:
    """Return a colour per title: models have theirs in every figure, all else what is left of the palette."""
    own = {MODELS[model]: colour for model, colour in COLOURS.items()}
    left = cycle(colour for colour in PALETTE if colour not in own.values())
    return [own.get(title) or next(left) for title in titles]


def interval(values: pd.Series) -> tuple[float, float]:
    """Return the bounds of Student's t interval, or the value itself where it is the only one."""
    found = over_seeds(values)
    if found is None:
        return math.nan, math.nan
    if found.low is None or found.high is None:
        return found.mean, found.mean
    return found.low, found.high


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG or SVG without a time stamp, so that equal data give equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stamp = {".svg": "Date"}.get(path.suffix, "Software")
    with rc_context({"svg.hashsalt": "skillgraft"}), atomic_write(path) as scratch:
        figure.savefig(scratch, dpi=120, metadata={stamp: None}, format=path.suffix[1:])
    return path
