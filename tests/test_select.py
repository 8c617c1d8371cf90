"""Selectors on losses whose answer is known by hand, then each of them in a run and at its hard cases."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from runs import FEW, TINY, composed, make, refused
from skillgraft.core import gradient_scores, modules, movement, regions, top_k
from skillgraft.core.flat_model import FlatModel
from skillgraft.core.graft import Graft
from skillgraft.core.graft_facts import sizes_of
from skillgraft.core.relaxed_graft import RelaxedGraft
from skillgraft.experiments.selection import Selection
from skillgraft.experiments.stages import evaluate, select
from skillgraft.experiments.stages.select import SelectedRun
from skillgraft.models.classifier import Classifier
from skillgraft.runtime import files
from skillgraft.runtime.errors import InputError
from skillgraft.training import mask_batches, mask_training
from skillgraft.training.losses import batch_losses
from test_training import Tiny, config, examples

Loss = Callable[[dict[str, nn.Parameter], Any], Tensor]

# ------------------------------------------------------------------- a bowl: the answer by hand


def flat_of(before: dict[str, Tensor], after: dict[str, Tensor]) -> FlatModel:
    return FlatModel({n: nn.Parameter(t.clone()) for n, t in before.items()}, after)


def passes(flat: FlatModel, loss: Loss, batches: list[Any]) -> gradient_scores.Pass:
    """One pass over the batches, each loss made only when it is asked for."""

    def losses() -> Iterable[Tensor]:
        for batch in batches:
            yield loss(flat.parameters, batch)

    return losses


class Bowl:
    """L = ½ Σ a ⊙ (θ − t)² over two tensors, θ_pre = 0: what an entry is worth is ½ a t², Δ = t."""

    def __init__(self, curve: Tensor, target: Tensor) -> None:
        self.curve, self.target = curve, target  # (n,), n ≥ 6: a (2, 3) matrix and the rest
        self.flat = flat_of(self.split(torch.zeros_like(target)), self.split(target))
        self.losses = passes(self.flat, self.loss, [1.0])

    @staticmethod
    def split(vector: Tensor) -> dict[str, Tensor]:
        return {"a.weight": vector[:6].view(2, 3).clone(), "b.bias": vector[6:].clone()}

    def loss(self, parameters: dict[str, nn.Parameter], batch: float) -> Tensor:
        theta = torch.cat([p.reshape(-1) for p in parameters.values()])
        return batch * 0.5 * (self.curve * (theta - self.target) ** 2).sum()


PLANTED = [1, 4, 7, 11]


def planted(where: list[int], seed: int = 0) -> Bowl:
    """Only the planted entries change the loss; every other one has moved ten times as far."""
    generator = torch.Generator().manual_seed(seed)
    target = 10 * (1 + torch.rand(14, generator=generator))
    curve = torch.zeros(14)
    target[where] /= 10
    curve[where] = 1 + torch.rand(len(where), generator=generator)
    return Bowl(curve, target)


def by_attribution(bowl: Bowl, count: int) -> Tensor:
    return top_k.top_k(gradient_scores.attribution(bowl.flat, bowl.losses, 1), count)


def by_fisher(bowl: Bowl, count: int) -> Tensor:
    return top_k.top_k(gradient_scores.fisher(bowl.flat, bowl.losses, 4), count)


def by_greedy(bowl: Bowl, count: int) -> Tensor:
    return gradient_scores.greedy(bowl.flat, bowl.losses, count, 2)


READING = [by_attribution, by_fisher, by_greedy]


@pytest.mark.parametrize("choose", READING)
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_region_is_found(choose, seed: int) -> None:
    bowl = planted(PLANTED, seed)
    assert choose(bowl, len(PLANTED)).tolist() == PLANTED
    moved = movement.base_region(bowl.split(bowl.target), bowl.split(torch.zeros(14)), len(PLANTED))
    assert not set(moved.tolist()) & set(PLANTED)  # which movement alone misses


@pytest.mark.parametrize("choose", READING)
def test_orthogonal_tasks_do_not_overlap_and_a_task_overlaps_itself(choose) -> None:
    one, other, again = planted(PLANTED), planted([0, 2, 9, 13], 1), planted(PLANTED)

    def graft(bowl: Bowl) -> Graft:
        return Graft.take(choose(bowl, 4), bowl.split(torch.zeros(14)), bowl.split(bowl.target))

    assert graft(one).iou(graft(other)) == 0
    assert graft(one).iou(graft(again)) == 1


def test_attribution_at_the_middle_is_exact_for_a_bowl() -> None:
    """The path integral of a linear gradient is its value at the middle."""
    bowl = planted(PLANTED)
    expected = 0.5 * bowl.curve * bowl.target**2
    for points in (1, 4):
        torch.testing.assert_close(
            gradient_scores.attribution(bowl.flat, bowl.losses, points),
            expected,
            rtol=1e-5,
            atol=1e-6,
        )


@pytest.mark.parametrize("points", [1, 4, 16])
def test_fisher_of_a_bowl(points: int) -> None:
    bowl = planted(PLANTED)
    share = (torch.arange(points) + 0.5) / points
    gradients = bowl.curve * (share[:, None] - 1) * bowl.target  # (points, n)
    expected = (gradients**2).mean(0) * bowl.target**2
    found = gradient_scores.fisher(bowl.flat, bowl.losses, points)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_fisher_of_batches_and_of_examples() -> None:
    """Two examples that pull an entry apart cancel in a batch and add up as single squares."""
    before, after = {"w": torch.zeros(3)}, {"w": torch.tensor([1.0, 2.0, 3.0])}
    pulls = torch.tensor([[1.0, 1.0, 0.0], [-1.0, 1.0, 0.5]])  # each example's gradient

    def loss(parameters: dict[str, nn.Parameter], rows: Tensor) -> Tensor:
        return (rows @ parameters["w"]).mean()

    flat = flat_of(before, after)
    square = after["w"] ** 2
    batch = gradient_scores.fisher(flat, passes(flat, loss, [pulls]), 1)
    torch.testing.assert_close(batch, pulls.mean(0) ** 2 * square)
    assert batch[0] == 0
    single = gradient_scores.fisher(flat, passes(flat, loss, list(pulls.split(1))), 1)
    torch.testing.assert_close(single, (pulls**2).mean(0) * square)


# ----------------------------------------------------------- a net: against autograd by hand


def net_case() -> tuple[
    nn.Module, dict[str, Tensor], dict[str, Tensor], list[tuple[Tensor, Tensor]]
]:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    after = {n: t + 0.7 * torch.randn_like(t) for n, t in before.items()}
    batches = [(torch.randn(k, 4).double(), torch.arange(k) % 3) for k in (3, 3, 1)]
    return net, before, after, batches


def loss_at(net: nn.Module, tensors: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    logits = torch.func.functional_call(net, tensors, (batch[0],))
    return nn.functional.cross_entropy(logits, batch[1])


def gradient_of(net, before, after, share: float, batch) -> Tensor:
    tensors = {n: (t + share * (after[n] - t)).requires_grad_() for n, t in before.items()}
    parts = torch.autograd.grad(loss_at(net, tensors, batch), list(tensors.values()))
    return torch.cat([part.reshape(-1) for part in parts])


@pytest.mark.parametrize("points", [1, 3])
def test_attribution_and_fisher_against_autograd(points: int) -> None:
    net, before, after, batches = net_case()
    flat = flat_of(before, after)
    losses = passes(flat, lambda p, batch: loss_at(net, p, batch), batches)
    delta = torch.cat([(after[n] - t).reshape(-1) for n, t in before.items()])
    every = torch.stack(
        [
            torch.stack([gradient_of(net, before, after, (i + 0.5) / points, b) for b in batches])
            for i in range(points)
        ]
    )  # (points, batches, n)
    expected = -every.mean((0, 1)) * delta
    torch.testing.assert_close(gradient_scores.attribution(flat, losses, points), expected)
    torch.testing.assert_close(
        gradient_scores.fisher(flat, losses, points), (every**2).mean((0, 1)) * delta**2
    )


def test_attribution_adds_up_to_what_fine_tuning_gains() -> None:
    """Completeness of integrated gradients: the more points, the closer."""
    net, before, after, batches = net_case()
    flat = flat_of(before, after)
    losses = passes(flat, lambda p, batch: loss_at(net, p, batch), batches)

    def mean_loss(tensors: dict[str, Tensor]) -> float:
        return sum(loss_at(net, tensors, batch).item() for batch in batches) / len(batches)

    gain = mean_loss(before) - mean_loss(after)
    errors = [
        abs(gradient_scores.attribution(flat, losses, points).sum().item() - gain)
        for points in (1, 4, 16)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 5e-3 * abs(gain)


# ------------------------------------------------------------------------------------- greedy


def redundant(parameters: dict[str, nn.Parameter], _: Any) -> Tensor:
    """Either of the first two entries does the whole of one job; the third does a smaller one."""
    w = parameters["w"]
    return 0.5 * (w[0] + w[1] - 1) ** 2 + 0.4 * (w[2] - 1) ** 2


def test_rounds_do_not_take_two_entries_for_one_job() -> None:
    flat = flat_of({"w": torch.zeros(3)}, {"w": torch.ones(3)})
    losses = passes(flat, redundant, [None])
    once, rounds = (gradient_scores.greedy(flat, losses, 2, n).tolist() for n in (1, 2))
    assert once == [0, 1]
    assert rounds == [0, 2]

    def loss(chosen: list[int]) -> float:
        w = torch.zeros(3)
        w[chosen] = 1
        return redundant({"w": w}, None).item()  # type: ignore[dict-item]

    assert loss(rounds) == 0 < loss(once)


def test_one_round_is_the_first_order_effect_at_the_pretrained_model() -> None:
    net, before, after, batches = net_case()
    flat = flat_of(before, after)
    losses = passes(flat, lambda p, batch: loss_at(net, p, batch), batches)
    delta = torch.cat([(after[n] - t).reshape(-1) for n, t in before.items()])
    gradient = torch.stack([gradient_of(net, before, after, 0.0, b) for b in batches]).mean(0)
    expected = (-gradient * delta).topk(7).indices.sort().values
    assert torch.equal(gradient_scores.greedy(flat, losses, 7, 1), expected)


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(0, 14),
    rounds=st.integers(1, 20),
    excluded=st.sets(st.integers(0, 13), max_size=10),
)
def test_greedy_has_the_asked_size_and_leaves_what_is_barred(count, rounds, excluded) -> None:
    count = min(count, 14 - len(excluded))
    bowl = planted(PLANTED)
    taken = torch.tensor(sorted(excluded), dtype=torch.int64)
    chosen = gradient_scores.greedy(bowl.flat, bowl.losses, count, rounds, taken).tolist()
    assert len(chosen) == len(set(chosen)) == count
    assert chosen == sorted(chosen)
    assert not set(chosen) & excluded
    if count <= len(wanted := set(PLANTED) - excluded):
        assert set(chosen) <= wanted  # all else is worth nothing


# ------------------------------------------------------------------------- what needs no loss


def test_magnitude() -> None:
    tensors = {"a": torch.tensor([[1.0, -5.0], [0.5, 2.0]]), "b": torch.tensor([-3.0, 0.0])}
    values = gradient_scores.magnitude(tensors)
    assert values.tolist() == [1, 5, 0.5, 2, 3, 0]
    assert top_k.top_k(values, 3).tolist() == [1, 3, 4]
    assert tensors["a"][0, 1] == -5  # a copy


def test_whole_parts() -> None:
    names = {
        "encoder.layer.0.attention.self.query.weight": (2, 2),
        "encoder.layer.0.attention.self.query.bias": (2,),
        "encoder.layer.1.output.LayerNorm.weight": (3,),
        "encoder.layer.1.output.LayerNorm.bias": (3,),
        "encoder.layer.10.output.dense.weight": (1, 2),
    }
    tensors = {name: torch.zeros(shape) for name, shape in names.items()}

    def entries(kind: str, part: str) -> list[int]:
        return modules.all_of(tensors, lambda name: modules.PART_OF[kind](name) == part).tolist()

    assert entries("bias", "bias") == [4, 5, 9, 10, 11]
    assert entries("layer", "1") == [6, 7, 8, 9, 10, 11]
    assert entries("layer", "10") == [12, 13]
    assert entries("module", "query") == [0, 1, 2, 3, 4, 5]
    assert entries("module", "LayerNorm") == [6, 7, 8, 9, 10, 11]
    assert entries("module", "key") == []
    assert modules.part_names(tensors, "layer") == ["0", "1", "10"]
    assert modules.part_names(tensors, "module") == ["query", "LayerNorm", "MLP out"]


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(st.integers(-3, 3), min_size=1, max_size=20),
    count=st.integers(0, 25),
    excluded=st.sets(st.integers(0, 19)),
)
def test_top_of_what_is_not_barred(values: list[int], count: int, excluded: set[int]) -> None:
    excluded = {i for i in excluded if i < len(values)}
    free = [i for i in range(len(values)) if i not in excluded]
    expected = sorted(sorted(free, key=lambda i: (-values[i], i))[:count])
    taken = torch.tensor(sorted(excluded), dtype=torch.int64)
    assert top_k.top_k(torch.tensor(values).float(), count, taken).tolist() == expected
    drawn = regions.at_random(len(values), count, 5, taken).tolist()
    assert len(drawn) == len(set(drawn)) == min(count, len(free))
    assert set(drawn) <= set(free)


# ---------------------------------------------------------------------------- what can go wrong


@pytest.mark.parametrize("choose", READING)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_is_an_error(choose, value: float) -> None:
    bowl = planted(PLANTED)
    bowl.losses = passes(bowl.flat, bowl.loss, [1.0, value])
    with pytest.raises(InputError, match=r"not finite: lower finetune\.lr"):
        choose(bowl, 4)


@pytest.mark.parametrize("choose", READING)
def test_no_movement_gives_the_asked_size(choose) -> None:
    assert choose(Bowl(torch.ones(14), torch.zeros(14)), 5).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("choose", READING)
def test_ties_go_to_the_lower_index(choose) -> None:
    assert choose(Bowl(torch.ones(14), torch.ones(14)), 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("choose", READING)
def test_the_model_is_left_as_it_was(choose) -> None:
    bowl = planted(PLANTED)
    before = {n: (data, data.clone()) for n, data in bowl.flat.pretrained.items()}
    choose(bowl, 4)
    bowl.flat.close()
    for name, parameter in bowl.flat.parameters.items():
        assert parameter.data.data_ptr() == before[name][0].data_ptr()
        assert torch.equal(parameter.data, before[name][1])
        assert parameter.grad is None
        assert parameter.requires_grad


def test_a_class_that_is_absent_from_a_batch() -> None:
    """Batches of one example each have one class only."""
    classifier = Tiny().eval()
    batches = mask_batches.MaskBatches(examples(6), 0, 1, 6, 0, 0, 1)
    finetuned = {n: p.detach() + 0.1 for n, p in classifier.graftable.items()}
    flat = FlatModel(classifier.graftable, finetuned)

    def losses() -> Iterable[Tensor]:
        return batch_losses(classifier, batches, torch.device("cpu"))

    try:
        worth = gradient_scores.attribution(flat, losses, 1)
    finally:
        flat.close()
    assert worth.isfinite().all()
    assert worth.abs().sum() > 0


# -------------------------------------------------------------------------------- stitch_l1


def stitched(lr: float, penalty: float, steps: int, tmp_path: Path) -> tuple[Tensor, Tensor, list]:
    """Return the mask M and the region after some steps over three batches, and the history."""
    cfg = config()
    cfg.graft.selector, cfg.graft.score_every = "stitch_l1", None
    cfg.graft.steps, cfg.graft.lr, cfg.graft.batch_size = steps, lr, 4
    tiny, rows = Tiny(), examples(10)
    finetuned, _, scores = stitch_start(tiny)
    nowhere = torch.empty(0, dtype=torch.int64)
    relaxed = RelaxedGraft(tiny.graftable, finetuned, nowhere, scores, 0.0, penalty)
    try:
        chosen, history = mask_training.learn_mask(
            tiny, relaxed, cfg, rows, rows, 0, tmp_path, lambda _: None
        )
    finally:
        relaxed.close()
    return relaxed.scores, chosen, history


def stitch_start(tiny: Tiny) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    finetuned = {
        n: p.data + torch.randn(p.shape, generator=generator) for n, p in tiny.graftable.items()
    }
    base = torch.arange(42) % 5 == 0
    return finetuned, base, torch.where(base, 5.0, -5.0)


@pytest.mark.parametrize(("lr", "penalty"), [(1e3, 0.0), (0.0, 10.0), (1e3, 10.0)])
def test_a_step_of_stitch_l1_is_the_formula(lr: float, penalty: float, tmp_path: Path) -> None:
    """M ← M − σ'(M) ⊙ (lr · Σ_batches g ⊙ Δ + λ), γ = [M > 0] (method: section 3)."""
    tiny = Tiny().eval()
    finetuned, _, scores = stitch_start(tiny)
    before = {n: p.detach().clone() for n, p in tiny.graftable.items()}
    delta = torch.cat([(finetuned[n] - t).reshape(-1) for n, t in before.items()])
    gamma = torch.sigmoid(scores)
    parts = (gamma * delta).split([t.numel() for t in before.values()])
    with torch.no_grad():
        for (name, p), part in zip(tiny.graftable.items(), parts, strict=True):
            p.copy_(before[name] + part.view(p.shape))
    summed = torch.zeros(42)
    for batch in mask_batches.MaskBatches(examples(10), 0, 4, 10, 13, 0, 1):
        loss = nn.functional.cross_entropy(tiny(batch), batch["labels"])
        found = torch.autograd.grad(loss, list(tiny.graftable.values()))
        summed += torch.cat([g.reshape(-1) for g in found])
    expected = scores - gamma * (1 - gamma) * (lr * summed * delta + penalty)
    moved, chosen, history = stitched(lr, penalty, 1, tmp_path)
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(chosen, (moved > 0).nonzero().view(-1))
    assert [row["mask/size"] for row in history] == [9, chosen.numel()]
    if lr == 0:
        assert (moved < scores).all()  # the penalty pushes every entry out


def test_the_last_mask_of_stitch_l1_counts(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    moved, chosen, _ = stitched(1e4, 10.0, 5, tmp_path / "f")
    assert torch.equal(chosen, (moved > 0).nonzero().view(-1))


# ---------------------------------------------------------------------------- in a whole run

ALL: dict[str, tuple[str, ...]] = {
    "movement": ("graft=movement",),
    "magnitude": ("graft=magnitude",),
    "random": ("graft=random",),
    "attribution": ("graft=attribution", *FEW),
    "attribution_rounds": ("graft=attribution", "graft.greedy_rounds=2", *FEW),
    "fisher": ("graft=fisher", "graft.path_points=2", *FEW),
    "learned": ("graft=learned", "graft.steps=2", "graft.score_every=1", *FEW),
    "stitch_l1": ("graft=stitch_l1", "graft.steps=2", *FEW),
    "bias": ("graft=bias",),
    "layer": ("graft=layer", "graft.layer=1"),
    "module": ("graft=module", "graft.module=query"),
}
SIZED = tuple(ALL)[:6]
TRAINED = ("learned", "stitch_l1")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, undrawn: None) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def learned(place: Path) -> Path:
    return make(place, *TINY, *ALL["learned"])


def metrics_of(folder: Path) -> dict[str, Any]:
    return files.read_json(folder / "metrics.json")


def weights(place: Path, run: Path) -> dict[str, Tensor]:
    digest = files.read_json(run / "status.json")["finetuned"]
    return load_file(place / ".finetuned" / digest / "weights.safetensors")


def pretrained() -> dict[str, Tensor]:
    """θ_pre by graftable name, as the checkpoint has it."""
    from skillgraft.embedded import MODEL

    return {n.removeprefix("bert."): t for n, t in load_file(MODEL / "model.safetensors").items()}


@pytest.mark.parametrize("selector", ["learned", "attribution"])
def test_what_choosing_a_region_leaves_behind(
    place: Path, monkeypatch: pytest.MonkeyPatch, selector: str
) -> None:
    """The classifier has θ_pre's own tensors meanwhile, and no gradient stays, of a new head or any."""
    choose_region, evaluate_run = select.choose_region, evaluate.evaluate

    def shared(classifier: Classifier, theta_pre: Mapping[str, Tensor]) -> set[bool]:
        pairs = ((p, theta_pre[n]) for n, p in classifier.graftable.items())
        return {p.data_ptr() == before.data_ptr() for p, before in pairs}

    def choosing(selection: Selection) -> Tensor:
        assert shared(selection.classifier, selection.theta_pre) == {True}
        return choose_region(selection)

    def after(selected: SelectedRun) -> evaluate.EvaluatedRun:
        loaded = selected.finetuned.loaded
        classifier, theta_pre = loaded.classifier, loaded.start.theta_pre
        assert shared(classifier, theta_pre) == {False}
        assert all(torch.equal(p, theta_pre[n]) for n, p in classifier.graftable.items())
        assert all(p.grad is None for p in classifier.parameters())
        assert all(p.requires_grad for p in classifier.head.parameters())
        return evaluate_run(selected)

    monkeypatch.setattr(select, "choose_region", choosing)
    monkeypatch.setattr(evaluate, "evaluate", after)
    make(place, *TINY, "finetune=linear", *ALL[selector])


@pytest.mark.parametrize("selector", SIZED)
def test_a_match_has_the_learned_size(place: Path, learned: Path, selector: str) -> None:
    folder = make(place, *TINY, *ALL[selector], "graft.size_from=learned")
    size = metrics_of(learned)["region"]["size"]
    assert metrics_of(folder)["region"]["size"] == size
    graft = Graft.load(folder / "graft.safetensors")
    after, before = weights(place, folder), pretrained()
    for name, index in graft.indices.items():
        assert torch.equal(graft.values[name], after[name].take(index))
        assert torch.equal(graft.pretrained[name], before[name].take(index))


@pytest.mark.parametrize("selector", SIZED)
def test_no_entry_and_every_entry(place: Path, selector: str, caplog) -> None:
    """Sparsity 1 is the fine-tuned model to the bit, less than half an entry the pre-trained one."""
    for sparsity, twin in (("1.0", "finetuned"), ("1e-7", "pretrained"), ("0", "pretrained")):
        if sparsity == "0" and selector != "attribution":
            continue
        caplog.clear()
        folder = make(place, *TINY, *ALL[selector], f"sparsity={sparsity}")
        metrics = metrics_of(folder)
        whole = metrics["region"]["graftable"]
        assert metrics["region"]["size"] == (whole if sparsity == "1.0" else 0)
        assert ("is an empty region" in caplog.text) == (sparsity != "1.0")
        frame = pandas_of(folder)
        columns = [c for c in frame if c.startswith("p/")]
        ours, theirs = (frame[frame.model == m][columns] for m in ("graft", twin))
        assert (ours.to_numpy() == theirs.to_numpy()).all()


def pandas_of(folder: Path):
    import pandas as pd

    return pd.read_parquet(folder / "predictions.parquet")


@pytest.mark.parametrize("selector", ALL)
def test_fine_tuning_that_moved_nothing(place: Path, selector: str, caplog) -> None:
    """Δ = 0: a region of the asked size, a graft that is θ_pre, and no relative gain."""
    none = "finetune.lr=0" if selector == "movement" else "finetune.steps=0"
    folder = make(place, *TINY, *ALL[selector], none)
    metrics = metrics_of(folder)
    assert "fine-tuning moved nothing" in caplog.text
    graft = Graft.load(folder / "graft.safetensors")
    if selector in SIZED:
        assert graft.size == round(0.01 * graft.graftable)
    assert all(torch.equal(graft.values[n], graft.pretrained[n]) for n in graft.values)
    for split, measured in metrics["graft"].items():
        assert measured["relative_gain"] is None
        assert measured["agreement"] == 1
        same = {k: v for k, v in measured.items() if k not in ("relative_gain", "agreement")}
        assert same == metrics["pretrained"][split] == metrics["finetuned"][split]


@pytest.mark.parametrize("selector", ["bias", "layer", "module"])
def test_parts_in_a_run(place: Path, selector: str) -> None:
    from skillgraft.core.modules import layer_of, module_of

    of, part = {
        "bias": (lambda name: name.rsplit(".", 1)[1], "bias"),
        "layer": (layer_of, "1"),
        "module": (module_of, "query"),
    }[selector]
    folder = make(place, *TINY, *ALL[selector])
    graft = Graft.load(folder / "graft.safetensors")
    sizes = sizes_of(graft)
    assert {n for n, size in sizes.items() if size} == {n for n in sizes if of(n) == part}
    assert all(size in (0, graft.indices[n].numel()) for n, size in sizes.items())
    named = {"bias": "bias-", "layer": "layer-1-", "module": "module-query-"}[selector]
    assert named in folder.name


def test_examples_are_squared_one_by_one(place: Path) -> None:
    """`per_example` is batches of one, for fisher alone."""
    fisher = ("graft=fisher", "graft.path_points=1", "graft.examples_per_step=8")
    runs = {
        name: make(place, *TINY, *fisher, *more)
        for name, more in {
            "examples": ("graft.per_example=true", "graft.batch_size=4"),
            "ones": ("graft.batch_size=1",),
            "batches": ("graft.batch_size=8",),
        }.items()
    }
    found = {n: Graft.load(f / "graft.safetensors").region().tolist() for n, f in runs.items()}
    assert found["examples"] == found["ones"] != found["batches"]
    first = make(place, *TINY, *ALL["attribution"], "sparsity=0.002")
    assert (
        make(place, *TINY, *ALL["attribution"], "sparsity=0.002", "graft.per_example=true") == first
    )


def test_a_penalty_is_for_stitch_l1_alone(place: Path, learned: Path, tmp_path: Path) -> None:
    """What a selector never reads changes neither its name nor its region."""
    other = make(tmp_path, *TINY, *ALL["learned"], "graft.l1_penalty=1e9")
    assert other.name == learned.name
    name = "graft.safetensors"
    assert (other / name).read_bytes() == (learned / name).read_bytes()


def test_a_size_may_be_that_of_a_part(place: Path) -> None:
    """`graft.size_from` names a selector without a sparsity, whatever this run's is."""
    bias = make(place, *TINY, *ALL["bias"])
    folder = make(place, *TINY, *ALL["random"], "graft.size_from=bias", "sparsity=0.3")
    assert metrics_of(folder)["region"]["size"] == metrics_of(bias)["region"]["size"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("graft=layer", "graft.layer=99"), ["graft.layer=99", "this model has 0, 1"]),
        (("graft=layer",), ["graft.layer", "needs a value"]),
        (("graft=layer", "graft.layer=null"), ["graft.layer", "needs a value"]),
        (
            ("graft=module", "graft.module=qery"),
            ["graft.module=qery", "query, key, value", "Did you mean 'query'?"],
        ),
        (("graft=module", "graft.module=null"), ["graft.module", "needs a value"]),
        (("graft=stitch_l1", "graft.size_from=random"), ["graft.size_from=random", "its own size"]),
        (("graft=bias", "graft.size_from=learned"), ["graft.size_from=learned", "has no size"]),
        (("graft=attribution", "graft.path_points=0"), ["graft.path_points=0", "at least 1"]),
        (("graft=attribution", "graft.greedy_rounds=0"), ["graft.greedy_rounds=0", "at least 1"]),
        (("graft=attribution", "graft.path_points=null"), ["graft.path_points", "needs a value"]),
        (("graft=fisher", "graft.path_points=null"), ["graft.path_points", "needs a value"]),
        (("graft=stitch_l1", "graft.l1_penalty=-1"), ["graft.l1_penalty=-1", "at least 0"]),
        (("graft=stitch_l1", "graft.init_score=null"), ["graft.init_score", "needs a value"]),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, options, words: list[str]) -> None:
    refused(tmp_path, words, *TINY, *options)


def test_a_mistyped_choice_is_one_line(tmp_path: Path) -> None:
    from skillgraft.config.messages import COMPOSITION_ERRORS, explain

    for override in ("graft=atribution", "graft.per_example=perhaps", "graft.combine=both"):
        with pytest.raises(COMPOSITION_ERRORS) as caught:
            composed(override)
        assert len(explain(caught.value).splitlines()) == 1


def test_the_warning_is_no_error(place: Path, caplog) -> None:
    caplog.set_level(logging.WARNING)
    make(place, *TINY, "graft=bias", "sparsity=0")
    assert "is an empty region" not in caplog.text  # a selector without a size reads no sparsity
