"""Models that stand beside the graft: temperature, WiSE-FT, lottery, training inside the region."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from runs import FEW, TINY, composed, expanded, make, refused, results
from skillgraft.config import choices
from skillgraft.core.graft import Graft
from skillgraft.evaluation import calibration, predict
from skillgraft.evaluation.metrics import measure
from skillgraft.experiments import baselines
from skillgraft.experiments.stages.load import LoadedRun
from skillgraft.runtime import files
from skillgraft.store import checksums
from skillgraft.tasks import loading
from skillgraft.training import resumable
from test_evaluate import predictions, softmax
from test_training import Killed

pytestmark = pytest.mark.usefixtures("undrawn")

# ----------------------------------------------------------------------------- temperature


def nll(probabilities: np.ndarray, labels: list[int]) -> float:
    truth = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(truth, 1e-12)).mean())


def fitted_by_newton(probabilities: np.ndarray, labels: list[int]) -> float:
    """The same fit by another road: torch's L-BFGS on log T."""
    logits = torch.from_numpy(probabilities).double().clamp_min(1e-12).log()
    truth = torch.tensor(labels)
    free = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([free], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits / free.exp(), truth)
        loss.backward()
        return loss

    optimizer.step(closure)
    return free.exp().item()


@pytest.mark.parametrize("true", [0.3, 1.0, 2.5, 8.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_the_temperature_is_the_best_one(true: float, classes: int) -> None:
    """Labels drawn from p, probabilities sharpened or flattened by a known temperature."""
    random = np.random.default_rng(classes)
    logits = random.normal(size=(400, classes))
    labels = [int(random.choice(classes, p=p / p.sum())) for p in softmax(logits).astype(float)]
    given = softmax(true * logits)
    found = calibration.fit_temperature(given, labels)
    assert found == pytest.approx(fitted_by_newton(given, labels), rel=1e-3)
    assert found == pytest.approx(true, rel=0.4)  # 400 examples
    best = nll(calibration.scale(given, found), labels)
    for other in np.geomspace(0.05, 20, 60):
        assert best <= nll(calibration.scale(given, float(other)), labels) + 1e-6


@settings(deadline=None, max_examples=80)
@given(case=predictions())
def test_scaling_never_hurts_where_it_was_fitted(case) -> None:
    probabilities, labels = case
    found = calibration.fit_temperature(probabilities, labels)
    assert 0.05 <= found <= 20
    before = measure(probabilities, labels, choices.Metric.accuracy)
    after = measure(calibration.scale(probabilities, found), labels, choices.Metric.accuracy)
    assert after["nll"] <= before["nll"] + 1e-6  # float32
    assert after["accuracy"] == before["accuracy"]


@settings(deadline=None, max_examples=80)
@given(case=predictions(), temperature=st.floats(0.05, 20))
def test_scaling_changes_no_prediction(case, temperature: float) -> None:
    probabilities, _ = case
    scaled = calibration.scale(probabilities, temperature)
    assert scaled.dtype == np.float32
    assert np.array_equal(scaled.argmax(1), probabilities.argmax(1))
    np.testing.assert_allclose(scaled.sum(1), 1, rtol=1e-5)
    if temperature == 1:
        np.testing.assert_allclose(scaled, probabilities, atol=1e-6)


@pytest.mark.parametrize("temperature", [5.0, 20.0])
def test_scaling_keeps_a_prediction_by_a_hair(temperature: float) -> None:
    half = np.float32(0.5)
    near = np.array([[np.nextafter(half, np.float32(0)), half]], dtype=np.float32)
    assert calibration.scale(near, temperature).argmax(1).tolist() == [1]
    assert calibration.scale(near[:, ::-1].copy(), temperature).argmax(1).tolist() == [0]


def test_where_nothing_depends_on_the_temperature_it_is_one() -> None:
    assert calibration.fit_temperature(np.full((4, 2), 0.5, dtype=np.float32), [0, 1, 1, 0]) == 1.0


# ------------------------------------------------------------------------------- in a whole run

MOVED = ("graft=movement", "sparsity=0.02")
BESIDE = (
    "compare.temperature=true",
    "compare.wise_ft_alphas=[0,0.5,1]",
    "compare.lottery_steps=[0,3]",
    "compare.inside_steps=[3]",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def full(place: Path, undrawn: None) -> Path:
    """A run with every comparison model."""
    return make(place, *TINY, *MOVED, *BESIDE)


def probabilities(folder: Path, model: str, split: str = "test") -> np.ndarray:
    frame = pd.read_parquet(folder / "predictions.parquet")
    part = frame[(frame.model == model) & (frame.split == split)]
    assert len(part)
    return part[[c for c in part if c.startswith("p/")]].to_numpy()


def test_every_model_is_measured_and_named(full: Path) -> None:
    metrics = files.read_json(full / "metrics.json")
    beside = {"wise_0", "wise_0.5", "wise_1", "lottery_0", "lottery_3", "inside_3"}
    beside |= {"finetuned_temperature_scaled", "graft_temperature_scaled"}
    models = {"pretrained", "finetuned", "graft", *beside}
    assert set(metrics) == models | {"temperature", "region"}
    for model in models:
        assert set(metrics[model]) == {"validation", "test"}
    for model in {*beside, "graft"}:
        assert {"agreement", "relative_gain"} <= set(metrics[model]["test"])
    assert not [p for p in full.iterdir() if p.name.startswith(("lottery", "inside"))]
    assert checksums.verify(full) == []


def test_wise_goes_from_the_pretrained_to_the_finetuned_model(full: Path) -> None:
    for model, end in (("wise_0", "pretrained"), ("wise_1", "finetuned")):
        assert np.array_equal(probabilities(full, model), probabilities(full, end))
    assert not np.array_equal(probabilities(full, "wise_0.5"), probabilities(full, "wise_1"))


def test_temperatures(full: Path) -> None:
    metrics = files.read_json(full / "metrics.json")
    labels = pd.read_parquet(full / "predictions.parquet").query(
        "model == 'graft' and split == 'validation'"
    )["label"]
    truth = [["negative", "positive"].index(label) for label in labels]
    assert set(metrics["temperature"]) == {"finetuned", "graft"}
    for model, temperature in metrics["temperature"].items():
        scaled, plain = metrics[f"{model}_temperature_scaled"], metrics[model]
        assert scaled["validation"]["nll"] <= plain["validation"]["nll"] + 1e-6
        expected = calibration.fit_temperature(probabilities(full, model, "validation"), truth)
        assert temperature == pytest.approx(expected)
        for split in ("validation", "test"):
            assert scaled[split]["accuracy"] == plain[split]["accuracy"]
            given = probabilities(full, model, split).astype(np.float64) ** (1 / temperature)
            np.testing.assert_allclose(
                probabilities(full, f"{model}_temperature_scaled", split),
                given / given.sum(1, keepdims=True),
                rtol=1e-4,
            )


def by_hand(full: Path, build) -> np.ndarray:
    """Return the test probabilities of a fresh model whose graftable tensors `build` gives."""
    from skillgraft.models import checkpoint_files, pretrained
    from skillgraft.tasks import encoder

    cfg = composed(*TINY, *MOVED)
    where = checkpoint_files.locate(cfg.model)
    tokenizer = pretrained.load_tokenizer(where)
    classifier = pretrained.load_model(cfg, where, tokenizer)
    digest = files.read_json(full / "status.json")["finetuned"]
    after = load_file(full.parent / ".finetuned" / digest / "weights.safetensors")
    graft = Graft.load(full / "graft.safetensors")
    with torch.no_grad():
        for name, p in classifier.graftable.items():
            inside = torch.zeros(p.numel(), dtype=torch.bool)
            inside[graft.indices[name]] = True
            p.copy_(build(p.data.clone(), after[name], inside.view(p.shape)))
    rows = encoder.make_encoder(cfg, tokenizer, 128)(loading.load(expanded(*TINY, *MOVED)).test)
    return predict.predict(classifier, rows, tokenizer.pad_token_id, 64)


@pytest.mark.parametrize(
    ("model", "build"),
    [
        ("graft", lambda before, after, inside: torch.where(inside, after, before)),
        ("lottery_0", lambda before, _, inside: torch.where(inside, before, 0.0)),
        ("wise_0.5", lambda before, after, _: 0.5 * before + 0.5 * after),
    ],
)
def test_a_model_by_hand(full: Path, model: str, build) -> None:
    np.testing.assert_allclose(by_hand(full, build), probabilities(full, model), atol=1e-5)


def test_lottery_and_inside_train_the_region_alone(
    place: Path, full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen from the weights: outside of the region nothing ever leaves 0, or θ_pre."""
    graft, seen = Graft.load(full / "graft.safetensors"), {}
    train_inside = baselines.train_inside

    def watched(loaded: LoadedRun, only: Any, steps: int, model: str) -> Any:
        def weights() -> dict[str, torch.Tensor]:
            return {n: p.detach().clone() for n, p in loaded.classifier.graftable.items()}

        if model.startswith("inside"):
            seen["graft"] = weights()
        seen["before"] = loaded.start.theta_pre
        predictions = train_inside(loaded, only, steps, model)
        seen[model] = weights()
        return predictions

    with monkeypatch.context() as patch:
        patch.setattr(baselines, "train_inside", watched)
        make(place, *TINY, *MOVED, *BESIDE, "force=true")
    moved = {"lottery_3": 0, "inside_3": 0}
    for name, before in seen["before"].items():
        inside = torch.zeros(before.numel(), dtype=torch.bool)
        inside[graft.indices[name]] = True
        inside = inside.view(before.shape)
        assert (seen["lottery_3"][name][~inside] == 0).all()
        assert torch.equal(seen["inside_3"][name][~inside], before[~inside])
        for model, start in (("lottery_3", before), ("inside_3", seen["graft"][name])):
            moved[model] += int((seen[model][name] != start)[inside].sum())
    assert min(moved.values()) > 0.9 * graft.size


def test_comparison_models_take_the_region_that_is_there(
    place: Path, full: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that differs in them only has the same region and, elsewhere, the same bits."""
    caplog.set_level("INFO")
    learned = (*TINY, "graft=learned", "graft.steps=2", "graft.score_every=1", *FEW)
    plain = make(place, *learned)
    assert "mask training" in caplog.text
    caplog.clear()
    twin = make(place, *learned, "compare.wise_ft_alphas=[0.5]", "compare.lottery_steps=[0]")
    assert f"region: taken from {plain.name}" in caplog.text
    assert "mask training" not in caplog.text
    alone = make(tmp_path, *learned, "compare.wise_ft_alphas=[0.5]", "compare.lottery_steps=[0]")
    assert alone.name == twin.name
    names = ("metrics.json", "predictions.parquet", "graft.safetensors", "history.json")
    assert results(twin, *names) == results(alone, *names)
    a, b = (Graft.load(f / "graft.safetensors") for f in (plain, twin))
    assert a.iou(b) == 1
    assert (a.meta["run"], b.meta["run"]) == (plain.name, twin.name)
    # an altered twin is no reason to fail
    with (plain / "graft.safetensors").open("r+b") as file:
        file.truncate(100)
    caplog.clear()
    with (twin / "graft.safetensors").open("r+b") as file:
        file.truncate(100)
    third = make(place, *learned, "compare.wise_ft_alphas=[0.25]")
    assert "not taken from" in caplog.text
    assert Graft.load(third / "graft.safetensors").iou(a) == 1


def test_a_match_counts_twins_as_one(place: Path, full: Path) -> None:
    make(place, *TINY, *MOVED)
    matched = make(place, *TINY, "graft=random", "sparsity=0.02", "graft.size_from=movement")
    sizes = [files.read_json(f / "metrics.json")["region"]["size"] for f in (full, matched)]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("kill", [1, 3])
def test_a_killed_comparison_ends_with_the_same_bits(
    full: Path, tmp_path: Path, kill: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the training of a comparison model, after its first row or its second."""
    rows = []

    def dying(row: dict[str, Any]) -> None:
        rows.append(row)
        if len(rows) == kill:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(resumable, "log_nothing", dying)
        with pytest.raises(Killed):
            make(tmp_path, *TINY, *MOVED, *BESIDE)
    again = make(tmp_path, *TINY, *MOVED, *BESIDE)
    assert again.name == full.name
    assert results(again) == results(full)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("compare.wise_ft_alphas=[0.5,1.5]",), ["compare.wise_ft_alphas=1.5", "from 0 to 1"]),
        (("compare.wise_ft_alphas=[nan]",), ["compare.wise_ft_alphas=nan", "from 0 to 1"]),
        (("compare.lottery_steps=[-1]",), ["compare.lottery_steps=-1", "at least 0"]),
        (("compare.inside_steps=[0]",), ["compare.inside_steps=0", "at least 1"]),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, options, words: list[str]) -> None:
    refused(tmp_path, words, *TINY, *options)
