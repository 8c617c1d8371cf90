"""Text → token ids: templates, verbalizers, and batches (method: section 6)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from skillgraft.config import Kind, Pool, RunConfig, TaskConfig, verbalizer
from skillgraft.data import Row
from skillgraft.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SLOTS = re.compile(r"\*(text|a|b|mask)\*")
ENDS = ".,;:!?"  # what may be dropped at the end of the first text of a pair


class Encoded(NamedTuple):
    """One example as token ids; `mask` is the mask token's position, or 0 without a template."""

    ids: list[int]
    types: list[int]
    mask: int
    label: int


@dataclass(frozen=True)
class Encoder:
    """Turns rows into token ids: by template, or plainly where no mask token is read."""

    tokenizer: PreTrainedTokenizerBase
    template: str | None
    max_length: int

    def __call__(self, rows: Sequence[Row]) -> list[Encoded]:
        """Return the rows as token ids of at most `max_length`; only their texts are cut."""
        if self.template is None:
            return [self._plain(row) for row in rows]
        pieces = parse_template(self.template)
        before = ["", *(kind for kind, _ in pieces)]
        literals = [self._literal(*piece, before[i]) for i, piece in enumerate(pieces)]
        return [self._prompt(row, pieces, literals) for row in rows]

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)[
            "input_ids"
        ]

    def _literal(self, kind: str, text: str, before: str) -> list[int]:
        """Return the ids of a fixed part of the template; none for a slot of the row."""
        if kind == "mask":
            return [self.tokenizer.mask_token_id]
        if kind != "literal":
            return []
        if before not in ("", "mask"):  # DeBERTa puts a space before a first word
            start = self._tokens("a")
            whole = self._tokens(f"a{text}")
            if whole[: len(start)] == start:
                return whole[len(start) :]
        return self._tokens(text)

    def _prompt(
        self, row: Row, pieces: list[tuple[str, str]], literals: list[list[int]]
    ) -> Encoded:
        cls, sep = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        texts = fill(row, pieces)
        filled = {i: self._tokens(text) for i, text in texts.items()}
        room = self.max_length - 2 - sum(map(len, literals))
        if room < len(filled):
            raise InputError(
                f"task.max_length={self.max_length}: no room for text beside the template"
            )
        truncate(list(filled.values()), room)
        ids = [cls]
        for i, literal in enumerate(literals):
            ids += filled.get(i, literal)
        ids.append(sep)
        if ids.count(self.tokenizer.mask_token_id) != 1:
            raise InputError(
                f"a text contains the mask token {self.tokenizer.mask_token}: "
                + " and ".join(repr(text) for text in row[:2] if text is not None)
            )
        return Encoded(ids, [0] * len(ids), ids.index(self.tokenizer.mask_token_id), row.label)

    def _plain(self, row: Row) -> Encoded:
        out = self.tokenizer(
            row.text,
            row.text_b,
            truncation="longest_first",
            max_length=self.max_length,
            return_token_type_ids=True,
        )
        return Encoded(out["input_ids"], out["token_type_ids"], 0, row.label)


def parse_template(template: str) -> list[tuple[str, str]]:
    """Return the template's parts as (kind, text): kind is literal, text, a, b or mask.

    A space before a text slot becomes part of the text, and one before the mask is dropped: so do
    byte-level tokenizers read the whole string.
    """
    parts: list[tuple[str, str]] = []
    pieces = SLOTS.split(template)
    for i, piece in enumerate(pieces):
        if i % 2:
            spaced = pieces[i - 1].endswith(" ")
            parts.append((piece, " " if spaced and piece != "mask" else ""))
        elif piece.rstrip(" ") if i + 1 < len(pieces) else piece:
            parts.append(("literal", piece.rstrip(" ") if i + 1 < len(pieces) else piece))
    kinds = [kind for kind, _ in parts]
    if kinds.count("mask") != 1:
        raise InputError(f"task.template={template!r}: expected exactly one *mask*")
    slots = sorted(kind for kind in kinds if kind in ("text", "a", "b"))
    if slots not in (["text"], ["a", "b"]):
        raise InputError(f"task.template={template!r}: expected *text*, or *a* and *b*, once each")
    return parts


def fill(row: Row, pieces: Sequence[tuple[str, str]]) -> dict[int, str]:
    """Return the text of each slot, with LM-BFF's rules for pairs (method: section 6)."""
    texts = {}
    for i, (kind, space) in enumerate(pieces):
        if kind in ("text", "a"):
            text = row.text.strip()
            follows = pieces[i + 1] if i + 1 < len(pieces) else ("", "")
            if kind == "a" and (follows[0] == "mask" or follows[1].lstrip().startswith("?")):
                text = text[:-1].rstrip() if text[-1:] in ENDS and len(text) > 1 else text
            texts[i] = space + text
        elif kind == "b":
            text = (row.text_b or "").strip()
            texts[i] = space + text[:1].lower() + text[1:]
    return texts


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
        tokens = tokenizer(" " + word.strip(), add_special_tokens=False)["input_ids"]
        if not word.strip() or len(tokens) != 1 or tokens[0] == tokenizer.unk_token_id:
            pieces = tokenizer.convert_ids_to_tokens(tokens)
            raise InputError(
                f"task {task.name}: task.verbalizer: '{word}' (label '{label}') is not one token of "
                f"this model's tokenizer: {pieces}"
            )
        ids.append(tokens[0])
    if len(set(ids)) != len(ids):
        raise InputError(f"task {task.name}: task.verbalizer: two words are the same token")
    return ids


def make_encoder(cfg: RunConfig, tokenizer: PreTrainedTokenizerBase, positions: int) -> Encoder:
    """Return the encoder that the configuration asks for; `positions` is the model's longest input."""
    task, finetune = cfg.task, cfg.finetune
    if task.max_length > positions:
        raise InputError(
            f"task.max_length={task.max_length}: model {cfg.model.name} ends at {positions}"
        )
    parse_template(task.template)
    prompted = finetune.kind is Kind.prompt or finetune.pool is Pool.mask
    if prompted and tokenizer.mask_token_id is None:
        raise InputError(
            f"model {cfg.model.name}: its tokenizer has no mask token; use finetune=linear"
        )
    return Encoder(tokenizer, task.template if prompted else None, task.max_length)


# ---------------------------------------------------------------------------------------------
# Batches

Batch = dict[str, Tensor]


def collate(examples: Sequence[Encoded], pad: int) -> Batch:
    """Return one batch, padded on the right to its longest example.

    `input_ids`, `attention_mask`, `token_type_ids`: (B, T) int64; `mask_position`, `labels`: (B,).
    """
    longest = max(len(example.ids) for example in examples)
    ids = torch.full((len(examples), longest), pad)
    types = torch.zeros_like(ids)
    attention = torch.zeros_like(ids)
    for i, example in enumerate(examples):
        ids[i, : len(example.ids)] = torch.tensor(example.ids)
        types[i, : len(example.types)] = torch.tensor(example.types)
        attention[i, : len(example.ids)] = 1
    return {
        "input_ids": ids,
        "attention_mask": attention,
        "token_type_ids": types,
        "mask_position": torch.tensor([example.mask for example in examples]),
        "labels": torch.tensor([example.label for example in examples]),
    }


def in_batches(order: Sequence[int], size: int) -> list[list[int]]:
    """Return consecutive groups of `size` positions; the last may be shorter."""
    return [list(order[i : i + size]) for i in range(0, len(order), size)]


def by_length(examples: Sequence[Encoded], size: int) -> Iterator[list[int]]:
    """Yield groups of positions with examples of like length together, for less padding."""
    order = sorted(range(len(examples)), key=lambda i: (len(examples[i].ids), i))
    yield from in_batches(order, size)
