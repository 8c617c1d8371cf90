"""Token ids of texts and of a verbalizer's label words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from skillgraft.config.schema import TaskConfig
from skillgraft.config.validation import verbalizer
from skillgraft.runtime.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of a text that stands alone, without special tokens."""
    return tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]


def following(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of a text that follows a word, without special tokens.

    The ids are those after a first word "a", because SentencePiece adds a space before the first word
    of a text.
    """
    start, whole = tokens(tokenizer, "a"), tokens(tokenizer, f"a{text}")
    return whole[len(start) :] if whole[: len(start)] == start else tokens(tokenizer, text)


def beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the special tokens that a tokenizer puts before a text: LLaMA <s>, OPT </s>, GPT-2 none."""
    plain, whole = tokens(tokenizer, "a"), tokenizer("a")["input_ids"]
    return whole[: next((i for i, _ in enumerate(whole) if whole[i:][: len(plain)] == plain), 0)]


def truncate(texts: list[list[int]], room: int) -> None:
    """Shorten the longest of the token lists at its end, in place, until all lists fit into `room` tokens."""
    while (total := sum(map(len, texts))) > room:
        texts.sort(key=len, reverse=True)
        longest, second = texts[0], len(texts[1]) if len(texts) > 1 else 0
        cut = min(total - room, max(1, len(longest) - second))
        del longest[len(longest) - cut :]


def words_to_ids(task: TaskConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token id of each label word with a leading space, in the order of the labels.

    Raises InputError where a word is not one token of the tokenizer, or two words are the same token.
    """
    ids = []
    for label, word in verbalizer(task).items():
        found = following(tokenizer, " " + word.strip())
        if not word.strip() or len(found) != 1 or found[0] == tokenizer.unk_token_id:
            pieces = tokenizer.convert_ids_to_tokens(found)
            raise InputError(
                f"task {task.name}: task.verbalizer: '{word}' (label '{label}') is not one token of "
                f"this model's tokenizer: {pieces}"
            )
        ids.append(found[0])
    if len(set(ids)) != len(ids):
        raise InputError(f"task {task.name}: task.verbalizer: two words are the same token")
    return ids
