"""Calibration: the bins of the ECE and of the reliability diagram, and temperature scaling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from scipy.special import log_softmax, softmax

BINS = 15  # of the expected calibration error (ECE), as in Guo et al., ICML 2017


def fit_temperature(probabilities: np.ndarray, labels: Sequence[int]) -> float:
    """Return the temperature T in [0.05, 20] with the least NLL on (N, classes) probabilities.

    Temperature scaling (Guo et al., ICML 2017) divides logits by T: above 1 the model becomes less
    confident. 1 is returned where no T has a smaller NLL.
    """
    from scipy.optimize import minimize_scalar

    logits, truth = log_probabilities(probabilities), np.asarray(labels)

    def nll(log_temperature: float) -> float:
        scaled = log_softmax(logits / np.exp(log_temperature), axis=1)
        return -float(scaled[np.arange(len(truth)), truth].mean())

    best = minimize_scalar(nll, bounds=(np.log(0.05), np.log(20)), method="bounded")
    # The search may end beside the optimum: T = 1 is kept unless the result is better.
    return float(np.exp(best.x)) if best.fun < nll(0.0) else 1.0


def scale(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return (N, classes) float32 probabilities whose logits are divided by a temperature.

    No prediction changes, even where two classes come closer than float32 can distinguish.
    """
    scaled = softmax(log_probabilities(probabilities) / temperature, axis=1).astype(np.float32)
    best = probabilities.argmax(1)
    tied = np.flatnonzero(scaled.argmax(1) != best)
    scaled[tied, best[tied]] = np.nextafter(scaled[tied].max(1), np.float32(2))
    return scaled


def log_probabilities(probabilities: np.ndarray) -> np.ndarray:
    """Return the logarithms of (N, classes) probabilities of at least 1e-12, float64.

    They are the logits up to one constant per example, which softmax cancels.
    """
    return np.log(np.maximum(probabilities.astype(np.float64), 1e-12))


def correct(probabilities: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """Return, (N,) bool, where the most probable class of (N, classes) probabilities is the label."""
    return probabilities.argmax(1) == np.asarray(labels)


def calibration_bins(probabilities: np.ndarray, labels: Sequence[int]) -> pd.DataFrame:
    """Return one row per example: its `bin`, its `confidence` (top probability), and whether it is `correct`.

    The 15 bins, 0 to 14, have equal width: bin k holds confidences from edge k up to, but not
    including, edge k + 1; a confidence of 1 is in the last bin. An edge belongs to the bin above.
    The edges are the float32 numbers of `torch.linspace(0, 1, 16)`, up to 4e-8 beside k/15.
    Confidences are compared with the edges in float32, as in torchmetrics, which computes the ECE of
    `measure`. The reliability diagram, its table and the tests of the ECE all use these bins.
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
    """Return the reliability diagram as a table: `confidence`, `accuracy` and `count` of each filled bin."""
    return (
        calibration_bins(probabilities, labels)
        .groupby("bin")
        .agg(
            confidence=("confidence", "mean"),
            accuracy=("correct", "mean"),
            count=("correct", "size"),
        )
    )
