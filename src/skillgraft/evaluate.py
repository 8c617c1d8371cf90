"""Predictions and what is measured of them (method: section 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.special import log_softmax, softmax

from skillgraft import bars
from skillgraft.config import Metric
from skillgraft.model import Classifier
from skillgraft.prompt import Encoded, by_length, collate, to_device

BINS = 15  # of the expected calibration error and the reliability diagram
GAIN_FLOOR = 0.01  # below this |P_1 - P_0| the relative gain is undefined

Metrics = dict[str, float | None]
Predictions = dict[str, np.ndarray]  # split → (N, classes) float32


@torch.no_grad()
def predict(
    classifier: Classifier,
    examples: Sequence[Encoded],
    pad: int,
    batch_size: int,
    words: torch.Tensor | None = None,
    shown: bool = False,
) -> np.ndarray:
    """Return (N, classes) float32 class probabilities, without dropout, in the examples' order.

    `words` are the verbalizer's ids of another task than the classifier's own; `shown` draws a bar.
    """
    training, device = classifier.training, next(classifier.parameters()).device
    classifier.eval()
    out: list[torch.Tensor] = [torch.empty(0)] * len(examples)
    batches = by_length(examples, batch_size)
    for positions in bars.over(batches, "evaluation", -(-len(examples) // batch_size), shown):
        batch = collate([examples[i] for i in positions], pad)
        if words is not None:
            batch["words"] = words
        logits = classifier(to_device(batch, device))
        for position, row in zip(positions, logits.double().softmax(-1).float().cpu(), strict=True):
            out[position] = row
    classifier.train(training)
    return torch.stack(out).numpy()


def measure(probabilities: np.ndarray, labels: Sequence[int], metric: Metric) -> Metrics:
    """Return accuracy, the task's metric, ECE, NLL and Brier score of (N, classes) probabilities.

    ECE: torchmetrics' value, for the bins of `calibration_bins`. NLL in nats, probabilities below
    1e-12 count as that. Brier: the sum over classes of the squared error, in [0, 2], averaged over
    examples.
    """
    from torchmetrics.functional.classification import (
        binary_f1_score,
        multiclass_calibration_error,
    )

    probs, truth = torch.from_numpy(probabilities).double(), torch.tensor(labels)
    classes, predicted = probs.shape[1], probs.argmax(1)
    out: Metrics = {"accuracy": (predicted == truth).double().mean().item()}
    if metric is Metric.f1:
        out["f1"] = binary_f1_score(predicted, truth).item()
    elif metric is Metric.matthews:
        out["matthews"] = matthews(predicted, truth, classes)
    # torchmetrics puts a confidence of exactly 1 into a sixteenth bin: the largest float below it
    # stays in the fifteenth.
    sure = probs.clamp_max(1 - 1e-7)
    out["ece"] = multiclass_calibration_error(sure, truth, classes, n_bins=BINS).item()
    at_truth = probs[torch.arange(len(truth)), truth].clamp_min(1e-12)
    out["nll"] = -at_truth.log().mean().item()
    target = torch.nn.functional.one_hot(truth, classes)
    out["brier"] = (probs - target).square().sum(1).mean().item()
    return {name: finite(value) for name, value in out.items()}


def matthews(predicted: torch.Tensor, truth: torch.Tensor, classes: int) -> float:
    """Return the correlation of labels and predictions over K classes, 0 where either is constant.

    As scikit-learn, and so GLUE's CoLA; torchmetrics gives other numbers for a constant prediction.
    """
    said, true = (torch.bincount(x, minlength=classes).double() for x in (predicted, truth))
    n, right = len(truth), float((predicted == truth).sum())
    below = (n * n - said @ said) * (n * n - true @ true)
    return float((right * n - said @ true) / below.sqrt()) if below > 0 else 0.0


def finite(value: float | None) -> float | None:
    """Return the value, or None where it is not a finite number: records never hold NaN."""
    return value if value is not None and math.isfinite(value) else None


def joined(probabilities: np.ndarray, groups: Sequence[Sequence[int]]) -> np.ndarray:
    """Return (N, classes) probabilities with every group's sum in its first class, 0 in its others."""
    out = probabilities.copy()
    for first, *rest in groups:
        out[:, first] += out[:, rest].sum(1)
        out[:, rest] = 0
    return out


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Return the share of examples on which two models predict the same class."""
    return float((a.argmax(1) == b.argmax(1)).mean())


def relative_gain(graft: float | None, before: float | None, after: float | None) -> float | None:
    """Return (P_γ − P_0)/(P_1 − P_0), or None where |P_1 − P_0| < 0.01."""
    if (
        graft is None
        or before is None
        or after is None
        or round(abs(after - before), 9) < GAIN_FLOOR
    ):
        return None
    return (graft - before) / (after - before) + 0.0  # never -0.0


def compare(
    predictions: Mapping[str, Predictions], labels: Mapping[str, Sequence[int]], metric: Metric
) -> dict[str, dict[str, Metrics]]:
    """Return model → split → metrics; the graft's have agreement and relative gain too."""
    out = {
        model: {split: measure(p, labels[split], metric) for split, p in splits.items()}
        for model, splits in predictions.items()
    }
    for model in set(out) - {"pretrained", "finetuned"}:
        for split, measured in out[model].items():
            measured["agreement"] = agreement(
                predictions[model][split], predictions["finetuned"][split]
            )
            measured["relative_gain"] = relative_gain(
                measured[metric.value],
                out["pretrained"][split][metric.value],
                out["finetuned"][split][metric.value],
            )
    return out


def fit_temperature(probabilities: np.ndarray, labels: Sequence[int]) -> float:
    """Return the temperature in [0.05, 20] with the least NLL on (N, classes) probabilities.

    Guo et al. (ICML 2017): logits divided by it; above 1 the model gets less sure.
    """
    from scipy.optimize import minimize_scalar

    logits, truth = log_probabilities(probabilities), np.asarray(labels)

    def nll(log_temperature: float) -> float:
        scaled = log_softmax(logits / np.exp(log_temperature), axis=1)
        return -float(scaled[np.arange(len(truth)), truth].mean())

    best = minimize_scalar(nll, bounds=(np.log(0.05), np.log(20)), method="bounded")
    # never worse than no scaling, which is also the answer where nothing depends on it
    return float(np.exp(best.x)) if best.fun < nll(0.0) else 1.0


def scale(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return (N, classes) float32 probabilities with their logits divided by a temperature.

    No prediction changes, not even where two classes come closer than float32 can tell apart.
    """
    scaled = softmax(log_probabilities(probabilities) / temperature, axis=1).astype(np.float32)
    best = probabilities.argmax(1)
    tied = np.flatnonzero(scaled.argmax(1) != best)
    scaled[tied, best[tied]] = np.nextafter(scaled[tied].max(1), np.float32(2))
    return scaled


def log_probabilities(probabilities: np.ndarray) -> np.ndarray:
    """Return logarithms, float64, of probabilities not below 1e-12: logits up to a constant a row."""
    return np.log(np.maximum(probabilities.astype(np.float64), 1e-12))


def correct(probabilities: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """Return (N,) bool: where (N, classes) probabilities have the label on top."""
    return probabilities.argmax(1) == np.asarray(labels)


def calibration_bins(probabilities: np.ndarray, labels: Sequence[int]) -> pd.DataFrame:
    """Return one row per example: its `bin`, its `confidence` (top probability), and whether it is `correct`.

    The 15 bins, 0 to 14, have equal width: bin k holds confidences from edge k up to, but not
    including, edge k + 1; a confidence of 1 is in the last bin. An edge belongs to the bin above.
    The edges are the float32 numbers of `torch.linspace(0, 1, 16)`, up to 4e-8 beside k/15, and
    confidences are compared with them as float32: so does torchmetrics, from which `measure` has
    the ECE. The reliability diagram, its table and the tests of the ECE all use these bins.
    """
    confidence = probabilities.max(1)
    inner = torch.linspace(0, 1, BINS + 1, dtype=torch.float32)[1:-1].numpy()
    return pd.DataFrame(
        {
            "bin": np.digitize(confidence.astype(np.float32), inner),
            "confidence": confidence.astype(np.float64),
            "correct": correct(probabilities, labels),
        }
    )


def reliability(probabilities: np.ndarray, labels: Sequence[int]) -> pd.DataFrame:
    """Return a row a bin of the top probability: `confidence`, `accuracy`, `count`; empty bins left out."""
    return (
        calibration_bins(probabilities, labels)
        .groupby("bin")
        .agg(
            confidence=("confidence", "mean"),
            accuracy=("correct", "mean"),
            count=("correct", "size"),
        )
    )


# ---------------------------------------------------------------------------------------------
# The file of predictions


def to_frame(
    predictions: Mapping[str, Predictions],
    labels: Mapping[str, Sequence[int]],
    names: Sequence[str],
) -> pd.DataFrame:
    """Return a row an example, model and split: `model`, `split`, `row`, `label`, `p/<label>`…"""
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
    """Return model → split → (N, classes) probabilities: the inverse of `to_frame`."""
    columns = [name for name in frame.columns if name.startswith("p/")]
    out: dict[str, Predictions] = {}
    for (model, split), part in frame.groupby(["model", "split"], sort=False):
        out.setdefault(str(model), {})[str(split)] = part[columns].to_numpy(np.float32, copy=True)
    return out


def read_predictions(path: Path) -> dict[str, Predictions]:
    """Return the predictions stored in a parquet file."""
    return from_frame(pd.read_parquet(path))
