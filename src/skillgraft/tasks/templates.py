"""Parse the templates of prompts, and fill templates with the texts of an example."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from skillgraft.runtime.errors import InputError
from skillgraft.tasks.rows import Row

SLOTS = re.compile(r"\*(text|a|b|mask)\*")
ENDS = ".,;:!?"  # punctuation that may be dropped at the end of the first text of a pair


def parse_template(template: str) -> list[tuple[str, str]]:
    """Return the parts of a template as (kind, text), where kind is literal, text, a, b or mask.

    A space before a text slot becomes part of the text, and a space before the mask is dropped:
    byte-level tokenizers join a space to the word that follows, and RoBERTa's mask token absorbs it.
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
    """Return the parts of a template as an autoregressive prompt, at whose end the label word follows.

    `*mask*` is dropped, with the literal text from there to the next slot or to the end. The label word
    always follows with a space. So `*text* It was *mask*.` ends in `It was`, `*mask*: *text*` becomes the
    text alone, and `*a*? *mask*, *b*` becomes `*a*? *b*`. This rule is our own, because the authors' code
    for causal models does not run.
    """
    at = [kind for kind, _ in pieces].index("mask")
    after = list(itertools.dropwhile(lambda piece: piece[0] == "literal", pieces[at + 1 :]))
    parts = list(pieces[:at])
    if after:  # the space before the mask now belongs to the next slot
        parts.append((after[0][0], " " if parts else ""))
    parts += after[1:]
    if parts[-1][0] == "literal":
        last = parts.pop()[1].rstrip(" ")
        parts += [("literal", last)] if last else []
    return parts


def fill(row: Row, pieces: Sequence[tuple[str, str]]) -> dict[int, str]:
    """Return the text of each slot by the slot's position in `pieces`.

    Pairs follow the rules of LM-BFF (Gao et al., ACL 2021): the first text loses its final punctuation
    mark before `?` or the mask, and the second text starts with a lower-case letter.
    """
    texts = {}
    for i, (kind, space) in enumerate(pieces):
        if kind in ("text", "a"):
            text = row.text.strip()
            follows = pieces[i + 1] if i + 1 < len(pieces) else ("", "")
            # Differs from the authors' code, which keeps the mark before the mask (MRPC and QQP): here one
            # rule holds for every pair template.
            if kind == "a" and (follows[0] == "mask" or follows[1].lstrip().startswith("?")):
                text = text[:-1].rstrip() if text[-1:] in ENDS and len(text) > 1 else text
            texts[i] = space + text
        elif kind == "b":
            text = (row.text_b or "").strip()
            texts[i] = space + text[:1].lower() + text[1:]
    return texts
