"""Regions against plain numpy and float64: selection, layout, relaxation, overlap, digest."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from skillgraft.core import digests, regions, relaxation, top_k
from skillgraft.core.layout import FlatLayout

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def oracle(values: Tensor, count: int) -> list[int]:
    """The first `count` of a stable descending sort: ties by lower flat index."""
    order = np.argsort(-values.double().numpy(), kind="stable")
    return sorted(order[: max(0, count)].tolist())


# -------------------------------------------------------------------------------------- top


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("values", "count", "expected"),
    [
        ([3.0, 1.0, 2.0], 2, [0, 2]),
        ([1.0, 1.0, 1.0, 1.0], 2, [0, 1]),  # all equal: the lower indices
        ([0.0, 0.0, 0.0], 1, [0]),
        ([0.0, 5.0, 5.0, 5.0, 7.0], 3, [1, 2, 4]),  # a tie at the k-th value
        ([0.0, 5.0, 5.0, 5.0, 7.0], 4, [1, 2, 3, 4]),
        ([-1.0, -3.0, -2.0], 1, [0]),
        ([0.0, -0.0, 0.0], 2, [0, 1]),  # the two zeros are equal
        ([1.0, 2.0], 0, []),
        ([1.0, 2.0], -1, []),
        ([1.0, 2.0], 2, [0, 1]),
        ([1.0, 2.0], 9, [0, 1]),
        ([], 0, []),
        ([], 3, []),
        ([float("inf"), 1.0, float("inf")], 2, [0, 2]),
    ],
)
def test_top_table(values, count, expected, dtype) -> None:
    chosen = top_k.top_k(torch.tensor(values, dtype=dtype), count)
    assert chosen.tolist() == expected
    assert chosen.dtype == torch.int64


few = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0]), max_size=40)  # many ties
many = st.lists(st.floats(0, 100, width=16), max_size=40)


@settings(deadline=None)
@given(values=few | many, count=st.integers(-1, 45), dtype=st.sampled_from(DTYPES))
def test_top_is_a_stable_sort(values: list[float], count: int, dtype: torch.dtype) -> None:
    tensor = torch.tensor(values, dtype=dtype)
    chosen = top_k.top_k(tensor, count).tolist()
    assert len(chosen) == max(0, min(count, len(values)))
    assert chosen == oracle(tensor, count)


@settings(deadline=None)
@given(values=few, data=st.data())
def test_top_is_nested(values: list[float], data) -> None:
    small, large = sorted(data.draw(st.lists(st.integers(0, 41), min_size=2, max_size=2)))
    tensor = torch.tensor(values)
    assert set(top_k.top_k(tensor, small).tolist()) <= set(top_k.top_k(tensor, large).tolist())


def test_top_of_a_large_vector_with_ties_in_bf16() -> None:
    values = torch.rand(50_000, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert values.unique().numel() < 20_000
    assert top_k.top_k(values, 12_345).tolist() == oracle(values, 12_345)


# ----------------------------------------------------------------------------------- layout

shapes = st.dictionaries(
    st.text("abc.", min_size=1, max_size=4),
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
    max_size=5,
)


@settings(deadline=None)
@given(shapes=shapes, data=st.data())
def test_layout_round_trips(shapes: dict[str, tuple[int, ...]], data) -> None:
    layout = FlatLayout(shapes)
    counts = [int(np.prod(shape)) for shape in shapes.values()]
    assert layout.sizes == counts
    assert layout.total == sum(counts)
    if not shapes:
        return
    flat = torch.arange(layout.total, dtype=torch.float64)
    views = layout.views(flat)
    assert {name: tuple(view.shape) for name, view in views.items()} == shapes
    assert list(views) == list(shapes)
    assert FlatLayout.of(views) == layout
    assert torch.equal(layout.flatten(views), flat)
    whole = st.integers(0, max(0, layout.total - 1))
    indices = sorted(data.draw(st.sets(whole, max_size=layout.total))) if layout.total else []
    parts = layout.split(torch.tensor(indices, dtype=torch.int64))
    assert list(parts) == list(shapes)
    assert layout.join(parts).tolist() == indices
    # the parts point at the same entries that the whole indices point at
    seen = [views[name].reshape(-1)[part] for name, part in parts.items()]
    assert torch.cat(seen).tolist() == indices
    for part, n in zip(parts.values(), counts, strict=True):
        assert not part.numel() or 0 <= part.min() <= part.max() < n


def test_views_share_memory_and_flatten_copies() -> None:
    layout, flat = FlatLayout({"a": (2, 2), "b": ()}), torch.zeros(5)
    views = layout.views(flat)
    views["a"][1, 0] = 7
    views["b"].fill_(9)
    assert flat.tolist() == [0, 0, 7, 0, 9]
    for name in ("a", "b"):  # also where there is one tensor only
        alone = FlatLayout({name: layout.shapes[name]})
        copy = alone.flatten({name: views[name]})
        copy.fill_(-1)
        assert flat.tolist() == [0, 0, 7, 0, 9]
    assert layout.flatten(views, torch.bfloat16).dtype == torch.bfloat16


def test_flatten_counts_logically_through_a_transposed_tensor() -> None:
    tensor = torch.arange(6.0).view(2, 3).t()
    assert FlatLayout.of({"a": tensor}).flatten({"a": tensor}).tolist() == [0, 3, 1, 4, 2, 5]


def test_join_takes_missing_names_as_empty() -> None:
    layout = FlatLayout({"a": (3,), "b": (2,), "c": (4,)})
    assert layout.join({"c": torch.tensor([1]), "a": torch.tensor([2])}).tolist() == [2, 6]


def test_empty_layout() -> None:
    layout = FlatLayout({})
    assert layout.total == 0
    assert layout.views(torch.empty(0)) == {}
    assert layout.split(torch.empty(0, dtype=torch.int64)) == {}


# ----------------------------------------------------------------------- sizes and relaxation


@settings(deadline=None)
@given(
    values=st.lists(st.integers(-3, 3), max_size=40),
    count=st.integers(0, 45),
    cuts=st.lists(st.integers(1, 7), min_size=1),
    excluded=st.sets(st.integers(0, 39)),
    guess=st.none() | st.integers(-4, 4),
)
def test_largest_reads_a_stream(values, count, cuts, excluded, guess) -> None:
    """Whatever the parts and the guess: what sorting all at once gives."""
    flat, sizes = torch.tensor(values).float(), []
    while sum(sizes) < len(values):
        sizes.append(min(cuts[len(sizes) % len(cuts)], len(values) - sum(sizes)))
    excluded = {index for index in excluded if index < len(values)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(top_k, "CHUNK", 3)  # so that candidates are sifted on the way
        found = top_k.top_k_of_parts(
            lambda: flat.split(sizes),
            len(values),
            count,
            torch.tensor(sorted(excluded), dtype=torch.int64),
            None if guess is None else torch.tensor(float(guess)),
        )
    free = [index for index in range(len(values)) if index not in excluded]
    wanted = sorted(sorted(free, key=lambda index: (-values[index], index))[:count])
    assert found.tolist() == wanted


@pytest.mark.parametrize(
    ("sparsity", "graftable", "size"),
    [
        (0.0, 1000, 0),
        (1.0, 1000, 1000),
        (1e-4, 85_054_464, 8505),
        (1e-5, 85_054_464, 851),
        (1e-4, 1000, 0),
        (5.1e-4, 1000, 1),
        (0.1, 25, 2),
        (0.3, 10, 3),
    ],
)
def test_region_size(sparsity: float, graftable: int, size: int) -> None:
    assert regions.region_size(sparsity, graftable) == size


SCORES = torch.tensor([-30.0, -1.0, 0.0, 0.5, 0.999, 5.0, 9.9, 10.0, 10.1, 12.0, 40.0])


@pytest.mark.parametrize("bias", [0.0, 5.0, 10.0])
@pytest.mark.parametrize("base", [False, True])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])
def test_relax_slope_and_rounded_against_the_formulas(bias, base, dtype, rtol) -> None:
    s = SCORES.double().numpy()
    sigma = 1 / (1 + np.exp(-(s - bias)))
    gamma = base * (1 - sigma) + (1 - base) * sigma
    slope = (1 - 2 * base) * sigma * (1 - sigma)
    scores, mask = SCORES.to(dtype), torch.full(SCORES.shape, base)
    kept = scores.clone()
    atol = 1e-7 if dtype == torch.float32 else 1e-15
    torch.testing.assert_close(
        relaxation.relax(scores, mask, bias), torch.tensor(gamma).to(dtype), rtol=rtol, atol=atol
    )
    torch.testing.assert_close(
        relaxation.relax_grad(scores, mask, bias),
        torch.tensor(slope).to(dtype),
        rtol=rtol,
        atol=atol,
    )
    expected = [bool(g) for g in np.where(s == bias, False, base ^ (s > bias))]
    assert relaxation.round_mask(scores, mask, bias).tolist() == expected
    assert torch.equal(scores, kept)  # pure: the arguments stay


@settings(deadline=None)
@given(
    entries=st.lists(st.tuples(st.floats(-30, 40), st.booleans()), min_size=1, max_size=20),
    bias=st.sampled_from([0.0, 5.0, 10.0]),
)
def test_slope_is_the_derivative_of_relax(entries: list[tuple[float, bool]], bias: float) -> None:
    scores = torch.tensor([s for s, _ in entries], dtype=torch.float64, requires_grad=True)
    base = torch.tensor([b for _, b in entries])
    sigma = torch.sigmoid(scores - bias)
    gamma = torch.where(base, 1 - sigma, sigma)
    torch.testing.assert_close(relaxation.relax(scores.detach(), base, bias), gamma.detach())
    (gradient,) = torch.autograd.grad(gamma.sum(), scores)
    torch.testing.assert_close(
        relaxation.relax_grad(scores.detach(), base, bias), gradient, rtol=1e-9, atol=1e-15
    )


@settings(deadline=None)
@given(
    entries=st.lists(st.tuples(st.floats(-30, 40, width=32), st.booleans()), max_size=30),
    bias=st.sampled_from([0.0, 5.0, 10.0]),
)
def test_rounded_is_round_of_relax(entries: list[tuple[float, bool]], bias: float) -> None:
    clear = [(s, b) for s, b in entries if s == bias or abs(s - bias) > 1e-6]
    scores = torch.tensor([s for s, _ in clear], dtype=torch.float64)
    base = torch.tensor([b for _, b in clear], dtype=torch.bool)
    expected = (
        relaxation.relax(scores, base, bias).round().bool()
    )  # torch rounds half to even: to 0
    assert torch.equal(relaxation.round_mask(scores, base, bias), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("base", [False, True])
def test_rounded_is_zero_at_the_bias_and_flips_right_above(base: bool, dtype: torch.dtype) -> None:
    c = torch.tensor(10.0, dtype=dtype)
    up, down = torch.full_like(c, torch.inf), torch.full_like(c, -torch.inf)
    scores = torch.stack([c.nextafter(down), c, c.nextafter(up)])
    found = relaxation.round_mask(scores, torch.full((3,), base), 10.0)
    assert found.tolist() == [base, False, not base]


# --------------------------------------------------------------------------- overlap, random

subsets = st.sets(st.integers(0, 29), max_size=30)


def sorted_tensor(entries: set[int]) -> Tensor:
    return torch.tensor(sorted(entries), dtype=torch.int64)


@settings(deadline=None)
@given(a=subsets, b=subsets)
def test_overlap_against_sets(a: set[int], b: set[int]) -> None:
    found = regions.overlap(sorted_tensor(a), sorted_tensor(b), 30)
    both, either = len(a & b), len(a | b)
    assert found["iou"] == (both / either if either else None)
    assert found["a_in_b"] == (both / len(a) if a else None)
    assert found["b_in_a"] == (both / len(b) if b else None)
    swapped = regions.overlap(sorted_tensor(b), sorted_tensor(a), 30)
    assert swapped["iou"] == found["iou"]
    assert swapped["a_in_b"] == found["b_in_a"]
    assert swapped["chance"] == found["chance"]


def test_overlap_of_nothing() -> None:
    empty = torch.empty(0, dtype=torch.int64)
    assert set(regions.overlap(empty, empty, 0).values()) == {None}


@pytest.mark.parametrize(("one", "two", "total"), [(50, 50, 400), (20, 200, 400), (300, 350, 400)])
def test_chance_against_random_regions(one: int, two: int, total: int) -> None:
    random = np.random.default_rng(0)
    ious = []
    for _ in range(2000):
        a = set(random.choice(total, one, replace=False).tolist())
        b = set(random.choice(total, two, replace=False).tolist())
        ious.append(len(a & b) / len(a | b))
    chance = regions.overlap(torch.arange(one), torch.arange(two), total)["chance"]
    assert chance == pytest.approx(np.mean(ious), rel=0.02)


@settings(deadline=None)
@given(total=st.integers(0, 200), count=st.integers(0, 220), seed=st.integers(0, 2**62))
def test_at_random_is_sorted_unique_and_seeded(total: int, count: int, seed: int) -> None:
    state = torch.random.get_rng_state()
    chosen = regions.at_random(total, count, seed)
    assert chosen.numel() == min(count, total)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert not chosen.numel() or (chosen.min() >= 0 and chosen.max() < total)
    assert torch.equal(chosen, regions.at_random(total, count, seed))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_at_random_is_uniform_and_differs_by_seed() -> None:
    assert not torch.equal(regions.at_random(1000, 50, 0), regions.at_random(1000, 50, 1))
    hits = torch.zeros(20)
    for seed in range(2000):
        hits[regions.at_random(20, 5, seed)] += 1
    assert (hits / 2000 - 0.25).abs().max() < 0.05  # 5 standard errors


# ------------------------------------------------------------------------------------ digest


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int32, torch.int64])
def test_digest_changes_with_any_bit(dtype: torch.dtype) -> None:
    tensors = {"a": torch.arange(6).view(2, 3).to(dtype), "b": torch.tensor(1).to(dtype)}
    before, seen = digests.digest(tensors), set()
    for name, tensor in tensors.items():
        raw = tensor.view(-1).view(torch.uint8)
        for byte in range(raw.numel()):
            for bit in range(8):
                raw[byte] ^= 1 << bit
                seen.add(digests.digest(tensors))
                raw[byte] ^= 1 << bit
        assert tensors[name] is tensor
    assert digests.digest(tensors) == before
    assert before not in seen
    assert len(seen) == 8 * sum(t.numel() * t.element_size() for t in tensors.values())


def test_digest_changes_with_name_shape_dtype_and_set() -> None:
    zeros = torch.zeros(2, 3)
    variants = [
        {"a": zeros},
        {"b": zeros},
        {"a": zeros.view(3, 2)},
        {"a": zeros.view(6)},
        {"a": zeros.view(1, 2, 3)},
        {"a": zeros.int()},
        {"a": zeros.double()},
        {"a": zeros.bfloat16()},
        {"a": zeros.half()},
        {"a": -zeros},  # minus zero is another bit pattern
        {"a": zeros, "b": torch.empty(0)},
        {"a": zeros[:1], "b": zeros[1:]},
        {"b": zeros[:1], "a": zeros[1:], "c": torch.zeros(())},
        {},
    ]
    assert len({digests.digest(tensors) for tensors in variants}) == len(variants)


def test_digest_ignores_order_strides_and_gradients() -> None:
    a, b = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), torch.ones(2)
    expected = digests.digest({"a": a, "b": b})
    strided = a.t().contiguous().t()
    assert not strided.is_contiguous()
    assert digests.digest({"b": b, "a": strided}) == expected
    assert digests.digest({"b": b, "a": torch.nn.Parameter(a)}) == expected


def test_shares_and_missing_names() -> None:
    sizes = {"0.a": 3, "0.b": 1, "1.a": 0}
    assert regions.shares(sizes, lambda name: name[0]) == {"0": 1.0, "1": 0.0}
    assert regions.shares(sizes, lambda name: name[-1]) == {"a": 0.75, "b": 0.25}
    assert regions.shares({"0.a": 0}, lambda name: name) == {"0.a": 0.0}
    assert regions.missing_names(["b", "a", "c"], ["c", "d"]) == ["a", "b"]
