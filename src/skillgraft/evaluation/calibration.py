"""Calibration: the bins of ECE and the reliability diagram, and temperature scaling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from scipy.special import log_softmax, softmax

BINS = 15  # of the expected calibration error and the reliability diagram


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
