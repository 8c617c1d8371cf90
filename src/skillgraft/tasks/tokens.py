"""Texts as token ids, and the words of a verbalizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from skillgraft.config.schema import TaskConfig
from skillgraft.config.validation import verbalizer
from skillgraft.runtime.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a text by itself, without special tokens."""
    return tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]


def following(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a text where it follows a word: SentencePiece puts a space before a first one."""
    start, whole = tokens(tokenizer, "a"), tokens(tokenizer, f"a{text}")
    return whole[len(start) :] if whole[: len(start)] == start else tokens(tokenizer, text)


def beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return what the tokenizer itself puts before a text: LLaMA's <s>, OPT's </s>, GPT-2's nothing."""
    plain, whole = tokens(tokenizer, "a"), tokenizer("a")["input_ids"]
    return whole[: next((i for i, _ in enumerate(whole) if whole[i:][: len(plain)] == plain), 0)]


def truncate(texts: list[list[int]], room: int) -> None:
    """Cut the longest of the token lists from its end, in place, until all fit into `room`."""
    while (total := sum(map(len, texts))) > room:
        texts.sort(key=len, reverse=True)
        longest, second = texts[0], len(texts[1]) if len(texts) > 1 else 0
        cut = min(total - room, max(1, len(longest) - second))
        del longest[len(longest) - cut :]


def words_to_ids(task: TaskConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token id of each label's word, with its leading space; one token each or InputError."""
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
