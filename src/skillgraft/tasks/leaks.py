"""Texts that two splits share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from skillgraft.tasks.rows import Row


def normalized(row: Row) -> tuple[str, ...]:
    """Return the letters and digits of a row's texts, without regard to case.

    One sentence is spaced and punctuated otherwise in every collection that has it. A text without any
    keeps what it has, but for its white space.
    """
    texts = (text.casefold() for text in row[:2] if text is not None)
    return tuple(re.sub(r"[\W_]+", "", text) or re.sub(r"\s+", " ", text).strip() for text in texts)


def contamination(
    trains: Mapping[str, tuple[Sequence[Row], Sequence[Row]]], tests: Mapping[str, Sequence[Row]]
) -> list[str]:
    """Return a note for each task's training set and each task's test that have a text in common.

    A training set is all its rows and those drawn from them; a note counts the test rows that are in
    each.
    """
    texts = {name: [normalized(row) for row in rows] for name, rows in tests.items()}
    notes = []
    for task, rows in trains.items():
        every, drawn = ({normalized(row) for row in part} for part in rows)
        for name, test in texts.items():
            if shared := sum(text in every for text in test):
                few = sum(text in drawn for text in test)
                notes.append(
                    f"{name}: {shared} of {len(test)} test rows have a text that is also in "
                    f"{task}'s train rows ({few} in those drawn)"
                )
    return notes
