"""Metrics of predictions, and the comparison of models (Panigrahi et al., 2023).

P_0, P_1 and P_γ are one metric of the pre-trained, the fine-tuned and the grafted model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from skillgraft.config.choices import Metric
from skillgraft.evaluation.calibration import BINS
from skillgraft.evaluation.predict import Predictions

GAIN_FLOOR = 0.01  # below this |P_1 − P_0| the relative gain is undefined: noise would dominate
Metrics = dict[str, float | None]


def measure(probabilities: np.ndarray, labels: Sequence[int], metric: Metric) -> Metrics:
    """Return accuracy, the task's metric, ECE, NLL and Brier score of (N, classes) probabilities.

    ECE is Σ_b (n_b / N) · |accuracy_b − confidence_b| over the bins of `calibration_bins`, computed by
    torchmetrics. NLL is in nats, with probabilities of at least 1e-12. The Brier score is the squared
    error summed over classes, in [0, 2], and averaged over examples.
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
    # torchmetrics puts a confidence of exactly 1 into a sixteenth bin; a confidence slightly below 1
    # stays in the fifteenth.
    sure = probs.clamp_max(1 - 1e-7)
    out["ece"] = multiclass_calibration_error(sure, truth, classes, n_bins=BINS).item()
    at_truth = probs[torch.arange(len(truth)), truth].clamp_min(1e-12)
    out["nll"] = -at_truth.log().mean().item()
    target = torch.nn.functional.one_hot(truth, classes)
    out["brier"] = (probs - target).square().sum(1).mean().item()
    return {name: finite(value) for name, value in out.items()}


def matthews(predicted: torch.Tensor, truth: torch.Tensor, classes: int) -> float:
    """Return Matthews' correlation of predictions and labels, both (N,), 0 where either is constant.

    The value is that of scikit-learn, which GLUE uses for CoLA. torchmetrics is not used, because its
    values for constant predictions differ.
    """
    said, true = (torch.bincount(x, minlength=classes).double() for x in (predicted, truth))
    n, right = len(truth), float((predicted == truth).sum())
    below = (n * n - said @ said) * (n * n - true @ true)
    return float((right * n - said @ true) / below.sqrt()) if below > 0 else 0.0


def finite(value: float | None) -> float | None:
    """Return the value, or None where the value is not finite, since JSON records cannot hold NaN."""
    return value if value is not None and math.isfinite(value) else None


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Return the share of examples on which two models predict the same class; a, b: (N, classes)."""
    return float((a.argmax(1) == b.argmax(1)).mean())


def relative_gain(graft: float | None, before: float | None, after: float | None) -> float | None:
    """Return the relative gain (P_γ − P_0) / (P_1 − P_0), or None where |P_1 − P_0| < 0.01.

    `graft` is P_γ, `before` is P_0, and `after` is P_1. 1 means that the graft has the full gain.
    """
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
    """Return the metrics of each model on each split, as model → split → metrics.

    Every model but the pre-trained and the fine-tuned also has its agreement with the fine-tuned model
    and its relative gain.
    """
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
