"""The graft as a value, as a file, and applied to models."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from skillgraft import Graft, GraftError, active, localize
from skillgraft.core.digests import digest
from skillgraft.core.graft import union
from skillgraft.core.graft_facts import facts, shares_by_layer, shares_by_module, sizes_of
from skillgraft.core.modules import layer_of, module_of

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def tensors(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Graftable tensors of a small net, one of them without dimensions."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"0.weight": (4, 3), "0.bias": (4,), "1.weight": (2, 4), "1.scale": ()}
    return {n: torch.randn(s, generator=generator).to(dtype) for n, s in shapes.items()}


PRE, FT = tensors(0), tensors(1)
META = {
    "model": "toy",
    "task": "sums",
    "selector": "learned",
    "requested_sparsity": 0.1,
    "none": None,
}


def make(chosen: list[int], dtype: torch.dtype = torch.float32, seed: int = 1, **more) -> Graft:
    return Graft.take(
        torch.tensor(chosen, dtype=torch.int64), tensors(0, dtype), tensors(seed, dtype), **more
    )


class Net(nn.Module):
    """A module with the parameters of `tensors`."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        inner = {}
        for name, value in values.items():
            index, _, leaf = name.partition(".")
            child = inner.setdefault(index, nn.Module())
            child.register_parameter(leaf, nn.Parameter(value.clone()))
        for index, child in inner.items():
            self.add_module(index, child)


def bits(module: nn.Module) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in module.state_dict().items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert set(a) == set(b)
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert digest({"": a[name]}) == digest({"": b[name]}), name


def assert_same_graft(a: Graft, b: Graft) -> None:
    assert (a.shapes, a.base, dict(a.meta)) == (b.shapes, b.base, dict(b.meta))
    for kind in ("indices", "values", "pretrained", "head"):
        assert_same(dict(getattr(a, kind)), dict(getattr(b, kind)))


# ------------------------------------------------------------------------------------ taking


def test_take_holds_exactly_the_chosen_entries() -> None:
    graft = make([0, 5, 11, 12, 16, 24], meta=META)
    expected = {"0.weight": [0, 5, 11], "0.bias": [0], "1.weight": [0], "1.scale": [0]}
    assert {n: i.tolist() for n, i in graft.indices.items()} == expected
    assert graft.region().tolist() == [0, 5, 11, 12, 16, 24]
    assert (graft.size, graft.graftable, graft.sparsity) == (6, 25, 6 / 25)
    assert graft.base == digest(PRE)
    for name, index in graft.indices.items():
        assert index.dtype == torch.int64
        assert torch.equal(graft.values[name], FT[name].reshape(-1)[index])
        assert torch.equal(graft.pretrained[name], PRE[name].reshape(-1)[index])
    assert sizes_of(graft) == {"0.weight": 3, "0.bias": 1, "1.weight": 1, "1.scale": 1}


def test_take_copies() -> None:
    pretrained, finetuned, head = tensors(0), tensors(1), {"weight": torch.ones(2)}
    meta = {"task": "a"}
    graft = Graft.take(torch.arange(25), pretrained, finetuned, meta, head)
    for tensor in [*pretrained.values(), *finetuned.values(), *head.values()]:
        tensor.fill_(99)
    meta["task"] = "b"
    expected = Graft.take(
        torch.arange(25), tensors(0), tensors(1), {"task": "a"}, {"weight": torch.ones(2)}
    )
    assert_same_graft(graft, expected)


def test_repr_says_size_base_task_and_selector() -> None:
    text = repr(make([1, 2], meta=META))
    for part in ("2 of 25", "8.00e-02", "toy", digest(PRE)[:12], "task=sums", "selector=learned"):
        assert part in text
    assert "\n" not in text
    assert "unnamed" in repr(make([]))


def test_repr_says_where_most_of_it_is() -> None:
    names = ["h.0.attn.c_attn.weight", "h.0.mlp.c_fc.weight", "h.1.mlp.c_fc.weight"]
    pair = ({name: torch.full((4,), value) for name in names} for value in (0.0, 1.0))
    graft = Graft.take(torch.tensor([0, 4, 8, 9]), *pair, META)
    assert repr(graft).endswith("task=sums, selector=learned, layer 0 (50 %), MLP in (75 %))")
    assert facts(graft)["mostly in modules"] == "MLP in (75 %), attention in (25 %)"


def test_a_notebook_shows_a_table_of_plain_text() -> None:
    graft = make([1, 2], meta={**META, "task": "<script>&"})
    shown = graft._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;&amp;" in shown
    for name, value in facts(graft).items():
        assert f"<th>{name}</th>" in shown
        assert value in shown or name == "task"
    assert make([])._repr_html_().count("<tr>") == len(facts(make([])))


# ---------------------------------------------------------------------------------- the file


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("chosen", [[0, 5, 11, 12, 16, 24], [13], [], list(range(25))])
def test_file_round_trip(tmp_path: Path, dtype: torch.dtype, chosen: list[int]) -> None:
    head = {"weight": torch.randn(2, 4), "bias": torch.zeros(2)}
    graft = make(chosen, dtype, meta=META, head=head)
    path = tmp_path / "new" / "folder" / "graft.safetensors"
    assert graft.save(str(path)) == path
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing partial is left
    stored = load_file(path)
    indices = {n: t for n, t in stored.items() if n.startswith("indices/")}
    assert {t.dtype for t in indices.values()} <= {torch.int32}
    assert sum(t.numel() for t in indices.values()) == len(chosen)
    assert {t.dtype for n, t in stored.items() if n.startswith("values/")} <= {dtype}
    assert_same_graft(Graft.load(path), graft)
    assert_same_graft(Graft.load(str(path)), graft)


def test_file_keeps_every_bit_of_odd_values(tmp_path: Path) -> None:
    odd = torch.tensor([0.0, -0.0, 1e-45, torch.inf, -torch.inf, torch.nan])
    graft = Graft.take(torch.arange(6), {"a": torch.zeros(6)}, {"a": odd})
    assert_same_graft(Graft.load(graft.save(tmp_path / "g")), graft)


def test_saving_the_same_graft_gives_the_same_bytes(tmp_path: Path) -> None:
    one = make([1, 20], meta=META).save(tmp_path / "a").read_bytes()
    two = Graft.load(tmp_path / "a").save(tmp_path / "b").read_bytes()
    assert one == two


def test_save_replaces_a_file_that_is_in_use(tmp_path: Path) -> None:
    path = make([1, 2]).save(tmp_path / "g")
    loaded = Graft.load(path)
    make(list(range(25))).save(path)
    assert_same_graft(loaded, make([1, 2]))
    loaded.save(path)
    assert_same_graft(Graft.load(path), make([1, 2]))


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = make([1, 2]).save(tmp_path / "g")
    before = path.read_bytes()
    with pytest.raises(TypeError):
        make([3], meta={"model": object()}).save(path)
    assert path.read_bytes() == before


def refused(path: Path, pattern: str = ".") -> None:
    with pytest.raises(GraftError, match=pattern) as caught:
        Graft.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"x", b"\0" * 8, b"{}" * 40, b"\xff" * 100])
def test_not_a_safetensors_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "g").write_bytes(content)
    refused(tmp_path / "g")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "no such file")
    refused(tmp_path)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {},
        {"format": "pt"},
        *({"skillgraft": t} for t in ("", "null", "3", "[]", '"x"', "{}", "{")),
    ],
)
def test_a_safetensors_file_that_is_no_graft(tmp_path: Path, metadata: dict | None) -> None:
    save_file({"weight": torch.ones(3)}, tmp_path / "g", metadata)
    refused(tmp_path / "g")


def rewritten(path: Path, change=dict, drop: str | None = None) -> Path:
    """Write a graft's file again with its header changed by `change`, or a tensor dropped."""
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    content = load_file(path)
    header = json.loads(metadata["skillgraft"])
    change(header)
    if drop is not None:
        del content[drop]
    save_file(content, path, {**metadata, "skillgraft": json.dumps(header)})
    return path


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = make([1, 2]).save(tmp_path / "g")
    refused(rewritten(path, lambda h: h.update(format=h["format"] + 1)), "newer")


@pytest.mark.parametrize("key", ["base", "shapes", "meta", "size", "graftable", "digest", "format"])
def test_a_header_without_a_key_is_refused(tmp_path: Path, key: str) -> None:
    path = make([1, 2], meta=META).save(tmp_path / "g")
    refused(rewritten(path, lambda h: h.pop(key)))


@pytest.mark.parametrize(
    "change",
    [
        {"base": "0" * 64},
        {"meta": {"task": "another"}},
        {"shapes": [["0.weight", [3, 4]], ["0.bias", [4]], ["1.weight", [2, 4]], ["1.scale", []]]},
        {
            "shapes": [
                ["0.weight", [400, 3]],
                ["0.bias", [4]],
                ["1.weight", [2, 4]],
                ["1.scale", []],
            ]
        },
        {"shapes": []},
        {"size": 3},
        {"graftable": 26},
    ],
)
def test_an_altered_header_is_refused(tmp_path: Path, change: dict) -> None:
    path = make([1, 2], meta=META).save(tmp_path / "g")
    refused(rewritten(path, lambda h: h.update(change)))


@pytest.mark.parametrize("drop", ["indices/0.weight", "values/0.weight", "pretrained/0.weight"])
def test_a_dropped_tensor_is_refused(tmp_path: Path, drop: str) -> None:
    path = make([1, 2]).save(tmp_path / "g")
    refused(rewritten(path, drop=drop))


@pytest.mark.parametrize(
    ("change", "pattern"),
    [  # each one is a file whose digest is right and whose content is not
        ({"indices": {"a": torch.tensor([0, 6])}}, "range"),
        ({"indices": {"a": torch.tensor([-1, 2])}}, "range"),
        ({"indices": {"a": torch.tensor([2, 0])}}, "sorted"),
        ({"indices": {"a": torch.tensor([2, 2])}}, "sorted"),
        ({"indices": {"a": torch.tensor([1, 2, 3])}}, "."),  # one more than there are values
        ({"values": {"a": torch.ones(3)}}, "."),
        ({"values": {"a": torch.ones(1)}}, "."),
        ({"pretrained": {"a": torch.ones(1)}}, "."),
        ({"pretrained": {"a": torch.ones(3)}}, "."),
        ({"values": {"a": torch.ones(2, 1)}}, "."),
    ],
)
def test_a_whole_file_with_wrong_content_is_refused(tmp_path: Path, change, pattern) -> None:
    parts = {"indices": {"a": torch.tensor([1, 2])}, "values": {"a": torch.ones(2)}}
    parts |= {"pretrained": {"a": torch.zeros(2)}} | change
    graft = Graft(**parts, shapes={"a": (2, 3)}, base=digest({"a": torch.zeros(2, 3)}))
    # Whoever refuses to write such a file is right too.
    with contextlib.suppress(GraftError):
        graft.save(tmp_path / "g")
        refused(tmp_path / "g", pattern)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[bytes, Graft, Path]:
    graft = make([0, 5, 12, 24], meta=META, head={"bias": torch.ones(2)})
    path = tmp_path_factory.mktemp("bytes") / "g"
    return graft.save(path).read_bytes(), graft, path.with_name("changed")


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_truncated_file_is_refused(whole, data) -> None:
    content, _, path = whole
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    refused(path)


def loads_the_same_or_is_refused(path: Path, graft: Graft) -> None:
    try:
        loaded = Graft.load(path)
    except GraftError:
        return
    else:  # as where a space of the file's JSON became another white space
        assert_same_graft(loaded, graft)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_a_changed_byte_is_never_read_as_other_data(whole, data) -> None:
    content, graft, path = whole
    at = data.draw(st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(changed)
    loads_the_same_or_is_refused(path, graft)


def test_no_flipped_bit_is_ever_read_as_other_data(whole) -> None:
    content, graft, path = whole
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 1 << at % 7
        path.write_bytes(changed)
        loads_the_same_or_is_refused(path, graft)


def test_an_extended_file_is_refused(whole) -> None:
    content, _, path = whole
    path.write_bytes(content + b"\0")
    refused(path)


# ---------------------------------------------------------------------------------- applying


def expected(chosen: list[int]) -> dict[str, Tensor]:
    """θ_pre with the fine-tuned values at flat indices, by a plain loop."""
    out, offset = {n: t.clone() for n, t in PRE.items()}, 0
    for name, tensor in out.items():
        flat = tensor.view(-1)
        for i in range(flat.numel()):
            if offset + i in chosen:
                flat[i] = FT[name].view(-1)[i]
        offset += flat.numel()
    return out


@settings(deadline=None, max_examples=40)
@given(chosen=st.sets(st.integers(0, 24)).map(sorted))
def test_apply_writes_exactly_the_region_and_applied_undoes_it(chosen: list[int]) -> None:
    graft, net = make(chosen), Net(PRE)
    with active(net, graft) as inside:
        assert inside is net
        assert_same(bits(net), expected(chosen))
    assert_same(bits(net), PRE)
    assert graft.apply(net) is net
    assert_same(bits(net), expected(chosen))


def test_the_two_ends() -> None:
    assert_same(bits(make([]).apply(Net(PRE))), PRE)
    assert_same(bits(make([]).apply(Net(FT))), FT)  # an empty graft fits any model
    assert_same(bits(make(list(range(25))).apply(Net(PRE))), FT)


def test_apply_is_in_place_and_keeps_flags() -> None:
    net = Net(PRE)
    net.get_parameter("0.weight").requires_grad_(False)
    before = {n: (p, p.data_ptr(), p.requires_grad) for n, p in net.named_parameters()}
    make(list(range(25))).apply(net)
    assert {n: (p, p.data_ptr(), p.requires_grad) for n, p in net.named_parameters()} == before


def test_applied_undoes_after_an_error() -> None:
    net = Net(PRE)
    with pytest.raises(ZeroDivisionError), active(net, make([0, 13, 24])):
        1 / int(torch.equal(net.get_parameter("1.scale"), PRE["1.scale"]))
    assert_same(bits(net), PRE)


def test_applied_restores_minus_zero() -> None:
    zero = torch.tensor([-0.0, 1.0])
    net = nn.Module()
    net.weight = nn.Parameter(zero.clone())
    graft = Graft.take(
        torch.tensor([0]), {"weight": torch.tensor([0.0, 1.0])}, {"weight": zero + 1}
    )
    with active(net, graft):
        assert net.weight.tolist() == [1.0, 1.0]
    assert_same(bits(net), {"weight": zero})


def test_applied_nests() -> None:
    net = Net(PRE)
    with active(net, make([0, 1])), active(net, make([12, 24])):
        assert_same(bits(net), expected([0, 1, 12, 24]))
    assert_same(bits(net), PRE)


@settings(deadline=None, max_examples=40)
@given(chosen=st.lists(st.sets(st.integers(0, 24)).map(sorted), max_size=3))
def test_active_is_the_union_and_is_undone(chosen: list[list[int]]) -> None:
    """However many grafts: each entry has the mean of the values that they have for it."""
    grafts = [make(part, seed=seed) for seed, part in enumerate(chosen, start=1)]
    wanted, offset = {n: t.clone() for n, t in PRE.items()}, 0
    for name, tensor in wanted.items():
        for i in range(tensor.numel()):
            values = [
                tensors(seed)[name].view(-1)[i].double()
                for seed, part in enumerate(chosen, start=1)
                if offset + i in part
            ]
            if values:
                tensor.view(-1)[i] = sum(values) / len(values)
        offset += tensor.numel()
    net = Net(PRE)
    with active(net, *grafts) as inside:
        assert inside is net
        assert_same(bits(net), wanted)
    assert_same(bits(net), PRE)


def test_active_changes_skills_many_times_over() -> None:
    skills = {"a": make([0, 5, 12]), "b": make([5, 24], seed=2), "c": make([3], seed=3)}
    net = Net(PRE)
    for names in (["a"], ["b"], ["a", "b"], [], ["c", "a"], ["a"]):
        with active(net, *(skills[name] for name in names)):
            grafts = [skills[name] for name in names]
            assert_same(bits(net), bits(union(grafts).apply(Net(PRE))) if names else PRE)
        assert_same(bits(net), PRE)


def test_active_writes_nothing_where_one_does_not_fit() -> None:
    other = Graft.take(torch.tensor([0]), FT, PRE)
    net = Net(PRE)
    with pytest.raises(GraftError, match="different base models"), active(net, make([0]), other):
        pytest.fail("the block must not be entered")
    assert_same(bits(net), PRE)
    with active(net, make([0])), pytest.raises(GraftError, match="not those"):
        make([0, 24]).apply(net)
    with pytest.raises(ZeroDivisionError), active(net, make([0]), make([0, 1], seed=2)):
        raise ZeroDivisionError
    assert_same(bits(net), PRE)


def test_apply_is_allowed_under_deterministic_algorithms() -> None:
    net = Net(PRE)
    torch.use_deterministic_algorithms(True)
    try:
        with active(net, make([0, 13])):
            assert_same(bits(net), expected([0, 13]))
        assert_same(bits(net), PRE)
    finally:
        torch.use_deterministic_algorithms(False)


def misfits() -> dict[str, Net]:
    """Modules that the whole graft must not touch, though all but one tensor would fit."""
    other = {n: t.clone() for n, t in PRE.items()}
    other["1.weight"].view(-1)[3].add_(1e-6)
    nan = {n: t.clone() for n, t in PRE.items()} | {"1.scale": torch.tensor(torch.nan)}
    transposed = PRE | {"1.weight": PRE["1.weight"].t().contiguous()}
    longer = PRE | {"0.bias": torch.cat([PRE["0.bias"], torch.zeros(1)])}
    missing = {n: t for n, t in PRE.items() if n != "1.scale"}
    return {
        "base": Net(other),
        "nan": Net(nan),
        "finetuned": Net(FT),
        "transposed": Net(transposed),
        "longer": Net(longer),
        "missing": Net(missing),
    }


@pytest.mark.parametrize("kind", [*misfits()])
def test_nothing_is_written_where_one_tensor_does_not_fit(kind: str) -> None:
    graft, net = make(list(range(25)), meta=META), misfits()[kind]
    before = bits(net)
    with pytest.raises(GraftError):
        graft.apply(net)
    assert_same(bits(net), before)
    with pytest.raises(GraftError), active(net, graft):
        pytest.fail("the block must not be entered")
    assert_same(bits(net), before)


@pytest.mark.parametrize(
    ("kind", "name"), [("base", "1.weight"), ("missing", "1.scale"), ("longer", "0.bias")]
)
def test_the_error_names_the_tensor_and_the_base(kind: str, name: str) -> None:
    with pytest.raises(GraftError, match=name) as caught:
        make(list(range(25)), meta=META).apply(misfits()[kind])
    if kind != "longer":
        assert "toy" in str(caught.value)


def test_two_copies_of_the_model_are_ambiguous() -> None:
    both = nn.ModuleDict({"a": Net(PRE), "b": Net(PRE)})
    with pytest.raises(GraftError):
        make([0]).apply(both)
    assert_same(bits(both["a"]), PRE)


def test_a_wrapped_module_fits() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.head = Net(PRE), nn.Linear(2, 2)

    net = nn.Sequential(Wrapper())
    with active(net, make([0, 12])):
        assert_same(bits(net[0].model), expected([0, 12]))
    assert_same(bits(net[0].model), PRE)


class Nested(nn.Module):
    """Its parameter names end in each other: `scale` and `inner.scale`."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.scale = nn.Parameter(torch.randn(3))
        self.inner = nn.Module()
        self.inner.scale = nn.Parameter(torch.randn(3))


def stacked(seed: int) -> nn.Module:
    """Its names end in each other too: `0.weight` and `1.0.weight`."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)))


@pytest.mark.parametrize("build", [Nested, stacked])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_names_that_end_in_each_other(build, wrapped: bool, whole: bool) -> None:
    pretrained = build(0)
    mine = bits(pretrained)
    theirs = {n: t + 1 for n, t in mine.items()}
    total = sum(t.numel() for t in mine.values())
    graft = Graft.take(torch.arange(total if whole else 1), mine, theirs)
    graft.apply(nn.ModuleDict({"model": pretrained}) if wrapped else pretrained)
    first = next(iter(mine))
    expected = theirs if whole else {n: t.clone() for n, t in mine.items()}
    expected[first].view(-1)[0] = theirs[first].view(-1)[0]
    assert_same(bits(pretrained), expected)


def test_tied_weights() -> None:
    def tied(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        net = nn.ModuleDict({"embed": nn.Embedding(5, 3), "out": nn.Linear(3, 5, bias=False)})
        net["out"].weight = net["embed"].weight
        return net

    pretrained, finetuned = tied(0), tied(1)
    before = bits(pretrained)
    graft = Graft.take(
        torch.tensor([0, 7]),
        dict(pretrained.named_parameters()),
        dict(finetuned.named_parameters()),
    )
    with active(pretrained, graft):
        assert pretrained["out"].weight is pretrained["embed"].weight
        changed = pretrained["out"].weight.view(-1) != before["out.weight"].view(-1)
        assert changed.nonzero().view(-1).tolist() == [0, 7]
    assert_same(bits(pretrained), before)


def test_non_contiguous_parameters() -> None:
    net = Net(PRE)
    for name in ("0.weight", "1.weight"):
        net.get_parameter(name).data = PRE[name].t().contiguous().t()
        assert not net.get_parameter(name).is_contiguous()
    chosen = [1, 4, 5, 13, 17, 22]
    with active(net, make(chosen)):
        assert_same(bits(net), expected(chosen))
    assert_same(bits(net), PRE)
    graft = Graft.take(torch.tensor(chosen), dict(net.named_parameters()), FT)
    assert_same_graft(graft, make(chosen))


def test_expanded_views_of_a_bigger_storage() -> None:
    storage = torch.zeros(40)
    net, offset = Net(PRE), 3
    for name, parameter in net.named_parameters():
        view = storage[offset : offset + parameter.numel()].view(parameter.shape)
        parameter.data = view.copy_(PRE[name])
        offset += parameter.numel()
    make([0, 24]).apply(net)
    assert_same(bits(net), expected([0, 24]))
    assert storage[:3].eq(0).all()
    assert storage[offset:].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_graft_from_fp32_fits_the_model_in_another_dtype(dtype: torch.dtype) -> None:
    net, before = Net(PRE).to(dtype), {n: t.to(dtype) for n, t in PRE.items()}
    with active(net, make([0, 5, 24])):
        assert_same(bits(net), {n: t.to(dtype) for n, t in expected([0, 5, 24]).items()})
    assert_same(bits(net), before)


# ----------------------------------------------------------------- one file fits every class


@pytest.fixture(scope="module")
def berts():
    from transformers import BertConfig, BertForMaskedLM, BertModel

    small = BertConfig(
        vocab_size=11,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=8,
    )
    torch.manual_seed(0)
    language = BertForMaskedLM(small).eval()
    encoder = BertModel(small, add_pooling_layer=False).eval()
    encoder.load_state_dict(language.bert.state_dict())
    finetuned = copy.deepcopy(language)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in finetuned.named_parameters():
            if ".layer." in name:
                parameter.add_(torch.randn_like(parameter))
    return encoder, language, finetuned


def in_blocks(name: str, parameter: nn.Parameter) -> bool:
    return ".layer." in name


@pytest.mark.parametrize("source", ["encoder", "language"])
def test_one_file_fits_the_encoder_and_the_lm_class(tmp_path: Path, berts, source: str) -> None:
    encoder, language, finetuned = map(copy.deepcopy, berts)
    pair = (encoder, finetuned.bert) if source == "encoder" else (language, finetuned)
    made = localize(*pair, [0], lambda *_: None, sparsity=0.3, steps=0, graftable=in_blocks)
    graft = Graft.load(made.save(tmp_path / "g"))
    before = bits(language)
    graft.apply(encoder)
    graft.apply(language)
    assert_same(bits(encoder), bits(language.bert))
    changed = sum(int((before[n] != t).sum()) for n, t in bits(language).items())
    assert changed == graft.size > 100
    for name, index in graft.indices.items():
        ours = language.get_parameter("bert." + name.removeprefix("bert."))
        theirs = finetuned.get_parameter("bert." + name.removeprefix("bert."))
        assert torch.equal(ours.view(-1)[index], theirs.view(-1)[index])


def test_a_whole_graft_is_the_finetuned_model(berts) -> None:
    encoder, _, finetuned = map(copy.deepcopy, berts)
    graft = localize(encoder, finetuned.bert, [0], lambda *_: None, sparsity=1, steps=0)
    assert graft.sparsity == 1
    assert_same(bits(graft.apply(encoder)), bits(finetuned.bert))


def test_an_empty_graft_changes_nothing(berts) -> None:
    encoder, _, finetuned = map(copy.deepcopy, berts)
    before = bits(encoder)
    graft = localize(encoder, finetuned.bert, [0], lambda *_: None, sparsity=0, steps=0)
    assert (graft.size, graft.sparsity) == (0, 0)
    assert_same(bits(graft.apply(encoder)), before)


# ----------------------------------------------------------------------------------- algebra

regions = st.sets(st.integers(0, 24)).map(sorted)


def pairs(graft: Graft) -> dict[tuple[str, int], tuple[float, float]]:
    """(tensor, index) → (value, pre-trained value)."""
    return {
        (name, i): (v, p)
        for name in graft.shapes
        for i, v, p in zip(
            graft.indices[name].tolist(),
            graft.values[name].tolist(),
            graft.pretrained[name].tolist(),
            strict=True,
        )
    }


@settings(deadline=None, max_examples=60)
@given(a=regions, b=regions, dtype=st.sampled_from(FLOATS))
def test_union_and_intersection(a: list[int], b: list[int], dtype: torch.dtype) -> None:
    left, right = make(a, dtype, 1), make(b, dtype, 2)
    kept = pairs(left), pairs(right)
    union, both = left | right, left & right
    assert union.region().tolist() == sorted({*a, *b})
    assert both.region().tolist() == sorted({*a} & {*b})
    for entry, (value, before) in pairs(union).items():
        values = [side[entry] for side in kept if entry in side]
        mean = torch.tensor([v for v, _ in values], dtype=torch.float64).mean().to(dtype).item()
        assert value == mean
        assert {before} == {p for _, p in values}
    assert pairs(both) == {e: v for e, v in kept[0].items() if e in kept[1]}
    assert (pairs(left), pairs(right)) == kept
    assert_same(dict((right | left).values), dict(union.values))
    assert torch.equal((right & left).region(), both.region())
    for graft in (union, both):
        assert (graft.base, graft.shapes) == (left.base, left.shapes)
        assert {t.dtype for t in [*graft.values.values(), *graft.pretrained.values()]} == {dtype}
    model = Net(tensors(0, dtype))
    with active(model, union):
        pass
    assert_same(bits(model), tensors(0, dtype))


@settings(deadline=None, max_examples=30)
@given(a=regions, dtype=st.sampled_from(FLOATS))
def test_a_graft_with_itself(a: list[int], dtype: torch.dtype) -> None:
    graft = make(a, dtype)
    for same in (graft | graft, graft & graft):
        for kind in ("indices", "values", "pretrained"):
            assert_same(dict(getattr(same, kind)), dict(getattr(graft, kind)))
    assert graft.iou(graft) == (1.0 if a else 0.0)


def test_a_union_of_tensors_in_several_dtypes() -> None:
    """A checkpoint may keep its norms in fp32 beside bf16 matrices; no value passes through another dtype."""
    kinds = dict(
        zip(PRE, [torch.bfloat16, torch.float32, torch.bfloat16, torch.float64], strict=True)
    )

    def grafted(seed: int, chosen: list[int]) -> Graft:
        pair = ({n: t.to(kinds[n]) for n, t in tensors(s).items()} for s in (0, seed))
        return Graft.take(torch.tensor(chosen), *pair)

    a, b = grafted(1, [0, 3, 12, 15, 16, 24]), grafted(2, [1, 3, 13, 15, 20, 24])
    both = a | b
    for name, kind in kinds.items():
        entries: dict[int, list[Tensor]] = {}
        for graft in (a, b):
            for i, value in zip(graft.indices[name].tolist(), graft.values[name], strict=True):
                entries.setdefault(i, []).append(value)
        assert both.indices[name].tolist() == sorted(entries)
        assert both.values[name].dtype == both.pretrained[name].dtype == kind
        means = [sum(v.double() for v in entries[i]) / len(entries[i]) for i in sorted(entries)]
        assert both.values[name].tolist() == [mean.to(kind).item() for mean in means]
        expected = tensors(0)[name].to(kind).view(-1)[both.indices[name]]
        assert torch.equal(both.pretrained[name], expected)


def test_the_mean_of_large_values_does_not_overflow() -> None:
    base, big = {"a": torch.zeros(2, dtype=torch.float16)}, torch.tensor([60000.0, -50000.0])
    graft = Graft.take(torch.arange(2), base, {"a": big.half()})
    assert torch.equal((graft | graft).values["a"], graft.values["a"])


@settings(deadline=None, max_examples=30)
@given(a=regions, b=regions)
def test_the_algebra_of_stored_grafts_is_that_of_new_ones(tmp_path_factory, a, b) -> None:
    folder = tmp_path_factory.mktemp("algebra")
    new = [make(a, torch.bfloat16, 1), make(b, torch.bfloat16, 2)]
    stored = [Graft.load(graft.save(folder / "g")) for graft in new]
    assert_same_graft(stored[0] | stored[1], new[0] | new[1])
    assert_same_graft(stored[0] & stored[1], new[0] & new[1])


def test_overlap_counts_by_name_not_by_order() -> None:
    backwards = dict(reversed(PRE.items()))
    one, two = make([0, 5, 12]), Graft.take(torch.tensor([9, 13, 18]), backwards, FT)
    expected = {"0.weight": [0, 5], "0.bias": [0], "1.weight": [], "1.scale": []}
    for graft in (one, two):
        assert {n: i.tolist() for n, i in graft.indices.items()} == expected
    assert one.base == two.base
    assert one.iou(two) == 1
    assert (one & two).size == 3


@pytest.mark.parametrize(
    ("a", "b", "iou"), [([0, 1], [2, 3], 0), ([], [], 0), ([], [1], 0), ([0, 1, 2], [1, 2, 3], 0.5)]
)
def test_iou(a: list[int], b: list[int], iou: float) -> None:
    one, two = make(a), make(b, seed=2)
    assert one.iou(two) == two.iou(one) == iou


@settings(deadline=None, max_examples=30)
@given(a=regions, b=regions)
def test_overlap_against_sets(a: list[int], b: list[int]) -> None:
    found = make(a).overlap(make(b, seed=2))
    both, either = len({*a} & {*b}), len({*a, *b})
    assert found["iou"] == (both / either if either else None)
    assert found["a_in_b"] == (both / len(a) if a else None)
    assert found["b_in_a"] == (both / len(b) if b else None)


def test_different_bases_do_not_mix() -> None:
    one = make([0, 1], meta=META)
    other = Graft.take(torch.tensor([0]), tensors(5), FT, {"model": "odd"})
    for combine in (Graft.__or__, Graft.__and__, Graft.iou, Graft.overlap):
        with pytest.raises(GraftError, match=r"toy.*odd"):
            combine(one, other)


def test_meta_and_head_of_combinations() -> None:
    head, other = {"bias": torch.ones(2)}, {"bias": torch.zeros(2)}
    one, two = make([0], meta=META, head=head), make([1], meta={"task": "b"}, head=other)
    assert (one | two).meta["parents"] == [META, {"task": "b"}]
    assert (one | two).meta["rule"] == "union"
    assert (one & two).meta["rule"] == "intersection"
    assert (one | two).head == {}  # neither head serves both
    assert_same(dict((one | one).head), head)
    assert_same(dict((one & two).head), head)


# ------------------------------------------------------------------------ layers and modules

KINDS = [
    ("encoder.layer.0.attention.self.query.weight", "0", "query"),  # BERT, RoBERTa, ELECTRA
    ("encoder.layer.11.attention.self.key.bias", "11", "key"),
    ("roberta.encoder.layer.3.attention.self.value.weight", "3", "value"),
    ("encoder.layer.0.attention.output.dense.weight", "0", "attention output"),
    ("encoder.layer.0.attention.output.LayerNorm.weight", "0", "LayerNorm"),
    ("electra.encoder.layer.2.intermediate.dense.bias", "2", "MLP in"),
    ("encoder.layer.0.output.dense.weight", "0", "MLP out"),
    ("encoder.layer.0.output.LayerNorm.bias", "0", "LayerNorm"),
    ("transformer.layer.5.attention.q_lin.weight", "5", "query"),  # DistilBERT
    ("transformer.layer.5.attention.k_lin.bias", "5", "key"),
    ("transformer.layer.5.attention.v_lin.weight", "5", "value"),
    ("distilbert.transformer.layer.5.attention.out_lin.weight", "5", "attention output"),
    ("transformer.layer.5.sa_layer_norm.weight", "5", "LayerNorm"),
    ("transformer.layer.5.ffn.lin1.weight", "5", "MLP in"),
    ("transformer.layer.5.ffn.lin2.bias", "5", "MLP out"),
    ("transformer.layer.5.output_layer_norm.bias", "5", "LayerNorm"),
    ("encoder.layer.1.attention.self.query_proj.weight", "1", "query"),  # DeBERTa v2, v3
    ("encoder.layer.1.attention.self.key_proj.weight", "1", "key"),
    ("encoder.layer.1.attention.self.value_proj.bias", "1", "value"),
    ("deberta.encoder.layer.1.attention.output.dense.weight", "1", "attention output"),
    ("deberta.encoder.layer.1.attention.self.q_bias", "1", "query"),  # DeBERTa v1
    ("deberta.encoder.layer.1.attention.self.v_bias", "1", "value"),
    ("transformer.h.3.attn.c_attn.weight", "3", "attention in"),  # GPT-2
    ("h.3.attn.c_proj.bias", "3", "attention output"),
    ("h.3.mlp.c_fc.weight", "3", "MLP in"),
    ("h.3.mlp.c_proj.weight", "3", "MLP out"),
    ("h.3.ln_1.weight", "3", "LayerNorm"),
    ("h.3.ln_2.bias", "3", "LayerNorm"),
    ("model.layers.4.self_attn.q_proj.weight", "4", "query"),  # LLaMA, Qwen, SmolLM
    ("layers.4.self_attn.k_proj.bias", "4", "key"),
    ("layers.4.self_attn.v_proj.weight", "4", "value"),
    ("layers.4.self_attn.o_proj.weight", "4", "attention output"),
    ("layers.4.self_attn.q_norm.weight", "4", "LayerNorm"),
    ("layers.4.self_attn.k_norm.weight", "4", "LayerNorm"),
    ("layers.4.mlp.gate_proj.weight", "4", "MLP in"),
    ("layers.4.mlp.up_proj.weight", "4", "MLP in"),
    ("layers.4.mlp.down_proj.weight", "4", "MLP out"),
    ("layers.4.input_layernorm.weight", "4", "LayerNorm"),
    ("layers.4.post_attention_layernorm.weight", "4", "LayerNorm"),
    ("model.decoder.layers.0.self_attn.out_proj.weight", "0", "attention output"),  # OPT
    ("decoder.layers.0.self_attn_layer_norm.weight", "0", "LayerNorm"),
    ("decoder.layers.0.final_layer_norm.bias", "0", "LayerNorm"),
    ("decoder.layers.0.fc1.weight", "0", "MLP in"),
    ("decoder.layers.0.fc2.weight", "0", "MLP out"),
    ("embeddings.word_embeddings.weight", "other", "other"),
    ("scale", "other", "other"),
]


@pytest.mark.parametrize(("name", "layer", "kind"), KINDS)
def test_layer_and_module_of_a_name(name: str, layer: str, kind: str) -> None:
    assert layer_of(name) == layer
    assert module_of(name) == kind


def test_shares_by_layer_and_module_sum_to_one() -> None:
    rows = KINDS[:20]
    pretrained = {name: torch.zeros(2, 3) for name, _, _ in rows}
    finetuned = {name: torch.ones(2, 3) for name in pretrained}
    chosen = torch.arange(0, 6 * len(rows), 5)
    graft = Graft.take(chosen, pretrained, finetuned)
    for shares, at in ((shares_by_layer(graft), 1), (shares_by_module(graft), 2)):
        assert sum(shares.values()) == pytest.approx(1)
        assert set(shares) == {row[at] for row in rows}
        for group, share in shares.items():
            hits = sum(rows[i // 6][at] == group for i in chosen.tolist())
            assert share == pytest.approx(hits / len(chosen))
    nothing = Graft.take(torch.arange(0), pretrained, finetuned)
    assert (
        set(shares_by_layer(nothing).values()) == set(shares_by_module(nothing).values()) == {0.0}
    )


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "Electra", "DistilBert", "DebertaV2"])
def test_every_block_parameter_has_a_kind(kind: str) -> None:
    import transformers

    sizes = {"vocab_size": 11, "max_position_embeddings": 8}
    if kind == "DistilBert":
        sizes |= {"dim": 8, "hidden_dim": 8, "n_heads": 2, "n_layers": 2}
    else:
        sizes |= {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
        sizes |= {"intermediate_size": 8}
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}Model")(
            getattr(transformers, f"{kind}Config")(**sizes)
        )
    names = [name for name, _ in model.named_parameters() if ".layer." in name]
    assert {layer_of(name) for name in names} == {"0", "1"}
    kinds = {"query", "key", "value", "attention output", "MLP in", "MLP out", "LayerNorm"}
    assert {module_of(name) for name in names} == kinds
