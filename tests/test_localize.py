"""`localize` against a textbook computation in float64, and what it must leave as it was."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from skillgraft import Graft, localize
from skillgraft.core.best_mask import initial_scores
from skillgraft.core.digests import digest
from skillgraft.core.localize import graftable_pair
from skillgraft.core.relaxed_graft import RelaxedGraft

# ------------------------------------------------------------------------------- the modules


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def normed() -> nn.Module:
    net = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3)
    )
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 2)
    return net


class Tied(nn.Module):
    """Two layers with one weight, and a parameter without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)
        self.last.weight = self.first.weight
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x).tanh())) * self.scale


def strided() -> nn.Module:
    net = mlp()
    net[0].weight.data = net[0].weight.data.t().contiguous().t()
    return net


BUILD: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "normed": normed,
    "tied": Tied,
    "strided": strided,
}


def pair(kind: str = "mlp", dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    """A pre-trained and a fine-tuned module; the second moved by about 0.3 everywhere."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        pretrained = BUILD[kind]().to(dtype)
        finetuned = copy.deepcopy(pretrained)
        with torch.no_grad():
            for parameter in finetuned.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, dtype=dtype))
    return pretrained, finetuned


def data(dtype: torch.dtype = torch.float32, sizes: tuple[int, ...] = (5, 5, 2)) -> list[Any]:
    """Batches of which the last is short."""
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(size, 4, generator=generator, dtype=torch.float64).to(dtype),
            torch.randint(3, (size,), generator=generator),
        )
        for size in sizes
    ]


def loss(model: Callable[[Tensor], Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def uniform(module: nn.Module, high: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(9)
    return {
        n: high * torch.rand(p.shape, generator=generator, dtype=torch.float64).float().double()
        for n, p in module.named_parameters()
    }


def masks(graft: Graft) -> dict[str, Tensor]:
    """The region as 0/1 by parameter."""
    out = {}
    for name, shape in graft.shapes.items():
        mask = torch.zeros(shape, dtype=torch.bool)
        mask.view(-1)[graft.indices[name]] = True
        out[name] = mask
    return out


# ------------------------------------------------------------------------------ the textbook


def movement(pretrained: nn.Module, finetuned: nn.Module, count: int) -> dict[str, np.ndarray]:
    """The top-s entries of |Δ| by a stable sort in numpy."""
    theirs = dict(finetuned.named_parameters())
    flat = np.concatenate(
        [
            (theirs[n].detach() - p.detach()).double().numpy().reshape(-1)
            for n, p in pretrained.named_parameters()
        ]
    )
    mask = np.zeros(len(flat), dtype=bool)
    mask[np.argsort(-np.abs(flat), kind="stable")[:count]] = True
    out, start = {}, 0
    for name, p in pretrained.named_parameters():
        out[name] = mask[start : start + p.numel()].reshape(p.shape)
        start += p.numel()
    return out


def textbook(pretrained, finetuned, batches, base, scores, *, steps, lr, bias):
    """The final region by the formulas as they stand: autograd through γ(S), all in float64."""
    model = copy.deepcopy(pretrained).double().eval()
    before = {n: p.detach() for n, p in model.named_parameters()}
    theirs = dict(finetuned.named_parameters())
    here = {n: p.detach() for n, p in pretrained.named_parameters()}
    delta = {n: (theirs[n].detach() - p).double() for n, p in here.items()}
    gamma0 = {n: torch.as_tensor(base[n]).double() for n in before}
    state = {n: scores[n].double().clone().requires_grad_() for n in before}
    for _ in range(steps):
        theta = {}
        for n, s in state.items():
            sigma = torch.sigmoid(s - bias)
            gamma = gamma0[n] * (1 - sigma) + (1 - gamma0[n]) * sigma
            theta[n] = before[n] + gamma * delta[n]
        means = [
            loss(lambda v, theta=theta: functional_call(model, theta, (v,)), (x.double(), y))
            for x, y in batches
        ]
        gradients = torch.autograd.grad(torch.stack(means).mean(), list(state.values()))
        state = {
            n: (s - lr * g).detach().requires_grad_()
            for (n, s), g in zip(state.items(), gradients, strict=True)
        }
    return {n: (gamma0[n].bool() ^ (s > bias)) & (s != bias) for n, s in state.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", BUILD)
@pytest.mark.parametrize(
    ("steps", "lr", "bias", "sparsity"),
    [(3, 1e6, 10.0, 0.3), (5, 1e7, 10.0, 0.1), (5, 30.0, 1.0, 0.5), (4, 300.0, 2.0, 0.0)],
)
def test_the_region_is_that_of_the_textbook(kind, dtype, steps, lr, bias, sparsity) -> None:
    pretrained, finetuned = pair(kind, dtype)
    batches, scores = data(dtype), uniform(pretrained)
    total = sum(p.numel() for p in pretrained.parameters())
    base = movement(pretrained, finetuned, round(sparsity * total))
    expected = textbook(pretrained, finetuned, batches, base, scores, steps=steps, lr=lr, bias=bias)
    graft = localize(
        pretrained,
        finetuned,
        batches,
        loss,
        sparsity=sparsity,
        steps=steps,
        lr=lr,
        sigmoid_bias=bias,
        scores=scores,
    )
    flips = sum(int((torch.as_tensor(base[n]) ^ m).sum()) for n, m in expected.items())
    assert 0 < flips < total  # else the comparison would show nothing
    found = masks(graft)
    assert set(found) == set(expected)
    for name, mask in expected.items():
        assert torch.equal(found[name], mask), name
    theirs, here = dict(finetuned.named_parameters()), dict(pretrained.named_parameters())
    for name, index in graft.indices.items():
        assert torch.equal(graft.values[name], theirs[name].detach().reshape(-1)[index])
        assert torch.equal(graft.pretrained[name], here[name].detach().reshape(-1)[index])
    assert graft.base == digest(here)


def test_a_step_takes_the_mean_of_batch_means() -> None:
    pretrained, finetuned = pair(dtype=torch.float64)
    scores, base = uniform(pretrained), movement(pretrained, finetuned, 10)
    options = {"steps": 3, "lr": 1e6, "sigmoid_bias": 10.0}
    split = data(torch.float64, (6, 1))
    whole = [tuple(torch.cat(parts) for parts in zip(*split, strict=True))]
    grafts = [
        localize(pretrained, finetuned, b, loss, sparsity=10 / 51, scores=scores, **options)
        for b in (split, split * 2, whole)
    ]
    assert torch.equal(grafts[0].region(), grafts[1].region())  # a mean, not a sum
    assert not torch.equal(grafts[0].region(), grafts[2].region())  # of batches, not of rows
    expected = textbook(pretrained, finetuned, split, base, scores, steps=3, lr=1e6, bias=10.0)
    assert all(torch.equal(m, expected[n]) for n, m in masks(grafts[0]).items())


class Dot(nn.Module):
    """⟨w, x⟩: a model whose gradient is its input."""

    def __init__(self, w: list[float], dtype: torch.dtype) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return (self.w * x).sum()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_dtype_flips_what_lowers_the_loss(dtype: torch.dtype) -> None:
    # loss = ⟨θ, x⟩, so that g = x: an entry's γ falls where xΔ > 0 and grows where xΔ < 0.
    x = torch.tensor([1.0, -1.0, 2.0, -2.0, 0.0, 1.0, -0.5, 0.5], dtype=dtype)
    delta = [2.0, 2.0, -1.0, -1.0, 4.0, 0.0, 0.25, -0.25]
    pretrained = Dot([0.5] * 8, dtype)
    finetuned = Dot([0.5 + d for d in delta], dtype)
    for base, flipped in ([0.0] * 8, [1, 2, 6, 7]), ([1.0] * 8, [0, 3]):
        graft = localize(
            pretrained,
            finetuned,
            [x, x],
            lambda model, batch: model(batch),
            steps=2,
            lr=1e7,
            base={"w": torch.tensor(base)},
        )
        expected = flipped if not any(base) else sorted({*range(8)} - {*flipped})
        assert graft.region().tolist() == expected
        assert graft.values["w"].dtype == dtype
        assert torch.equal(graft.values["w"], finetuned.w.detach()[graft.indices["w"]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_planted_region_is_found(dtype: torch.dtype) -> None:
    """A few entries of Δ help; the others are larger, and noise or harm."""
    width, helpful, harmful = 40, [3, 11, 17, 28], [5, 30]
    generator = torch.Generator().manual_seed(0)
    label = torch.tensor([1.0, -1.0]).repeat(32)
    x = 0.5 * torch.randn(32, width, generator=generator).repeat_interleave(2, 0)
    x[:, helpful + harmful] = label.unsqueeze(1)  # noise is the same for either label
    delta = 8 * torch.randn(width, generator=generator).sign()
    delta[helpful], delta[harmful] = 1.0, -8.0
    pretrained, finetuned = nn.Linear(width, 1), nn.Linear(width, 1)
    for net, weight in (pretrained, torch.zeros(width)), (finetuned, delta):
        net.weight.data.copy_(weight.unsqueeze(0))
        net.bias.data.zero_()
        net.to(dtype)

    def logistic(model: nn.Module, rows: slice) -> Tensor:
        margin = model(x[rows].to(dtype)).squeeze(1) * label[rows].to(dtype)
        return nn.functional.softplus(-margin).mean()

    options: dict[str, Any] = {"steps": 10, "lr": 1e6, "seed": 0}
    batches = [slice(0, 32), slice(32, 64)]
    nothing = {n: torch.zeros(p.shape) for n, p in pretrained.named_parameters()}
    graft = localize(pretrained, finetuned, batches, logistic, base=nothing, **options)
    assert graft.indices["weight"].tolist() == helpful
    assert graft.size == len(helpful)
    start = localize(pretrained, finetuned, batches, logistic, sparsity=4 / 41, steps=0)
    assert not {*start.indices["weight"].tolist()} & {*helpful}  # movement alone is misled
    both = {**nothing, "weight": torch.zeros(1, width)}
    both["weight"][0, helpful + harmful] = 1
    graft = localize(pretrained, finetuned, batches, logistic, base=both, **options)
    assert graft.indices["weight"].tolist() == helpful  # harm is dropped from a base region


# ---------------------------------------------------------------------------- left untouched


def state(module: nn.Module) -> dict[str, Any]:
    """All that could have changed: objects by identity, tensors by address, strides and bits."""
    parameters = list(module.named_parameters(remove_duplicate=False))
    tensors = [*parameters, *module.named_buffers()]
    return {
        "flags": [(n, m.training) for n, m in module.named_modules()],
        "objects": [(n, id(t)) for n, t in tensors],
        "places": [(n, t.data_ptr(), t.stride(), t.shape, t.dtype) for n, t in tensors],
        "bits": digest({n: t.detach() for n, t in tensors}),
        "requires": [(n, p.requires_grad) for n, p in parameters],
        "grads": [(n, id(p.grad)) for n, p in parameters],
        "grad bits": digest({n: p.grad for n, p in parameters if p.grad is not None}),
        "leaf": [(n, p.is_leaf, p.grad_fn) for n, p in parameters],
    }


def unsettled(kind: str) -> tuple[nn.Module, nn.Module]:
    """A pair with mixed training flags, requires_grad and gradients."""
    pretrained, finetuned = pair(kind)
    for net in (pretrained, finetuned):
        net.train()
        list(net.modules())[-1].eval()
        for i, parameter in enumerate(net.parameters()):
            parameter.requires_grad_(i % 3 != 1)
            if i % 2 == 0:
                parameter.grad = torch.full_like(parameter, 0.5 + i)
    return pretrained, finetuned


class Interrupted(BaseException):
    """Like KeyboardInterrupt: no Exception."""


def failing(kind: str, at: int) -> Callable[[nn.Module, Any], Tensor]:
    seen = []

    def wrong(model: nn.Module, batch: Any) -> Tensor:
        seen.append(1)
        value = loss(model, batch)
        if len(seen) < at:
            return value
        if kind == "interrupt":
            raise Interrupted
        if kind == "error":
            raise KeyError("middle")
        return value * {"nan": float("nan"), "inf": float("inf")}[kind]

    return wrong


@pytest.mark.parametrize("kind", BUILD)
@pytest.mark.parametrize("scored", [False, True])
def test_both_models_are_left_as_they_were(kind: str, scored: bool) -> None:
    pretrained, finetuned = unsettled(kind)
    batches, score = data(), (lambda model: float(model(data()[0][0]).sum())) if scored else None
    before = state(pretrained), state(finetuned)
    graft = localize(
        pretrained, finetuned, batches, loss, sparsity=0.3, steps=3, lr=1e7, score=score
    )
    assert graft.size
    assert (state(pretrained), state(finetuned)) == before


@pytest.mark.parametrize("kind", ["normed", "tied"])
@pytest.mark.parametrize("at", [1, 2, 5])
@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("error", KeyError),
        ("interrupt", Interrupted),
        ("nan", FloatingPointError),
        ("inf", FloatingPointError),
    ],
)
def test_both_models_are_restored_after_an_error(kind, at, how, error) -> None:
    pretrained, finetuned = unsettled(kind)
    before = state(pretrained), state(finetuned)
    with pytest.raises(error):
        localize(pretrained, finetuned, data(), failing(how, at), sparsity=0.3, steps=3, lr=1e7)
    assert (state(pretrained), state(finetuned)) == before


@pytest.mark.parametrize("at", [1, 2, 4])
def test_both_models_are_restored_after_an_error_in_score(at: int) -> None:
    pretrained, finetuned = unsettled("normed")
    before, seen = (state(pretrained), state(finetuned)), []

    def score(model: nn.Module) -> float:
        seen.append(1)
        return 1 / (at - len(seen))

    with pytest.raises(ZeroDivisionError):
        localize(pretrained, finetuned, data(), loss, sparsity=0.3, steps=3, lr=1e7, score=score)
    assert len(seen) == at
    assert (state(pretrained), state(finetuned)) == before


def test_a_nan_score_is_an_error_and_models_are_restored() -> None:
    pretrained, finetuned = unsettled("mlp")
    before = state(pretrained), state(finetuned)
    with pytest.raises(FloatingPointError, match="score"):
        localize(pretrained, finetuned, data(), loss, steps=1, score=lambda _: float("nan"))
    assert (state(pretrained), state(finetuned)) == before


def test_arguments_are_left_as_they_were() -> None:
    pretrained, finetuned = pair()
    scores = {n: s.float() for n, s in uniform(pretrained).items()}
    base = {n: (s > 0.5).float() for n, s in scores.items()}
    batches = data()
    before = [digest(scores), digest(base), digest(dict(enumerate_tensors(batches)))]
    localize(pretrained, finetuned, batches, loss, steps=3, base=base, scores=scores)
    assert [digest(scores), digest(base), digest(dict(enumerate_tensors(batches)))] == before


def enumerate_tensors(batches: list[Any]) -> list[tuple[str, Tensor]]:
    return [(f"{i}/{j}", t) for i, batch in enumerate(batches) for j, t in enumerate(batch)]


def test_scores_of_a_single_tensor_are_not_written() -> None:
    scores = {"w": torch.zeros(3)}
    localize(
        Dot([0.0] * 3, torch.float32),
        Dot([1.0] * 3, torch.float32),
        [torch.ones(3)],
        lambda model, batch: model(batch),
        steps=2,
        scores=scores,
    )
    assert torch.equal(scores["w"], torch.zeros(3))


def test_global_random_numbers_are_not_used() -> None:
    pretrained, finetuned = pair("normed")
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    localize(pretrained, finetuned, data(), loss, sparsity=0.3, steps=2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]  # noqa: NPY002


# -------------------------------------------------------------------------------- in the loss


def test_the_model_in_the_loss_is_the_relaxed_graft_in_evaluation_mode() -> None:
    pretrained, finetuned = pair("normed")
    pretrained.train()
    here = {n: p.detach().clone() for n, p in pretrained.named_parameters()}
    theirs = {n: p.detach() for n, p in finetuned.named_parameters()}
    scores = uniform(pretrained)
    base = movement(pretrained, finetuned, 20)
    seen = []

    def watched(model: nn.Module, batch: Any) -> Tensor:
        assert model is pretrained
        assert not any(module.training for module in model.modules())
        if not seen:  # θ(S) = θ_pre + γ(S) ⊙ Δ before the first step
            for name, parameter in model.named_parameters():
                sigma = torch.sigmoid(scores[name] - 10)
                gamma = torch.where(torch.as_tensor(base[name]), 1 - sigma, sigma)
                theta = here[name].double() + gamma * (theirs[name] - here[name]).double()
                torch.testing.assert_close(parameter.detach().double(), theta, rtol=1e-6, atol=1e-6)
        value = loss(model, batch)
        assert torch.equal(value, loss(model, batch))  # no dropout
        seen.append(value.item())
        return value

    total = sum(p.numel() for p in pretrained.parameters())
    localize(pretrained, finetuned, data(), watched, sparsity=20 / total, steps=3, scores=scores)
    assert len(seen) == 9


def test_graftable_restricts() -> None:
    pretrained, finetuned = unsettled("normed")
    before = state(pretrained), state(finetuned)
    here = {n: p.detach().clone() for n, p in pretrained.named_parameters()}

    def only(name: str, parameter: nn.Parameter) -> bool:
        assert isinstance(parameter, nn.Parameter)
        return name.startswith("4.")

    def watched(model: nn.Module, batch: Any) -> Tensor:
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad == name.startswith("4.")
            if not name.startswith("4."):  # θ_pre, though θ_ft differs; and no gradient is kept
                assert torch.equal(parameter, here[name])
                assert parameter.grad is None
        return loss(model, batch)

    def score(model: nn.Module) -> float:
        assert all(torch.equal(p, here[n]) for n, p in model.named_parameters() if n[:2] != "4.")
        return 0.0

    graft = localize(
        pretrained, finetuned, data(), watched, sparsity=0.5, steps=2, graftable=only, score=score
    )
    assert list(graft.shapes) == ["4.weight", "4.bias"]
    assert graft.graftable == 21
    assert graft.base == digest({n: here[n] for n in graft.shapes})
    assert (state(pretrained), state(finetuned)) == before


def test_what_is_not_floating_point_is_not_graftable() -> None:
    pretrained, finetuned = pair()
    for net in (pretrained, finetuned):
        net.register_parameter("steps", nn.Parameter(torch.tensor([3]), requires_grad=False))
    graft = localize(pretrained, finetuned, data(), loss, sparsity=1, steps=1, lr=0)
    assert "steps" not in graft.shapes
    assert pretrained.steps.tolist() == [3]


def test_a_head_of_another_shape_is_in_nobodys_way() -> None:
    pretrained, finetuned = pair()
    finetuned.add_module("head", nn.Linear(2, 2))
    pretrained.add_module("head", nn.Linear(2, 3))
    graft = localize(
        pretrained,
        finetuned,
        data(),
        lambda model, batch: loss(model[:3], batch),
        steps=1,
        graftable=lambda name, _: not name.startswith("head"),
    )
    assert len(graft.shapes) == 4


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad])
def test_the_callers_grad_mode_changes_nothing(context) -> None:
    pretrained, finetuned = pair()
    expected = localize(pretrained, finetuned, data(), loss, sparsity=0.3, steps=3)
    with context():
        found = localize(pretrained, finetuned, data(), loss, sparsity=0.3, steps=3)
    assert torch.equal(found.region(), expected.region())


def test_deterministic_algorithms_change_nothing() -> None:
    pretrained, finetuned = pair()
    options: dict[str, Any] = {"sparsity": 0.3, "steps": 3, "score": lambda m: -loss(m, data()[0])}
    expected = localize(pretrained, finetuned, data(), loss, **options)
    torch.use_deterministic_algorithms(True)
    try:
        found = localize(pretrained, finetuned, data(), loss, **options)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(found.region(), expected.region())


@pytest.mark.parametrize("kind", BUILD)
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("sizes", [(1, 1), (5, 2), (7, 7), (100, 100)])
def test_how_the_flat_vectors_are_cut_changes_last_bits_at_most(
    monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, int], dense: bool, kind: str
) -> None:
    """As on a GPU, whose chunks are of many tensors, with γ_base as bool.

    A CPU's σ of a vector's last entries, fewer than its registers hold, rounds otherwise.
    """

    def learned() -> tuple[Tensor, Tensor, Tensor]:
        before, after = pair(kind)
        parameters, targets = graftable_pair(before, after, None)
        total = sum(p.numel() for p in parameters.values())
        scores, base = initial_scores(total, 0), torch.arange(0, total, 3)
        relaxed = RelaxedGraft(parameters, targets, base, scores, 2.0)
        for _ in range(4):
            loss(before.eval(), data()[0]).backward()
            relaxed.step(300.0)
        return relaxed.scores, relaxed.theta, relaxed.region()

    def flags(inside: Tensor, total: int) -> Tensor:
        return torch.isin(torch.arange(total), inside)

    expected = learned()
    monkeypatch.setattr("skillgraft.core.flat_model.chunk_sizes", lambda _: sizes)
    if dense:
        monkeypatch.setattr("skillgraft.core.relaxation.as_mask", flags)
    torch.testing.assert_close(learned(), expected, rtol=1e-5, atol=1e-5)


# -------------------------------------------------------------------------------- the options


def test_seeds() -> None:
    pretrained, finetuned = pair()
    options: dict[str, Any] = {"sparsity": 0.3, "steps": 2, "sigmoid_bias": 1.0, "lr": 100.0}
    grafts = [
        localize(pretrained, finetuned, data(), loss, seed=seed, **options).region().tolist()
        for seed in (0, 0, 1, 2)
    ]
    assert grafts[0] == grafts[1]
    assert len({tuple(g) for g in grafts}) == 3
    default = localize(pretrained, finetuned, data(), loss, **options)
    assert default.region().tolist() == grafts[0]


def test_initial_scores_are_uniform_and_start_at_the_base_region() -> None:
    # with c in [0, 1) the share of entries that are flipped at once is 1 - c
    pretrained, finetuned = nn.Linear(100, 100), nn.Linear(100, 100)
    for bias, share in (0.25, 0.75), (0.5, 0.5), (0.9, 0.1), (1.0, 0.0), (10.0, 0.0):
        graft = localize(
            pretrained, finetuned, [0], lambda *_: None, sparsity=0, steps=0, sigmoid_bias=bias
        )
        assert graft.sparsity == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.float64, torch.int64])
def test_base_is_honoured_and_sparsity_is_then_unused(dtype: torch.dtype) -> None:
    pretrained, finetuned = pair()
    base = {n: (s > 0.7).to(dtype) for n, s in uniform(pretrained).items()}
    for sparsity in (0.0, 0.5):
        graft = localize(pretrained, finetuned, data(), loss, sparsity=sparsity, steps=0, base=base)
        assert all(torch.equal(m, base[n].bool()) for n, m in masks(graft).items())


def test_base_and_scores_may_come_in_any_order() -> None:
    pretrained, finetuned = pair()
    scores = uniform(pretrained)
    base = {n: s > 0.7 for n, s in scores.items()}
    grafts = [
        localize(pretrained, finetuned, data(), loss, steps=3, base=b, scores=s).region()
        for b, s in ((base, scores), (dict(reversed(base.items())), dict(reversed(scores.items()))))
    ]
    assert torch.equal(*grafts)


def test_scores_are_honoured() -> None:
    pretrained, finetuned = pair()
    scores = uniform(pretrained, 20.0)
    scores["0.bias"][0] = 10.0  # γ = 1/2 rounds to 0
    for value in (False, True):
        base = {n: torch.full(s.shape, value) for n, s in scores.items()}
        graft = localize(pretrained, finetuned, data(), loss, steps=0, base=base, scores=scores)
        for name, mask in masks(graft).items():
            expected = ((scores[name] > 10) ^ value) & (scores[name] != 10)
            assert torch.equal(mask, expected)


@pytest.mark.parametrize("sparsity", [0, 0.0, 0.02, 0.3, 1, 1.0])
def test_no_steps_give_the_movement_region(sparsity: float) -> None:
    pretrained, finetuned = pair()
    total = sum(p.numel() for p in pretrained.parameters())
    calls = []
    graft = localize(
        pretrained, finetuned, data(), lambda *_: calls.append(1), sparsity=sparsity, steps=0
    )
    expected = movement(pretrained, finetuned, round(sparsity * total))
    assert not calls
    assert graft.size == round(sparsity * total)
    assert all(torch.equal(m, torch.as_tensor(expected[n])) for n, m in masks(graft).items())


@pytest.mark.parametrize("sparsity", [0.0, 1.0])
def test_the_ends_of_sparsity_can_be_learned_from(sparsity: float) -> None:
    pretrained, finetuned = pair()
    graft = localize(pretrained, finetuned, data(), loss, sparsity=sparsity, steps=5, lr=1e7)
    assert 0 < graft.size < graft.graftable


@pytest.mark.parametrize("twin", [True, False])
def test_no_movement_at_all(twin: bool) -> None:
    pretrained, _ = pair()
    finetuned = copy.deepcopy(pretrained) if twin else pretrained
    before = state(pretrained)
    graft = localize(
        pretrained, finetuned, data(), loss, sparsity=0.2, steps=3, score=lambda _: 0.0
    )
    assert graft.region().tolist() == list(range(graft.size))  # ties go to the lower index
    assert graft.size == round(0.2 * graft.graftable)
    assert state(pretrained) == before
    graft.apply(pretrained)
    assert state(pretrained)["bits"] == before["bits"]


def test_a_learning_rate_of_zero_changes_nothing() -> None:
    pretrained, finetuned = pair()
    moved = localize(pretrained, finetuned, data(), loss, sparsity=0.2, steps=3, lr=0)
    start = localize(pretrained, finetuned, data(), loss, sparsity=0.2, steps=0)
    assert torch.equal(moved.region(), start.region())


# ----------------------------------------------------------------------------------- the score


def regions_by_step(**options: Any) -> list[list[int]]:
    pretrained, finetuned = pair()
    return [
        localize(pretrained, finetuned, data(), loss, steps=steps, **options).region().tolist()
        for steps in range(5)
    ]


OPTIONS: dict[str, Any] = {"sparsity": 0.3, "lr": 100.0, "sigmoid_bias": 1.0}


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ([0, 1, 2, 3, 4], 4),
        ([4, 3, 2, 1, 0], 0),  # the initial mask is scored too
        ([1, 1, 1, 1, 1], 0),  # later ones must be strictly better
        ([0, 2, 2, 1, 2], 1),
        ([0, 1, 3, 2, 3], 2),
        ([-5, -4, -3, -3, -9], 2),
        ([-1, -1, -1, -1, -0.5], 4),
        ([float("-inf"), 0, 1, 0, 0], 2),
        ([float("-inf")] * 5, 0),
        ([float("inf"), 0, 0, 0, 0], 0),
    ],
)
def test_the_best_step_counts(values: list[float], best: int) -> None:
    expected = regions_by_step(**OPTIONS)
    assert len({tuple(r) for r in expected}) == 5  # every step has another region
    pretrained, finetuned = pair()
    left = list(values)
    graft = localize(
        pretrained, finetuned, data(), loss, steps=4, score=lambda _: left.pop(0), **OPTIONS
    )
    assert not left  # steps + 1 calls
    assert graft.region().tolist() == expected[best]
    assert graft.meta["step"] == best


def test_without_a_score_the_last_step_counts() -> None:
    pretrained, finetuned = pair()
    graft = localize(pretrained, finetuned, data(), loss, steps=4, **OPTIONS)
    assert graft.meta["step"] == 4
    assert graft.region().tolist() == regions_by_step(**OPTIONS)[4]


def test_the_score_sees_the_rounded_graft() -> None:
    pretrained, finetuned = unsettled("normed")
    here = {n: p.detach().clone() for n, p in pretrained.named_parameters()}
    theirs = {n: p.detach().clone() for n, p in finetuned.named_parameters()}
    seen = []

    def score(model: nn.Module) -> float:
        assert model is pretrained
        assert not torch.is_grad_enabled()
        assert not any(module.training for module in model.modules())
        region = {}
        for name, parameter in model.named_parameters():
            region[name] = (parameter == theirs[name]).nonzero().tolist()
            assert ((parameter == theirs[name]) | (parameter == here[name])).all()
        seen.append(region)
        return float(len(seen) == 3)

    graft = localize(pretrained, finetuned, data(), loss, steps=4, score=score, **OPTIONS)
    assert len(seen) == 5
    assert {n: m.nonzero().tolist() for n, m in masks(graft).items()} == seen[2]


@pytest.mark.parametrize("scored", [False, True])
def test_the_loss_sees_every_batch_once_a_step_in_order(scored: bool) -> None:
    pretrained, finetuned = pair()
    batches, seen = data(), []

    def watched(model: nn.Module, batch: Any) -> Tensor:
        seen.append(len(batch[1]))
        return loss(model, batch)

    localize(
        pretrained, finetuned, batches, watched, steps=4, score=(lambda _: 0.0) if scored else None
    )
    assert seen == [5, 5, 2] * 4


def test_scoring_does_not_change_the_learning() -> None:
    pretrained, finetuned = pair()
    plain = localize(pretrained, finetuned, data(), loss, steps=4, **OPTIONS)
    values = iter(range(5))
    scored = localize(
        pretrained, finetuned, data(), loss, steps=4, score=lambda _: next(values), **OPTIONS
    )
    assert torch.equal(plain.region(), scored.region())


class Loader:
    """Iterable again and again, with no length: as a DataLoader of a stream."""

    def __iter__(self):
        return iter(data())


def test_any_iterable_may_hold_the_batches() -> None:
    pretrained, finetuned = pair()
    grafts = [
        localize(pretrained, finetuned, b, loss, steps=3, **OPTIONS).region().tolist()
        for b in (data(), tuple(data()), Loader())
    ]
    assert grafts[0] == grafts[1] == grafts[2]


# ------------------------------------------------------------------------------------- errors


def changed(module: nn.Module, name: str, value: Tensor) -> nn.Module:
    module = copy.deepcopy(module)
    module.get_parameter(name).data = value
    return module


PRE, FT = pair()
SCORES = uniform(PRE)
BASE = {n: s > 0.5 for n, s in SCORES.items()}
NAN = torch.tensor([0.0, torch.nan, 0.0])
INF = torch.tensor([0.0, torch.inf, 0.0])


@pytest.mark.parametrize(
    ("change", "error", "pattern"),
    [
        ({"sparsity": -0.1}, ValueError, "sparsity=-0.1"),
        ({"sparsity": 1.01}, ValueError, "sparsity=1.01"),
        ({"sparsity": float("nan")}, ValueError, "sparsity=nan"),
        ({"steps": -1}, ValueError, "steps=-1"),
        ({"lr": -1.0}, ValueError, "lr=-1.0"),
        ({"lr": float("nan")}, ValueError, "lr=nan"),
        ({"lr": float("inf")}, ValueError, "lr=inf"),
        ({"batches": []}, ValueError, "batches"),
        ({"batches": iter(data())}, TypeError, "batches"),
        ({"batches": (b for b in data())}, TypeError, "batches"),
        ({"base": {"0.weight": BASE["0.weight"]}}, ValueError, "base"),
        ({"base": BASE | {"5.weight": torch.ones(2)}}, ValueError, r"base.*5\.weight"),
        ({"base": BASE | {"0.bias": torch.ones(7)}}, ValueError, r"base.*0\.bias"),
        ({"base": BASE | {"0.weight": BASE["0.weight"].t()}}, ValueError, r"base.*0\.weight"),
        ({"base": BASE | {"0.bias": torch.full((6,), 2.0)}}, ValueError, "base: expected 0 and 1"),
        ({"base": BASE | {"0.bias": torch.full((6,), torch.nan)}}, ValueError, "base: expected"),
        ({"sigmoid_bias": None}, ValueError, "sigmoid_bias=None"),
        ({"sigmoid_bias": float("inf")}, ValueError, "sigmoid_bias=inf"),
        ({"scores": {}}, ValueError, "scores"),
        ({"scores": SCORES | {"5.weight": torch.ones(2)}}, ValueError, r"scores.*5\.weight"),
        ({"scores": SCORES | {"0.bias": torch.ones(6, 1)}}, ValueError, r"scores.*0\.bias"),
        ({"graftable": lambda *_: False}, ValueError, "graftable"),
        ({"finetuned": nn.Sequential(nn.Linear(4, 6))}, ValueError, r"2\.(weight|bias)"),
        ({"finetuned": nn.Linear(4, 6)}, ValueError, "finetuned"),
        ({"finetuned": changed(FT, "2.weight", torch.ones(6, 3))}, ValueError, r"2\.weight"),
        ({"finetuned": changed(FT, "2.bias", NAN)}, ValueError, r"2\.bias"),
        ({"finetuned": changed(FT, "2.bias", INF)}, ValueError, r"2\.bias"),
        ({"finetuned": copy.deepcopy(FT).double()}, ValueError, "dtype"),
        ({"pretrained": copy.deepcopy(PRE).bfloat16()}, ValueError, "dtype"),
        ({"pretrained": changed(PRE, "2.bias", NAN), "steps": 0}, ValueError, r"2\.bias"),
        ({"pretrained": changed(PRE, "2.bias", INF), "steps": 0}, ValueError, r"2\.bias"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], error: type, pattern: str) -> None:
    arguments: dict[str, Any] = {"pretrained": PRE, "finetuned": FT, "batches": data(), "steps": 1}
    arguments |= change
    before = state(arguments["pretrained"]), state(arguments["finetuned"])
    with pytest.raises(error, match=pattern):
        localize(loss=loss, **arguments)
    assert (state(arguments["pretrained"]), state(arguments["finetuned"])) == before


@pytest.mark.parametrize("how", ["nan", "inf"])
def test_a_loss_that_is_not_finite_names_the_step(how: str) -> None:
    with pytest.raises(FloatingPointError, match=f"{how}.*step 2"):
        localize(PRE, FT, data(), failing(how, 4), steps=3)


def test_the_graft_says_how_it_was_made() -> None:
    graft = localize(PRE, FT, data(), loss, sparsity=0.25, steps=2, lr=1e6, seed=7)
    expected = {"selector": "learned", "steps": 2, "lr": 1e6, "seed": 7, "requested_sparsity": 0.25}
    assert expected.items() <= graft.meta.items()
    assert localize(PRE, FT, data(), loss, steps=0, base=BASE).meta["requested_sparsity"] is None
