"""Templates, verbalizers and batches, against each tokenizer's own reading of the whole string."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import TOKENIZERS, WORDS, tokenizer
from runs import composed
from skillgraft.config.schema import RunConfig, TaskConfig
from skillgraft.runtime.errors import InputError
from skillgraft.tasks import batches, templates, tokens
from skillgraft.tasks.encoder import Encoded, Encoder, make_encoder
from skillgraft.tasks.rows import Row

KINDS = sorted(set(TOKENIZERS.values()))
SINGLE = ("*text* It was *mask*.", "*mask*: *text*", "*text* This is *mask* .", "*text* *mask*")
PAIR = ("*a*? *mask*, *b*", "*a* *mask*, *b*", "*mask*: *a* so *b*", "*a* ? *mask* , *b*")
TEXTS = st.lists(
    st.sampled_from(
        ["A", "warm", "film", "zebra", "city", "It's", "3.5", "naïve", "日本", "great"]
    ),
    min_size=1,
    max_size=12,
).map(" ".join)


def encoder(kind: str, template: str | None, max_length: int = 200) -> Encoder:
    return Encoder(tokenizer(kind), template, max_length)


def task(**values: object) -> TaskConfig:
    plain = TaskConfig(name="mine", labels=["negative", "positive"])
    plain.verbalizer = {"negative": "terrible", "positive": "great"}
    for key, value in values.items():
        setattr(plain, key, value)
    return plain


# ------------------------------------------------------------------------------- the whole string


@pytest.mark.parametrize("template", SINGLE)
@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS)
@settings(max_examples=25, deadline=None)
def test_single_is_the_whole_string(kind: str, template: str, text: str) -> None:
    own = tokenizer(kind)
    [row] = encoder(kind, template)([Row(text, None, 1)])
    whole = template.replace("*text*", text).replace("*mask*", own.mask_token)
    assert row.ids == own(whole)["input_ids"]
    assert row.ids[row.mask] == own.mask_token_id
    assert row.types == [0] * len(row.ids)
    assert row.label == 1


@pytest.mark.parametrize("template", PAIR)
@pytest.mark.parametrize("kind", KINDS)
@given(a=TEXTS, b=TEXTS)
@settings(max_examples=25, deadline=None)
def test_pair_is_the_whole_string(kind: str, template: str, a: str, b: str) -> None:
    own = tokenizer(kind)
    [row] = encoder(kind, template)([Row(a, b, 0)])
    whole = template.replace("*a*", a).replace("*mask*", own.mask_token)
    whole = whole.replace("*b*", b[0].lower() + b[1:])
    assert row.ids == own(whole)["input_ids"]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("*text* It was *mask*.", "<s>A warm film It was<mask>.</s>"),
        ("*mask*: *text*", "<s><mask>: A warm film</s>"),
    ],
)
def test_words_after_a_slot_keep_their_space(template: str, expected: str) -> None:
    own = tokenizer("bytes")
    [row] = encoder("bytes", template)([Row("A warm film", None, 0)])
    assert own.decode(row.ids, clean_up_tokenization_spaces=False) == expected


# ------------------------------------------------------------------------------- LM-BFF's pair rules

A_MASK, A_QUESTION, A_WORD = "*a* *mask*, *b*", "*a*? *mask*, *b*", "*a* so *mask* , *b*"


@pytest.mark.parametrize(
    ("template", "a", "b", "filled_a", "filled_b"),
    [
        (A_QUESTION, "It rains.", "The street is wet.", "It rains", "the street is wet."),
        (A_QUESTION, "Does it rain?", "Yes.", "Does it rain", "yes."),
        (A_QUESTION, "It rains", "Wet", "It rains", "wet"),
        (A_QUESTION, "It rains !", "éa", "It rains", "éa"),
        (A_QUESTION, "Wait...", "Été", "Wait..", "été"),  # one mark only
        (A_QUESTION, "a ? b", "B", "a ? b", "b"),
        (A_QUESTION, "(so)", "USA", "(so)", "uSA"),
        (A_QUESTION, "?", "B", "?", "b"),  # nothing would be left
        (A_QUESTION, "  It rains.  ", "  Wet  ", "It rains", "wet"),
        (A_MASK, "It rains.", "It pours.", "It rains", "it pours."),
        (A_MASK, "It rains;", "It pours", "It rains", "it pours"),
        ("*a* ? *mask* , *b*", "It rains .", "Wet .", "It rains", "wet ."),
        (A_WORD, "It rains.", "It pours.", "It rains.", "it pours."),
    ],
)
def test_pair_rules(template: str, a: str, b: str, filled_a: str, filled_b: str) -> None:
    pieces = templates.parse_template(template)
    filled = templates.fill(Row(a, b, 0), pieces)
    texts = {pieces[i][0]: text.removeprefix(" ") for i, text in filled.items()}
    assert texts == {"a": filled_a, "b": filled_b}


def test_single_texts_keep_case_and_punctuation() -> None:
    pieces = templates.parse_template("*text* *mask*.")
    assert templates.fill(Row(" Was it good? ", None, 0), pieces) == {0: "Was it good?"}


# ------------------------------------------------------------------------------- truncation

LONG = st.integers(1, 60).map(lambda n: " ".join(["film"] * n))


@pytest.mark.parametrize("template", [*SINGLE[:2], *PAIR[:2]])
@pytest.mark.parametrize("kind", KINDS)
@given(a=LONG, b=LONG, max_length=st.integers(14, 64))
@settings(max_examples=30, deadline=None)
def test_only_texts_are_cut(kind: str, template: str, a: str, b: str, max_length: int) -> None:
    pair, own = "*b*" in template, tokenizer(kind)
    row = Row(a, b if pair else None, 0)
    [cut] = encoder(kind, template, max_length)([row])
    [whole] = encoder(kind, template)([row])
    [film] = own(" film", add_special_tokens=False)["input_ids"]
    # at the very start a byte-level tokenizer reads the word without its space
    films = {film, *own("film", add_special_tokens=False)["input_ids"]}
    assert len(cut.ids) == len(cut.types) == min(len(whole.ids), max_length)
    assert cut.ids.count(own.mask_token_id) == 1
    assert cut.ids[cut.mask] == own.mask_token_id
    assert [i for i in cut.ids if i not in films] == [i for i in whole.ids if i not in films]
    if pair:  # the longer text is cut first: none ends up shorter than it must
        lengths = sorted(len(part) for part in spans(cut.ids, films))
        assert len(lengths) == 2
        if len(whole.ids) > max_length:
            before = sorted(len(part) for part in spans(whole.ids, films))
            assert lengths[0] == before[0] or lengths[1] - lengths[0] <= 1


def spans(ids: list[int], within: set[int]) -> list[list[int]]:
    """Return the runs of consecutive ids that are in `within`."""
    parts: list[list[int]] = [[]]
    for i in ids:
        parts = [*parts[:-1], [*parts[-1], i]] if i in within else [*parts, []]
    return [part for part in parts if part]


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=2),
    room=st.integers(2, 50),
)
def test_truncate(lengths: list[int], room: int) -> None:
    texts = [list(range(n)) for n in lengths]
    kept = list(texts)  # the lists themselves are cut, in place
    tokens.truncate(texts, room)
    after = [len(text) for text in kept]
    assert sum(after) == min(sum(lengths), room)
    for text, before in zip(kept, lengths, strict=True):
        assert text == list(range(before))[: len(text)]  # from its end
        if len(text) < before:
            assert len(text) >= max(after) - 1  # only the longest are cut


@pytest.mark.parametrize("kind", KINDS)
def test_no_room_for_text(kind: str) -> None:
    with pytest.raises(InputError, match=r"task\.max_length=3.*room"):
        encoder(kind, SINGLE[0], 3)([Row("so", None, 0)])


@pytest.mark.parametrize("kind", KINDS)
def test_plain_is_the_tokenizer_itself(kind: str) -> None:
    own, rows = tokenizer(kind), [Row("A warm film", None, 0), Row("A film " * 30, "The city", 1)]
    encoded = encoder(kind, None, 12)(rows)
    for row, out in zip(rows, encoded, strict=True):
        whole = own(row.text, row.text_b, truncation="longest_first", max_length=12)
        assert out.ids == whole["input_ids"]
        assert out.mask == 0
        assert len(out.types) == len(out.ids) <= 12
    assert (1 in encoded[1].types) == (kind != "bytes")  # RoBERTa has one token type


# ------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("", "exactly one *mask*"),
        ("*text*", "exactly one *mask*"),
        ("*text* *mask* *mask*", "exactly one *mask*"),
        ("*mask*", "*text*, or *a* and *b*"),
        ("*a* *mask*", "*text*, or *a* and *b*"),
        ("*b* *mask*", "*text*, or *a* and *b*"),
        ("*a* *a* *mask* *b*", "*text*, or *a* and *b*"),
        ("*text* *b* *mask*", "*text*, or *a* and *b*"),
        ("*text* *text* *mask*", "*text*, or *a* and *b*"),
        ("*Text* *mask*", "*text*, or *a* and *b*"),
    ],
)
def test_templates_that_do_not_fit(template: str, expected: str) -> None:
    with pytest.raises(InputError) as error:
        templates.parse_template(template)
    assert expected in str(error.value)
    assert f"task.template={template!r}" in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["text", "b"])
def test_a_text_with_the_mask_token(kind: str, where: str) -> None:
    bad = f"so {tokenizer(kind).mask_token} far"
    row = Row(bad, None, 0) if where == "text" else Row("so", bad, 0)
    with pytest.raises(InputError, match="mask token") as error:
        encoder(kind, SINGLE[0] if where == "text" else PAIR[0])([row])
    assert "far" in str(error.value)  # the text that has it, not its neighbour
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_their_tokens(kind: str) -> None:
    own, labels = tokenizer(kind), [f"label {word}" for word in WORDS]
    words = dict(zip(reversed(labels), reversed(WORDS), strict=True))
    ids = tokens.words_to_ids(task(labels=labels, verbalizer=words), own)
    for word, token in zip(WORDS, ids, strict=True):
        assert own.decode([token]).strip().lower() == word.lower()
        # the token that stands for the word in running text
        assert own(f"so {word}", add_special_tokens=False)["input_ids"][-1:] == [token]


def test_words_have_their_leading_space() -> None:
    [_, great] = tokens.words_to_ids(task(), tokenizer("bytes"))
    assert tokenizer("bytes").convert_ids_to_tokens(great) == "Ġgreat"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("word", ["greatest", "very great", "", "日本", "Ω"])
def test_a_word_that_is_not_one_token(kind: str, word: str) -> None:
    bad = task(verbalizer={"negative": "terrible", "positive": word})
    with pytest.raises(InputError, match=r"task\.verbalizer.*not one token") as error:
        tokens.words_to_ids(bad, tokenizer(kind))
    assert f"'{word}'" in str(error.value)
    assert "'positive'" in str(error.value)
    assert "task mine" in str(error.value)


def test_two_words_that_a_lower_casing_tokenizer_merges() -> None:
    bad = task(verbalizer={"negative": "Great", "positive": "great"})
    with pytest.raises(InputError, match="same token"):
        tokens.words_to_ids(bad, tokenizer("wordpiece"))


# ------------------------------------------------------------------------------- which encoder


def settings_of(*overrides: str) -> RunConfig:
    return composed("task=cr", "model=hub", "model.path=.", *overrides)


@pytest.mark.parametrize(
    ("overrides", "template"),
    [
        ((), "*text* It was *mask*."),
        (("finetune=linear", "finetune.pool=mask"), "*text* It was *mask*."),
        (("finetune=linear", "finetune.pool=mean"), None),
        (("finetune=linear", "finetune.pool=first"), None),
    ],
)
def test_make_encoder(overrides: tuple[str, ...], template: str | None) -> None:
    made = make_encoder(settings_of(*overrides), tokenizer("wordpiece"), 512)
    assert made == Encoder(tokenizer("wordpiece"), template, 128)


def test_max_length_beyond_the_model() -> None:
    with pytest.raises(InputError, match=r"task\.max_length=128.*hub.*127"):
        make_encoder(settings_of(), tokenizer("wordpiece"), 127)


def test_no_mask_token() -> None:
    import copy

    bare = copy.deepcopy(tokenizer("bytes"))
    bare.mask_token = None
    with pytest.raises(InputError, match="no mask token; use finetune=linear"):
        make_encoder(settings_of(), bare, 512)
    assert make_encoder(settings_of("finetune=linear"), bare, 512).template is None


# ------------------------------------------------------------------------------- batches


def test_collate() -> None:
    batch = batches.collate([Encoded([5, 6, 7], [0, 0, 1], 2, 1), Encoded([8], [0], 0, 0)], 9)
    expected = {
        "input_ids": [[5, 6, 7], [8, 9, 9]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "token_type_ids": [[0, 0, 1], [0, 0, 0]],
        "mask_position": [2, 0],
        "labels": [1, 0],
    }
    assert {name: tensor.tolist() for name, tensor in batch.items()} == expected
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


class Recorded:
    """Stands for a tensor: notes how it gets to its device."""

    def __init__(self) -> None:
        self.calls: list[object] = []

    def pin_memory(self) -> Recorded:
        self.calls.append("pinned")
        return self

    def to(self, device: torch.device, non_blocking: bool = False) -> Recorded:
        self.calls.append((device.type, non_blocking))
        return self


@pytest.mark.parametrize(
    ("device", "calls"), [("cpu", [("cpu", False)]), ("cuda", ["pinned", ("cuda", True)])]
)
def test_only_a_gpu_has_its_batches_pinned(device: str, calls: list[object]) -> None:
    batch = batches.to_device({"labels": Recorded()}, torch.device(device))
    assert batch["labels"].calls == calls


@given(lengths=st.lists(st.integers(1, 20), max_size=40), size=st.integers(1, 9))
def test_by_length_covers_each_row_once(lengths: list[int], size: int) -> None:
    rows = [Encoded([0] * n, [0] * n, 0, 0) for n in lengths]
    groups = list(batches.by_length(rows, size))
    assert sorted(i for group in groups for i in group) == list(range(len(rows)))
    assert all(len(group) == size for group in groups[:-1])
    in_order = [lengths[i] for group in groups for i in group]
    assert in_order == sorted(lengths)


@given(order=st.permutations(range(7)), size=st.integers(1, 8))
def test_in_batches_keeps_the_order(order: list[int], size: int) -> None:
    groups = batches.in_batches(order, size)
    assert [i for group in groups for i in group] == order
    assert [len(group) for group in groups[:-1]] == [size] * (len(groups) - 1)
