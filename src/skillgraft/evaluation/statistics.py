"""Statistical tests and verdicts: over seeds for several runs, and over examples for one run.

scipy and statsmodels compute all tests. This module only assigns a test to each question.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as mcnemar_test
from statsmodels.stats.multitest import multipletests

from skillgraft.evaluation.calibration import calibration_bins, correct
from skillgraft.evaluation.intervals import LEVEL, SAME, Interval
from skillgraft.runtime.seeds import derive

ENOUGH = 5  # seeds that a verdict needs: the paper has 13, 21, 42, 87 and 100, from LM-BFF
# of bootstrap and permutation tests: the standard error of a p of 0.05 is then √(0.05 · 0.95 / 2000) = 0.005
RESAMPLES = 2000


def verdict(interval: Interval | None, low: float = -math.inf, high: float = math.inf) -> str:
    """Return whether a value lies in (low, high), judged by its confidence interval over seeds.

    `holds` means that the complete interval lies in (low, high), and `does not hold` that no part of
    the interval does. `not decided` is every other case, and any case with fewer than five seeds.
    """
    if interval is None or interval.low is None or interval.high is None or interval.n < ENOUGH:
        return "not decided"
    if low < interval.low and interval.high < high:
        return "holds"
    if interval.high <= low or high <= interval.low:
        return "does not hold"
    return "not decided"


def above(values: Mapping[str, Sequence[float]], bound: float) -> dict[str, float]:
    """Return, by name, the p-value of "the mean over seeds is not above `bound`", with Holm's correction.

    The tests are one-sided one-sample t-tests. A name with fewer than two values is left out.
    """
    usable = {name: v for name, v in values.items() if len(v) > 1}
    if not usable:
        return {}

    def single_test(sample: Sequence[float]) -> float:
        if np.ptp(sample) < SAME:  # t is infinite, or 0/0 at the bound itself
            return 0.0 if np.mean(sample) - bound > SAME else 1.0
        return float(stats.ttest_1samp(sample, bound, alternative="greater").pvalue)

    single = [single_test(sample) for sample in usable.values()]
    corrected = multipletests(single, method="holm")[1]
    return {name: float(p) for name, p in zip(usable, corrected, strict=True)}


def gaps(probabilities: np.ndarray, labels: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each example, correct − confidence, (N,), and the bin of the confidence, (N,).

    The ECE is a function of these two alone, so that a resampling test need not compute bins again.
    """
    bins = calibration_bins(probabilities, labels)
    return bins["correct"].to_numpy() - bins["confidence"].to_numpy(), bins["bin"].to_numpy()


def ece(gap: np.ndarray, place: np.ndarray) -> float:
    """Return the ECE, Σ_bins |Σ_{examples of the bin} gap| / N, fast enough for thousands of resamples."""
    return float(np.abs(np.bincount(place, gap)).sum() / len(gap))


def bootstrap(probabilities: np.ndarray, labels: Sequence[int], seed: int) -> dict[str, Interval]:
    """Return percentile bootstrap intervals over examples of `accuracy` and `ece`."""
    hit, (gap, place) = correct(probabilities, labels), gaps(probabilities, labels)
    statistics: dict[str, Callable[[np.ndarray], float]] = {
        "accuracy": lambda rows: float(hit[rows].mean()),
        "ece": lambda rows: ece(gap[rows], place[rows]),
    }
    rows, out = np.arange(len(hit)), {}
    for name, statistic in statistics.items():
        found = stats.bootstrap(
            (rows,),
            statistic,
            vectorized=False,
            n_resamples=RESAMPLES,
            confidence_level=LEVEL,
            method="percentile",
            rng=np.random.default_rng(derive(seed, "bootstrap", name)),
        ).confidence_interval
        out[name] = Interval(statistic(rows), float(found.low), float(found.high), len(rows))
    return out


def mcnemar(a: np.ndarray, b: np.ndarray, labels: Sequence[int]) -> float:
    """Return the exact p-value of McNemar's test of "both models are right equally often".

    `a` and `b` are the models' probabilities, (N, classes), on the same examples.
    """
    left, right = correct(a, labels), correct(b, labels)
    table = [
        [int((left & right).sum()), int((left & ~right).sum())],
        [int((~left & right).sum()), int((~left & ~right).sum())],
    ]
    return float(mcnemar_test(table, exact=True).pvalue)


def ece_permutation(a: np.ndarray, b: np.ndarray, labels: Sequence[int], seed: int) -> float:
    """Return the p-value of a permutation test of "both models have the same ECE".

    `a` and `b` are the models' probabilities, (N, classes), on the same examples. Each permutation swaps
    the two predictions of a random set of examples.
    """
    gap, place = (
        np.concatenate(parts) for parts in zip(gaps(a, labels), gaps(b, labels), strict=True)
    )
    # (2, N): positions are permuted instead of predictions, since a gap and its bin belong together
    positions = np.arange(len(gap)).reshape(2, -1)

    def difference(x: np.ndarray, y: np.ndarray) -> float:
        return ece(gap[x], place[x]) - ece(gap[y], place[y])

    found = stats.permutation_test(
        tuple(positions),
        difference,
        permutation_type="samples",
        vectorized=False,
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(derive(seed, "permutation")),
    )
    return float(found.pvalue)
