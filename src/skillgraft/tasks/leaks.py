"""Find texts that occur both in a training set and in a test set."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from skillgraft.tasks.rows import Row


def normalized(row: Row) -> tuple[str, ...]:
    """Return the letters and digits of an example's texts, case-folded, for comparison.

    Collections differ in the spacing and punctuation of the same sentence. A text without letters and
    digits keeps its other characters, with white space normalized.
    """
    texts = (text.casefold() for text in row[:2] if text is not None)
    return tuple(re.sub(r"[\W_]+", "", text) or re.sub(r"\s+", " ", text).strip() for text in texts)


def contamination(
    trains: Mapping[str, tuple[Sequence[Row], Sequence[Row]]], tests: Mapping[str, Sequence[Row]]
) -> list[str]:
    """Return a note for each training set and test set that have a text in common.

    `trains` maps a task to all its training examples and to those that were drawn from them. A note
    counts the test examples whose text is among all, and among those drawn.
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
