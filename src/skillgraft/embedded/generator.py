"""Generate the tasks of the embedded suite, and the text on which its model is pre-trained."""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import NamedTuple

from skillgraft.embedded import lexicon as lex
from skillgraft.embedded.grammar import Dice
from skillgraft.embedded.pairs import Pair, entail, paraphrase
from skillgraft.embedded.texts import news, question, review, stance

Row = dict[str, str]
NOISE = 0.06  # share of labels replaced by another label: no model can be right about these
SIZES: Mapping[str, int] = {"test": 1000, "validation": 500, "train": 2000}

SENTIMENT = ("negative", "positive")
TOPIC = ("world", "sports", "business", "tech")
QUESTION = ("human", "location", "number", "entity", "description")
STANCE = ("subjective", "objective")
ENTAIL = ("not_entailment", "entailment")
PARAPHRASE = ("not_equivalent", "equivalent")


class _Task(NamedTuple):
    labels: tuple[str, ...]
    write: Callable[[Dice, str], str | Pair]
    shift_of: str | None = None  # the task of which this is an out-of-distribution test


_TASKS: Mapping[str, _Task] = {
    "toy_film": _Task(SENTIMENT, partial(review, goods="film")),
    "toy_book": _Task(SENTIMENT, partial(review, goods="book")),
    "toy_gadget": _Task(SENTIMENT, partial(review, goods="gadget")),
    "toy_topic": _Task(TOPIC, news),
    "toy_question": _Task(QUESTION, question),
    "toy_subj": _Task(STANCE, stance),
    "toy_entail": _Task(ENTAIL, entail),
    "toy_para": _Task(PARAPHRASE, paraphrase),
    "toy_film_slang": _Task(SENTIMENT, partial(review, goods="film", style="slang"), "toy_film"),
    "toy_book_long": _Task(SENTIMENT, partial(review, goods="book", style="long"), "toy_book"),
    "toy_gadget_negated": _Task(
        SENTIMENT, partial(review, goods="gadget", style="negated"), "toy_gadget"
    ),
    "toy_topic_chat": _Task(TOPIC, partial(news, style="chat"), "toy_topic"),
    "toy_question_indirect": _Task(QUESTION, partial(question, style="indirect"), "toy_question"),
    "toy_subj_gadget": _Task(STANCE, partial(stance, goods="gadget"), "toy_subj"),
    "toy_entail_chat": _Task(ENTAIL, partial(entail, style="chat"), "toy_entail"),
    "toy_para_food": _Task(PARAPHRASE, partial(paraphrase, goods=("food",)), "toy_para"),
}
TASKS: tuple[str, ...] = tuple(_TASKS)
LABELS: Mapping[str, tuple[str, ...]] = {name: task.labels for name, task in _TASKS.items()}


def rows(task: str, split: str) -> list[Row]:
    """Return the examples of a split: `text`, or `text_a` and `text_b`, and the name of the `label`.

    No text occurs twice in the splits of a task and its out-of-distribution test together.

    Raises:
        ValueError: for an unknown task, or a split that the task does not have.
    """
    if task not in _TASKS:
        raise ValueError(f"task={task!r}: expected one of {', '.join(TASKS)}")
    splits = _splits(task)
    if split not in splits:
        raise ValueError(f"split={split!r} of task {task}: expected one of {', '.join(splits)}")
    return [dict(row) for row in splits[split]]


@cache
def _splits(name: str) -> dict[str, list[Row]]:
    task = _TASKS[name]
    sizes = {"test": SIZES["test"]} if task.shift_of else SIZES
    relatives = _splits(task.shift_of) if task.shift_of else {}
    seen = {_key(row) for split in relatives.values() for row in split}
    return {split: _fresh_rows(Dice(name, split), task, n, seen) for split, n in sizes.items()}


def _fresh_rows(dice: Dice, task: _Task, n: int, seen: set[str]) -> list[Row]:
    """Return n examples whose texts are not in `seen`, and add their texts to `seen`."""
    split: list[Row] = []
    while len(split) < n:
        label = task.labels[len(split) % len(task.labels)]  # in turn: classes are balanced
        row = _row(task.write(dice, label), label)
        if _key(row) not in seen:
            seen.add(_key(row))
            split.append(row)
    for row in split:
        if dice.chance(NOISE):
            row["label"] = dice.pick([label for label in task.labels if label != row["label"]])
    return dice.shuffled(split)


def _row(text: str | Pair, label: str) -> Row:
    if isinstance(text, str):
        return {"text": text, "label": label}
    return {"text_a": text[0], "text_b": text[1], "label": label}


def _key(row: Row) -> str:
    return row.get("text") or f"{row['text_a']} {row['text_b']}"


# ---- pre-training text ------------------------------------------------------------------------
# The text contains the prompts of the tasks. The label words agree with a document's text only with
# probability AGREES, and are otherwise drawn from the unbalanced PRIORS. So the model learns which words
# may answer a prompt, but neither how strongly a text determines the answer nor how frequent the answers
# are. AGREES, PRIORS and `lexicon.CLOSERS` were set by trial, so that the model's zero-shot accuracy lies
# between chance and the accuracy of a fine-tuned model.

AGREES: Mapping[str, float] = {
    "review": 0.73, "news": 0.28, "question": 0.36, "stance": 0.245, "entail": 0.9,
    "paraphrase": 0.8,
}  # fmt: skip
PRIORS: Mapping[str, tuple[str, ...]] = {
    "review": ("positive", "positive", "positive", "negative"),
    "news": ("world", "world", "world", "sports", "business", "tech"),
    "question": (*("entity",) * 4, "human", "location", "number", "description"),
    "stance": ("subjective", "subjective", "objective"),
    "entail": ("yes", "no"),
    "paraphrase": ("yes", "yes", "no"),
}


def corpus(n: int, seed: int = 0) -> Iterator[str]:
    """Yield n documents of pre-training text, none of which contains a test or validation text."""
    dice = Dice("corpus", seed)
    kinds = (*_DOCUMENTS, *("review", "entail", "paraphrase") * 3, "question", "list")
    while n > 0:
        text, document = _DOCUMENTS[dice.pick(kinds)](dice)
        if _held_out().isdisjoint(_passages(text)):
            yield document
            n -= 1


@cache
def _held_out() -> frozenset[tuple[str, ...]]:
    splits = [_splits(name) for name in TASKS]
    rows = [row for told in splits for split in told if split != "train" for row in told[split]]
    return frozenset(_words(_key(row)) for row in rows)


def _passages(text: str) -> set[tuple[str, ...]]:
    """Return every sequence of consecutive words of a text, since a test question may be part of a text."""
    words = _words(text)
    ends = range(1, len(words) + 1)
    return {words[start:end] for end in ends for start in range(end)}


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text))


def _asked(dice: Dice, kind: str, truth: str) -> str:
    """Return the answer in a document of a kind: the truth with probability AGREES, else from PRIORS."""
    return truth if dice.chance(AGREES[kind]) else dice.pick(PRIORS[kind])


def _review_document(dice: Dice) -> tuple[str, str]:
    label = dice.pick(SENTIMENT)
    style = dice.pick((*("plain",) * 6, "slang", "long", "negated"))
    text = review(dice, label, dice.pick(tuple(lex.GOODS)), style)
    word = dice.pick(lex.CLOSERS[_asked(dice, "review", label)])
    return text, f"{text} {dice.pick(('it was', 'it was', 'it was', 'overall'))} {word}."


def _news_document(dice: Dice) -> tuple[str, str]:
    label = dice.pick(TOPIC)
    text = news(dice, label, dice.pick(("plain", "plain", "chat")))
    return text, f"{dice.pick(lex.TOPIC_HEADS[_asked(dice, 'news', label)])}: {text}"


def _question_document(dice: Dice) -> tuple[str, str]:
    label = dice.pick(QUESTION)
    text = question(dice, label, dice.pick(("plain", "plain", "indirect")))
    return text, f"{dice.pick(lex.ASKED_HEADS[_asked(dice, 'question', label)])}: {text}"


def _stance_document(dice: Dice) -> tuple[str, str]:
    label = dice.pick(STANCE)
    text = stance(dice, label, dice.pick(tuple(lex.GOODS)))
    return text, f"{text} this is {dice.pick(lex.STANCES[_asked(dice, 'stance', label)])}."


def _entail_document(dice: Dice) -> tuple[str, str]:
    label = dice.pick(ENTAIL)
    a, b = entail(dice, label, dice.pick(("plain", "plain", "chat")))
    answer = _asked(dice, "entail", "yes" if label == "entailment" else "no")
    return f"{a} {b}", f"{a[:-1]}? {dice.pick(lex.ANSWERS[answer])}, {b}"


def _paraphrase_document(dice: Dice) -> tuple[str, str]:
    label = dice.pick(PARAPHRASE)
    a, b = paraphrase(dice, label, tuple(lex.GOODS))
    answer = _asked(dice, "paraphrase", "yes" if label == "equivalent" else "no")
    return f"{a} {b}", f"{a[:-1]} {dice.pick(lex.ANSWERS[answer])}, {b}"


def _list_document(dice: Dice) -> tuple[str, str]:
    text = ", ".join(dice.shuffled(dice.pick(dice.pick(lex.FAMILIES)))[:6]) + "."
    return text, text


_DOCUMENTS: Mapping[str, Callable[[Dice], tuple[str, str]]] = {
    "review": _review_document,
    "news": _news_document,
    "question": _question_document,
    "stance": _stance_document,
    "entail": _entail_document,
    "paraphrase": _paraphrase_document,
    "list": _list_document,
}
