"""Turn examples into token ids, with or without a template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from skillgraft.config.choices import Kind, Pool
from skillgraft.config.schema import RunConfig
from skillgraft.runtime.errors import InputError
from skillgraft.tasks.rows import Row
from skillgraft.tasks.templates import fill, parse_template, slot_last
from skillgraft.tasks.tokens import beginning, following, tokens, truncate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Encoded(NamedTuple):
    """One example as token ids, with the position at which the model is read.

    `ids` and `types` (token type ids) have the same length. `mask` is the position of the mask token, of
    the last token of an autoregressive prompt, or 0 (the first token) without a template. `label` is
    the index of the label.
    """

    ids: list[int]
    types: list[int]
    mask: int
    label: int


@dataclass(frozen=True)
class Encoder:
    """Turns examples into token ids of at most `max_length` tokens.

    With a `template`, an example fills the template's slots. Without one (None), the texts stand alone.
    With `causal`, the prompt ends where the label word would follow.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str | None
    max_length: int
    causal: bool = False

    def __call__(self, rows: Sequence[Row]) -> list[Encoded]:
        """Return the examples as token ids; too long ones lose tokens of their texts, not of the template."""
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
        """Return the token ids of a fixed part of the template, and no ids for a slot."""
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
        """Return a row as the template puts it, cut to the longest input.

        Args:
            row: the example.
            pieces: the template's parts in order, as (kind, text).
            literals: the ids of each part; empty for a slot, which the row fills.
            start: the ids of the tokens that begin every input.
            end: the ids of the tokens that end every input.
        """
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


def make_encoder(cfg: RunConfig, tokenizer: PreTrainedTokenizerBase, positions: int) -> Encoder:
    """Return the encoder for a configuration; raises InputError where the model cannot read its prompts.

    `positions` is the longest input of the model in tokens.
    """
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
    """Return the encoder for a kind of fine-tuning, with the template where the model is read inside it.

    Args:
        tokenizer: the model's tokenizer.
        kind: the kind of fine-tuning.
        pool: which hidden state a linear head reads; None without a head.
        template: the task's template; None where the task has none.
        max_length: the longest input, in tokens.
    """
    causal = kind is Kind.autoregressive or pool is Pool.last
    prompted = causal or kind is Kind.prompt or pool is Pool.mask
    return Encoder(tokenizer, template if prompted else None, max_length, causal)
