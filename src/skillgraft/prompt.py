"""Text → token ids: templates, verbalizers, and batches (method: section 6)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
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
    """One example as token ids.

    `mask` is the position that is read: the mask token's, the last token's of an autoregressive
    prompt, or 0 without a template.
    """

    ids: list[int]
    types: list[int]
    mask: int
    label: int


@dataclass(frozen=True)
class Encoder:
    """Turns rows into token ids: by template, or plainly where no position of it is read.

    With `causal`, the prompt ends where the verbalizer's word would follow.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str | None
    max_length: int
    causal: bool = False

    def __call__(self, rows: Sequence[Row]) -> list[Encoded]:
        """Return the rows as token ids of at most `max_length`; only their texts are cut."""
        if self.template is None:
            return [self._plain(row) for row in rows]
        pieces = parse_template(self.template)
        if self.causal:
            pieces = slot_last(pieces)
        before = ["", *(kind for kind, _ in pieces)]
        literals = [self._literal(*piece, before[i]) for i, piece in enumerate(pieces)]
        ends = ([self.tokenizer.cls_token_id], [self.tokenizer.sep_token_id])
        if self.causal:
            ends = (beginning(self.tokenizer), [])
        return [self._prompt(row, pieces, literals, *ends) for row in rows]

    def _literal(self, kind: str, text: str, before: str) -> list[int]:
        """Return the ids of a fixed part of the template; none for a slot of the row."""
        if kind == "mask":
            return [self.tokenizer.mask_token_id]
        if kind != "literal":
            return []
        if before not in ("", "mask"):
            return following(self.tokenizer, text)
        return tokens(self.tokenizer, text)

    def _prompt(
        self,
        row: Row,
        pieces: list[tuple[str, str]],
        literals: list[list[int]],
        start: list[int],
        end: list[int],
    ) -> Encoded:
        filled = {}
        for i, text in fill(row, pieces).items():
            read = following if self.causal and i else tokens
            filled[i] = read(self.tokenizer, text)
        room = self.max_length - len(start) - len(end) - sum(map(len, literals))
        if room < len(filled):
            raise InputError(
                f"task.max_length={self.max_length}: no room for text beside the template"
            )
        truncate(list(filled.values()), room)
        ids = list(start)
        for i, literal in enumerate(literals):
            ids += filled.get(i, literal)
        ids += end
        if self.causal:
            return Encoded(ids, [0] * len(ids), len(ids) - 1, row.label)
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


def slot_last(pieces: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return a template's parts as an autoregressive prompt, which the verbalizer's word follows.

    `*mask*` goes to the end, and what stands between it and the next text, or the end, is dropped;
    the word always follows with a space. So `*text* It was *mask*.` ends in `It was`, `*mask*:
    *text*` is the text alone, and `*a*? *mask*, *b*` is `*a*? *b*`. (Ours: the authors' code for
    causal models does not run.)
    """
    at = [kind for kind, _ in pieces].index("mask")
    after = list(itertools.dropwhile(lambda piece: piece[0] == "literal", pieces[at + 1 :]))
    parts = list(pieces[:at])
    if after:  # its space before was the slot's
        parts.append((after[0][0], " " if parts else ""))
    parts += after[1:]
    if parts[-1][0] == "literal":
        last = parts.pop()[1].rstrip(" ")
        parts += [("literal", last)] if last else []
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


def make_encoder(cfg: RunConfig, tokenizer: PreTrainedTokenizerBase, positions: int) -> Encoder:
    """Return the encoder that the configuration asks for; `positions` is the model's longest input."""
    task, finetune = cfg.task, cfg.finetune
    if task.max_length > positions:
        raise InputError(
            f"task.max_length={task.max_length}: model {cfg.model.name} ends at {positions}"
        )
    parse_template(task.template)
    pool = finetune.pool if finetune.kind is Kind.linear else None
    found = encoder(tokenizer, finetune.kind, pool, task.template, task.max_length)
    if found.template is not None and not found.causal and tokenizer.mask_token_id is None:
        raise InputError(
            f"model {cfg.model.name}: its tokenizer has no mask token; use finetune=linear"
        )
    return found


def encoder(
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind,
    pool: Pool | None,
    template: str | None,
    max_length: int,
) -> Encoder:
    """Return the encoder of a kind of fine-tuning: by the template where a position of it is read."""
    causal = kind is Kind.autoregressive or pool is Pool.last
    prompted = causal or kind is Kind.prompt or pool is Pool.mask
    return Encoder(tokenizer, template if prompted else None, max_length, causal)


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


def to_device(batch: Mapping[str, Tensor], device: torch.device) -> Batch:
    """Return a batch on a device; to a GPU through pinned memory, so that nobody waits for the copy."""
    if device.type != "cuda":
        return {name: tensor.to(device) for name, tensor in batch.items()}
    return {n: tensor.pin_memory().to(device, non_blocking=True) for n, tensor in batch.items()}


def in_batches(order: Sequence[int], size: int) -> list[list[int]]:
    """Return consecutive groups of `size` positions; the last may be shorter."""
    return [list(order[i : i + size]) for i in range(0, len(order), size)]


def by_length(examples: Sequence[Encoded], size: int) -> Iterator[list[int]]:
    """Yield groups of positions with examples of like length together, for less padding."""
    order = sorted(range(len(examples)), key=lambda i: (len(examples[i].ids), i))
    yield from in_batches(order, size)
