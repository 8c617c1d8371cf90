"""The mean over seeds with Student's t interval, for every table, figure and verdict.

The module imports neither scipy.stats nor statsmodels, whose imports take seconds, so that
`grafts table` starts quickly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from scipy.special import stdtrit

LEVEL = 0.95  # the confidence level of every interval
SAME = 1e-9  # two values that differ by less are equal: sums in different orders differ by rounding


@dataclass(frozen=True)
class Interval:
    """The mean of n values, with the bounds of its confidence interval (None for a single value)."""

    mean: float
    low: float | None
    high: float | None
    n: int

    def without_n(self) -> str:
        """Return the mean and its interval: with three decimal places, none for a count."""
        form = ",.0f" if abs(self.mean) >= 100 else ".3f"
        bounds = "" if self.low is None else f" [{self.low:{form}}, {self.high:{form}}]"
        return f"{self.mean:{form}}{bounds}"

    def __str__(self) -> str:
        """Return the mean, its interval and n."""
        return f"{self.without_n()} (n={self.n})"


def over_seeds(values: Iterable[float | None]) -> Interval | None:
    """Return the mean of one value per seed, Student's t interval of the mean, and the number of values.

    The interval is mean ± t · s / √n, where s is the standard deviation (by n − 1) and t the 97.5 %
    quantile of Student's t with n − 1 degrees of freedom. Values that are None, NaN or infinite are
    left out; the result is None where no value remains. One value has no interval.
    """
    known = [v for v in values if v is not None and math.isfinite(v)]
    n = len(known)
    if n == 0:
        return None
    # fsum rounds once, so that the order of the seeds cannot change a digit. For a handful of values
    # fsum is also much faster than numpy, and a table has thousands of means.
    mean = math.fsum(known) / n
    if n == 1:
        return Interval(mean, None, None, 1)
    if max(known) - min(known) < SAME:  # the standard deviation would be a rounding error
        return Interval(mean, mean, mean, n)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in known) / (n - 1))
    half = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * deviation / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)
