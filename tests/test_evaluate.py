"""Metrics against loops in plain Python floats, and predictions whatever the batch size."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from skillgraft.config.choices import Metric
from skillgraft.evaluation import calibration, metrics, predict, prediction_files, statistics
from skillgraft.store import metric_names
from skillgraft.tasks.encoder import Encoded

# ------------------------------------------------------------------- the same, as plain loops


def top(row: list[float]) -> int:
    """The first of the largest."""
    return max(range(len(row)), key=lambda i: (row[i], -i))


def ece(rows: list[list[float]], labels: list[int], bins: int = 15) -> float:
    """Σ |bin| / N · |accuracy − confidence| over bins of equal width; 1 is in the last bin."""
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for row, label in zip(rows, labels, strict=True):
        confidence = max(row)
        members[min(bins - 1, int(confidence * bins))].append((confidence, top(row) == label))
    total = 0.0
    for inside in members:
        if inside:
            mean = math.fsum(c for c, _ in inside) / len(inside)
            total += len(inside) / len(rows) * abs(sum(h for _, h in inside) / len(inside) - mean)
    return total


def nll(rows: list[list[float]], labels: list[int]) -> float:
    terms = [-math.log(max(row[y], 1e-12)) for row, y in zip(rows, labels, strict=True)]
    return math.fsum(terms) / len(rows)


def brier(rows: list[list[float]], labels: list[int]) -> float:
    terms = [
        (p - (i == y)) ** 2 for row, y in zip(rows, labels, strict=True) for i, p in enumerate(row)
    ]
    return math.fsum(terms) / len(rows)


def accuracy(rows: list[list[float]], labels: list[int]) -> float:
    return sum(top(row) == y for row, y in zip(rows, labels, strict=True)) / len(rows)


def f1(rows: list[list[float]], labels: list[int]) -> float:
    """F1 of label 1; 0 where nothing is positive and nothing was predicted so."""
    pairs = [(top(row), y) for row, y in zip(rows, labels, strict=True)]
    hit = pairs.count((1, 1))
    wrong = pairs.count((1, 0)) + pairs.count((0, 1))
    return 2 * hit / (2 * hit + wrong) if hit + wrong else 0.0


def matthews(rows: list[list[float]], labels: list[int]) -> float:
    """The correlation of labels and predictions over K classes (Gorodkin 2004); 0 if one is constant."""
    pairs = [(top(row), y) for row, y in zip(rows, labels, strict=True)]
    n, right = len(pairs), sum(p == y for p, y in pairs)
    classes = range(len(rows[0]))
    said = [sum(p == k for p, _ in pairs) for k in classes]
    true = [sum(y == k for _, y in pairs) for k in classes]
    above = right * n - sum(p * t for p, t in zip(said, true, strict=True))
    below = (n * n - sum(p * p for p in said)) * (n * n - sum(t * t for t in true))
    return above / math.sqrt(below) if below else 0.0


ORACLES = {
    "accuracy": accuracy,
    "ece": ece,
    "nll": nll,
    "brier": brier,
    "f1": f1,
    "matthews": matthews,
}


def check(probabilities: np.ndarray, labels: list[int]) -> None:
    rows = [[float(p) for p in row] for row in probabilities]
    for metric in Metric:
        if metric is Metric.f1 and len(rows[0]) != 2:
            continue
        found = metrics.measure(probabilities, labels, metric)
        expected = {"accuracy", metric.value, "ece", "nll", "brier"}
        assert set(found) == expected
        for name in expected:
            assert type(found[name]) is float
            assert found[name] == pytest.approx(ORACLES[name](rows, labels), abs=1e-6), name


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return (powers / powers.sum(1, keepdims=True)).astype(np.float32)


@st.composite
def predictions(draw) -> tuple[np.ndarray, list[int]]:
    """Class probabilities as a model gives them, float32, some of them exactly 0, ½ or 1."""
    classes, n = draw(st.integers(2, 5)), draw(st.integers(1, 30))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = draw(st.sampled_from([0.0, 0.3, 1.0, 3.0, 30.0, 300.0]))
    labels = random.integers(draw(st.sampled_from([1, classes])), size=n)
    return softmax(scale * random.normal(size=(n, classes))), labels.tolist()


@settings(deadline=None, max_examples=100)
@given(case=predictions())
def test_metrics_of_random_predictions(case: tuple[np.ndarray, list[int]]) -> None:
    check(*case)


@settings(deadline=None, max_examples=50)
@given(case=predictions(), seed=st.integers(0, 1000))
def test_metrics_do_not_depend_on_the_order(case, seed: int) -> None:
    probabilities, labels = case
    order = np.random.default_rng(seed).permutation(len(labels))
    for metric in (Metric.accuracy, Metric.matthews):
        one = metrics.measure(probabilities, labels, metric)
        two = metrics.measure(probabilities[order], [labels[i] for i in order], metric)
        assert one == pytest.approx(two, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_perfect_predictions(classes: int) -> None:
    labels = [i % classes for i in range(12)]
    probabilities = np.eye(classes, dtype=np.float32)[labels]
    metric = Metric.f1 if classes == 2 else Metric.matthews
    found = metrics.measure(probabilities, labels, metric)
    expected = {"accuracy": 1, metric.value: 1, "ece": 0, "nll": 0, "brier": 0}
    assert found == pytest.approx(expected, abs=2e-7)  # a confidence of 1 counts as 1 - 1e-7
    check(probabilities, labels)


@pytest.mark.parametrize("metric", list(Metric))
def test_the_worst_predictions(metric: Metric) -> None:
    labels = [0, 1] * 6
    probabilities = np.eye(2, dtype=np.float32)[1 - np.array(labels)]
    found = metrics.measure(probabilities, labels, metric)
    worst = {"accuracy": 0, "ece": 1, "nll": -math.log(1e-12), "brier": 2}
    worst[metric.value] = -1 if metric is Metric.matthews else 0
    assert found == pytest.approx(worst, abs=1e-6)


@pytest.mark.parametrize(
    ("probabilities", "labels"),
    [
        # a model that is sure, and one that is nearly sure, lie in the same, last bin
        ([[1.0, 0.0], [0.95, 0.05]], [1, 0]),
        ([[1.0, 0.0]] * 5 + [[0.94, 0.06]] * 5, [0] * 5 + [1] * 5),
        ([[0.0, 1.0], [0.0, 1.0]], [1, 0]),
        ([[0.5, 0.5]] * 4, [0, 0, 0, 1]),
        ([[1.0, 0.0]], [0]),
        ([[0.3, 0.7]], [0]),
    ],
)
def test_sure_and_unsure_predictions(probabilities, labels) -> None:
    check(np.array(probabilities, dtype=np.float32), labels)


@pytest.mark.parametrize("labels", [[0] * 6, [1] * 6, [0, 0, 0, 0, 1, 1], [1, 0, 1, 1, 1, 1]])
@pytest.mark.parametrize("said", [[0] * 6, [1] * 6, [0, 1, 0, 1, 0, 1]])
def test_constant_labels_and_constant_predictions(labels: list[int], said: list[int]) -> None:
    """Where either is constant there is no correlation: Matthews is 0, as scikit-learn has it."""
    probabilities = np.where(np.eye(2)[said] > 0, 0.8, 0.2).astype(np.float32)
    check(probabilities, labels)
    if len(set(labels)) == 1 or len(set(said)) == 1:
        assert metrics.measure(probabilities, labels, Metric.matthews)["matthews"] == 0


def test_f1_is_that_of_the_last_label() -> None:
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.7, 0.3]], dtype=np.float32)
    found = metrics.measure(probabilities, [0, 1, 0, 1], Metric.f1)
    assert found["f1"] == pytest.approx(0.5)
    found = metrics.measure(probabilities[:, ::-1].copy(), [0, 0, 0, 1], Metric.f1)
    assert found["f1"] == pytest.approx(2 / 3)
    found = metrics.measure(probabilities[:, ::-1].copy(), [1, 0, 0, 1], Metric.f1)
    assert found["f1"] == pytest.approx(1)


def test_labels_may_be_an_array_and_arguments_stay() -> None:
    probabilities, labels = softmax(np.random.default_rng(0).normal(size=(9, 3))), [0, 1, 2] * 3
    kept = probabilities.copy()
    one = metrics.measure(probabilities, labels, Metric.accuracy)
    assert one == metrics.measure(probabilities, np.array(labels), Metric.accuracy)
    assert np.array_equal(probabilities, kept)


# ------------------------------------------------------------------------- the smaller numbers


@pytest.mark.parametrize(
    ("graft", "before", "after", "gain"),
    [
        (0.9, 0.5, 0.9, 1.0),
        (0.5, 0.5, 0.9, 0.0),
        (0.7, 0.5, 0.9, 0.5),
        (0.95, 0.5, 0.9, 1.125),
        (0.4, 0.5, 0.9, -0.25),
        (0.6, 0.8, 0.4, 0.5),  # fine-tuning that did harm
        (0.7, 0.5, 0.509, None),
        (0.7, 0.5, 0.491, None),
        (0.7, 0.5, 0.5, None),
        (0.52, 0.5, 0.51, 2.0),
        (0.94, 0.93, 0.94, 1.0),  # one point exactly, though 0.94 - 0.93 < 0.01 in floats
        (0.28, 0.29, 0.28, 1.0),
        (None, 0.5, 0.9, None),
        (0.7, None, 0.9, None),
        (0.7, 0.5, None, None),
    ],
)
def test_relative_gain(graft, before, after, gain) -> None:
    found = metrics.relative_gain(graft, before, after)
    assert found == (None if gain is None else pytest.approx(gain))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, 0.5),
        (0.0, 0.0),
        (-1.0, -1.0),
        (None, None),
        (math.nan, None),
        (math.inf, None),
        (-math.inf, None),
    ],
)
def test_finite(value: float | None, expected: float | None) -> None:
    assert metrics.finite(value) == expected


def test_agreement() -> None:
    a = np.array([[0.9, 0.1], [0.4, 0.6], [0.5, 0.5], [0.2, 0.8]], dtype=np.float32)
    b = np.array([[0.6, 0.4], [0.6, 0.4], [0.7, 0.3], [0.0, 1.0]], dtype=np.float32)
    assert metrics.agreement(a, b) == metrics.agreement(b, a) == 0.75
    assert metrics.agreement(a, a) == 1.0
    assert metrics.agreement(a, a[:, ::-1]) == 0.25  # of equals the first counts


def random_predictions(seed: int = 0) -> tuple[dict, dict, list[str]]:
    random = np.random.default_rng(seed)
    sizes = {"validation": 7, "test": 11, "ood/other": 5}
    labels = {split: random.integers(3, size=n).tolist() for split, n in sizes.items()}
    found = {
        model: {split: softmax(2 * random.normal(size=(n, 3))) for split, n in sizes.items()}
        for model in ("pretrained", "finetuned", "graft")
    }
    return found, labels, ["no", "perhaps", "yes"]


def test_compare() -> None:
    found, labels, _ = random_predictions()
    out = metrics.compare(found, labels, Metric.matthews)
    assert list(out) == ["pretrained", "finetuned", "graft"]
    for model, splits in out.items():
        assert list(splits) == list(labels)
        for split, measured in splits.items():
            plain = metrics.measure(found[model][split], labels[split], Metric.matthews)
            assert plain.items() <= measured.items()
            more = {"agreement", "relative_gain"} if model == "graft" else set()
            assert set(measured) - set(plain) == more
    for split, measured in out["graft"].items():
        same = found["graft"][split].argmax(1) == found["finetuned"][split].argmax(1)
        assert measured["agreement"] == pytest.approx(same.mean())
        p = [out[model][split]["matthews"] for model in ("graft", "pretrained", "finetuned")]
        assert measured["relative_gain"] == pytest.approx((p[0] - p[1]) / (p[2] - p[1]))


# ------------------------------------------------------------------------------- reliability


@settings(deadline=None, max_examples=60)
@given(case=predictions())
def test_reliability_holds_every_example_and_gives_the_ece(case) -> None:
    probabilities, labels = case
    frame = calibration.reliability(probabilities, labels)
    assert list(frame.columns) == ["confidence", "accuracy", "count"]
    assert frame["count"].sum() == len(labels)
    assert (frame["count"] > 0).all()
    assert frame.index.is_unique
    assert frame.index.isin(range(15)).all()
    rows = [[float(p) for p in row] for row in probabilities]
    weighted = (frame["count"] * (frame["accuracy"] - frame["confidence"]).abs()).sum()
    assert weighted / len(labels) == pytest.approx(ece(rows, labels), abs=1e-6)
    measured = metrics.measure(probabilities, labels, Metric.accuracy)["ece"]
    assert weighted / len(labels) == pytest.approx(measured, abs=1e-6)
    for at, row in frame.iterrows():
        assert at / 15 - 1e-6 <= row["confidence"] <= (at + 1) / 15 + 1e-6


EDGES = torch.linspace(0, 1, 16).numpy()  # float32, as torchmetrics has them


def surely(confidence: np.float32, classes: int = 20) -> np.ndarray:
    """A row of probabilities whose largest is class 0's, as small as 1/15."""
    rest = (1 - confidence) / np.float32(classes - 1)
    return np.array([confidence] + [rest] * (classes - 1), dtype=np.float32)


@pytest.mark.parametrize("k", range(1, 16))
def test_an_edge_belongs_to_the_bin_above(k: int) -> None:
    below, at = np.nextafter(EDGES[k], np.float32(0)), EDGES[k]
    frame = calibration.calibration_bins(np.stack([surely(below), surely(at)]), [0, 1])
    assert frame["bin"].tolist() == [k - 1, min(k, 14)]
    assert frame["confidence"].tolist() == [below, at]
    assert frame["correct"].tolist() == [True, False]


@st.composite
def near_edges(draw) -> tuple[np.ndarray, list[int]]:
    """Probabilities whose largest is an edge, k/15, a neighbour of one, or a number between."""
    near = [
        np.nextafter(edge, np.float32(towards))
        for k in range(1, 16)
        for edge in (EDGES[k], np.float32(k / 15), np.float32(round(k / 15, 1)))
        for towards in (0, edge, 1)
    ]
    kinds = st.sampled_from(near) | st.floats(0.0625, 1, width=32).map(np.float32)
    confidences = draw(st.lists(kinds, min_size=1, max_size=40))
    labels = draw(st.lists(st.integers(0, 1), min_size=len(confidences), max_size=len(confidences)))
    return np.stack([surely(c) for c in confidences]), labels


@settings(deadline=None, max_examples=200)
@given(case=near_edges())
def test_diagram_and_tests_have_the_bins_of_the_ece(case) -> None:
    """An example in another bin than torchmetrics' would change the sum by far more than rounding."""
    probabilities, labels = case
    expected = metrics.measure(probabilities, labels, Metric.accuracy)["ece"]
    frame = calibration.reliability(probabilities, labels)
    weighted = (frame["count"] * (frame["accuracy"] - frame["confidence"]).abs()).sum()
    assert weighted / len(labels) == pytest.approx(expected, abs=1e-6)
    assert statistics.ece(*statistics.gaps(probabilities, labels)) == pytest.approx(
        expected, abs=1e-6
    )


# ---------------------------------------------------------------------------------- the frame


def test_frame_round_trip(tmp_path: Path) -> None:
    found, labels, names = random_predictions()
    frame = prediction_files.to_frame(found, labels, names)
    assert list(frame.columns) == ["model", "split", "row", "label", "p/no", "p/perhaps", "p/yes"]
    assert len(frame) == 3 * 23
    one = frame[(frame["model"] == "graft") & (frame["split"] == "test")]
    assert one["row"].tolist() == list(range(11))
    assert one["label"].tolist() == [names[i] for i in labels["test"]]
    frame.to_parquet(tmp_path / "p.parquet", index=False)
    for back in (
        prediction_files.from_frame(frame),
        prediction_files.read_predictions(tmp_path / "p.parquet"),
    ):
        assert list(back) == list(found)
        for model, splits in found.items():
            assert list(back[model]) == list(splits)
            for split, probabilities in splits.items():
                assert back[model][split].dtype == np.float32
                assert np.array_equal(back[model][split], probabilities)
                assert back[model][split].flags.writeable


@pytest.mark.parametrize(
    ("nested", "flat"),
    [
        ({}, {}),
        ({"a": 1, "b": None}, {"a": 1, "b": None}),
        ({"a": {"b": {"c": 1.5}, "d": 2}, "e": "x"}, {"a/b/c": 1.5, "a/d": 2, "e": "x"}),
        ({"graft": {"ood/x": {"ece": 0.1}}}, {"graft/ood/x/ece": 0.1}),
        ({"a": {}}, {}),
    ],
)
def test_flatten(nested: dict[str, Any], flat: dict[str, Any]) -> None:
    assert metric_names.flatten(nested) == flat


# ---------------------------------------------------------------------------------- predict


class Stub(nn.Module):
    """What `predict` needs of a classifier: dropout, padding-proof, and a record of batch sizes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.drop, self.out = nn.Embedding(20, 8), nn.Dropout(0.5), nn.Linear(8, 3)
        self.seen: list[int] = []

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        assert not torch.is_grad_enabled()
        self.seen.append(len(batch["labels"]))
        hidden = self.drop(self.embed(batch["input_ids"])) * batch["attention_mask"].unsqueeze(-1)
        return self.out(hidden.sum(1))


def encoded(n: int) -> list[Encoded]:
    random = np.random.default_rng(1)
    lengths = random.integers(1, 9, size=n)
    return [
        Encoded(random.integers(1, 20, size=k).tolist(), [0] * k, 0, i % 3)
        for i, k in enumerate(lengths.tolist())
    ]


def by_hand(stub: Stub, example: Encoded) -> np.ndarray:
    weight, bias = stub.out.weight.detach().double(), stub.out.bias.detach().double()
    hidden = stub.embed.weight.detach().double()[example.ids].sum(0)
    logits = (weight @ hidden + bias).numpy()
    return np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()


@pytest.mark.parametrize("size", [1, 2, 7, 16, 17, 100])
@pytest.mark.parametrize("training", [False, True])
def test_predict_gives_rows_in_order_whatever_the_batch_size(size: int, training: bool) -> None:
    stub, examples = Stub().train(training), encoded(17)
    found = predict.predict(stub, examples, 0, size)
    assert found.dtype == np.float32
    assert found.shape == (17, 3)
    expected = np.stack([by_hand(stub, example) for example in examples])
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
    assert sum(stub.seen) == 17
    assert max(stub.seen) <= size
    assert stub.training == stub.drop.training == training
    assert all(p.grad is None and p.requires_grad for p in stub.parameters())


def test_predict_of_one_example_and_of_equal_ones() -> None:
    stub, example = Stub(), encoded(1)[0]
    alone = predict.predict(stub, [example], 0, 4)
    many = predict.predict(stub, [example] * 5, 0, 2)
    assert alone.shape == (1, 3)
    np.testing.assert_allclose(many, alone.repeat(5, 0), atol=1e-6, rtol=0)
    np.testing.assert_allclose(many.sum(1), 1, atol=1e-6)


def test_predict_does_not_depend_on_the_padding() -> None:
    stub, examples = Stub(), encoded(9)
    np.testing.assert_array_equal(
        predict.predict(stub, examples, 0, 4), predict.predict(stub, examples, 19, 4)
    )


def test_joined_classes_are_measured_as_one() -> None:
    probabilities = np.array([[0.4, 0.3, 0.3], [0.5, 0.2, 0.3], [0.1, 0.2, 0.7]], dtype=np.float32)
    one = predict.joined(probabilities, [[1, 2]])
    np.testing.assert_allclose(one, [[0.4, 0.6, 0], [0.5, 0.5, 0], [0.1, 0.9, 0]], rtol=1e-6)
    assert predict.joined(probabilities, []).tolist() == probabilities.tolist()
    two = metrics.measure(one[:, :2], [1, 0, 1], Metric.accuracy)
    three = metrics.measure(one, [1, 0, 1], Metric.accuracy)
    assert three == pytest.approx(two)
