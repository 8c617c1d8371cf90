"""Intervals and tests against formulas written out by hand."""

from __future__ import annotations

import math
from math import comb

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from skillgraft.config.choices import Metric
from skillgraft.evaluation import metrics, statistics
from skillgraft.evaluation.intervals import Interval, over_seeds

T_4 = 2.7764451052  # the 97.5 % point of Student's t with 4 degrees of freedom, from a table


def predictions(n: int, seed: int, classes: int = 3) -> tuple[np.ndarray, list[int]]:
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet([0.7] * classes, n).astype(np.float32)
    return probabilities, random.integers(0, classes, n).tolist()


def test_interval_over_seeds_is_students() -> None:
    values = [0.91, 0.95, 0.93, 0.90, 0.96]
    found = over_seeds(values)
    half = T_4 * np.std(values, ddof=1) / math.sqrt(5)
    assert found is not None
    assert found.n == 5
    assert found.mean == pytest.approx(0.93)
    assert found.low == pytest.approx(0.93 - half)
    assert found.high == pytest.approx(0.93 + half)


@given(values=st.lists(st.floats(-1e3, 1e3).map(lambda x: round(x, 4)), min_size=2, max_size=9))
def test_interval_over_seeds_is_that_of_scipys_t_test(values: list[float]) -> None:
    found = over_seeds([*values, math.nan, None, math.inf])
    assert found is not None
    assert found.n == len(values)
    if len(set(values)) == 1:
        assert (found.low, found.high) == (found.mean, found.mean)
        return
    bounds = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert found.low == pytest.approx(bounds.low, abs=1e-9)
    assert found.high == pytest.approx(bounds.high, abs=1e-9)


def test_few_values() -> None:
    assert over_seeds([]) is None
    assert over_seeds([math.nan]) is None
    assert over_seeds([0.5]) == Interval(0.5, None, None, 1)
    assert over_seeds([0.5, 0.5, math.nan]) == Interval(0.5, 0.5, 0.5, 2)
    assert str(over_seeds([0.5])) == "0.500 (n=1)"
    assert str(over_seeds([0.5, 0.5])) == "0.500 [0.500, 0.500] (n=2)"


@pytest.mark.parametrize(
    ("interval", "low", "high", "expected"),
    [
        (Interval(0.97, 0.96, 0.98, 5), 0.95, math.inf, "holds"),
        (Interval(0.96, 0.94, 0.98, 5), 0.95, math.inf, "not decided"),
        (Interval(0.90, 0.88, 0.92, 5), 0.95, math.inf, "does not hold"),
        (Interval(0.97, 0.96, 0.98, 4), 0.95, math.inf, "not decided"),
        (Interval(0.97, None, None, 1), 0.95, math.inf, "not decided"),
        (None, 0.95, math.inf, "not decided"),
        (Interval(0.0, -0.005, 0.005, 5), -0.01, 0.01, "holds"),
        (Interval(0.0, -0.02, 0.02, 5), -0.01, 0.01, "not decided"),
        (Interval(0.05, 0.04, 0.06, 5), -0.01, 0.01, "does not hold"),
        (Interval(-0.05, -0.06, -0.04, 5), -0.01, 0.01, "does not hold"),
    ],
)
def test_verdict(interval, low, high, expected) -> None:
    assert statistics.verdict(interval, low, high) == expected


def test_holm_by_hand() -> None:
    """The smallest p is multiplied by the number of tests, the next by one less; they never fall."""
    values = {"a": [0.5, 0.6, 0.7], "b": [0.1, 0.2, 0.0], "c": [1.0, 1.1, 1.05], "d": [1, 1, 1]}
    found = statistics.above(values, 0.0)

    def single(sample: list[float]) -> float:  # Student's t with two degrees of freedom
        if sample == [1, 1, 1]:
            return 0.0  # t is infinite
        t = np.mean(sample) / (np.std(sample, ddof=1) / math.sqrt(3))
        return 0.5 - t / (2 * math.sqrt(2 + t * t))

    ordered = sorted(values, key=lambda name: single(values[name]))
    assert ordered[0] == "d"
    last = 0.0
    for rank, name in enumerate(ordered):
        last = max(last, min(1.0, (4 - rank) * single(values[name])))
        assert found[name] == pytest.approx(last)


def test_a_value_that_is_the_same_for_every_seed_is_tested_too() -> None:
    assert statistics.above({"d": [1, 1, 1]}, 0.0) == {"d": 0.0}
    assert statistics.above({"at": [0.3] * 5, "below": [0.1] * 5}, 0.1 + 0.2) == {
        "at": 1.0,
        "below": 1.0,
    }
    assert statistics.above({"one": [1.0], "none": []}, 0.0) == {}


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 300), seed=st.integers(0, 99), classes=st.integers(2, 5))
def test_the_resampled_ece_is_the_ece_of_the_metrics(n: int, seed: int, classes: int) -> None:
    probabilities, labels = predictions(n, seed, classes)
    expected = metrics.measure(probabilities, labels, Metric.accuracy)["ece"]
    assert statistics.ece(*statistics.gaps(probabilities, labels)) == pytest.approx(
        expected, abs=1e-5
    )


def test_bootstrap_interval_of_accuracy_is_that_of_a_binomial() -> None:
    probabilities, labels = predictions(400, 1, 2)
    found = statistics.bootstrap(probabilities, labels, 13)
    hit = probabilities.argmax(1) == np.array(labels)
    half = 1.96 * math.sqrt(hit.mean() * (1 - hit.mean()) / 400)
    assert found["accuracy"].mean == pytest.approx(hit.mean())
    assert found["accuracy"].low == pytest.approx(hit.mean() - half, abs=0.01)
    assert found["accuracy"].high == pytest.approx(hit.mean() + half, abs=0.01)
    assert found["ece"].low < found["ece"].mean < found["ece"].high
    assert statistics.bootstrap(probabilities, labels, 13) == found


def test_mcnemar_is_a_binomial_test_of_the_disagreements() -> None:
    labels = [0] * 20
    right, wrong = [0.9, 0.1], [0.2, 0.8]
    a = np.array([right] * 15 + [wrong] * 5)
    b = np.array([right] * 8 + [wrong] * 10 + [right] * 2)  # 7 only a is right, 2 only b
    tail = sum(comb(9, k) for k in range(3)) / 2**9
    assert statistics.mcnemar(a, b, labels) == pytest.approx(2 * tail)
    assert statistics.mcnemar(a, a, labels) == 1.0


def test_permutation_of_predictions() -> None:
    probabilities, labels = predictions(300, 2, 2)
    assert statistics.ece_permutation(probabilities, probabilities, labels, 1) == 1.0
    truth = np.eye(2)[labels].astype(np.float32) * 0.98 + 0.01  # sure and right
    assert statistics.ece_permutation(probabilities, truth, labels, 1) < 0.01
    assert statistics.ece_permutation(truth, probabilities, labels, 1) < 0.01
