"""Named random choices, and templates with slots, from which the texts of the suite are generated."""

import random
import re
from collections.abc import Sequence
from typing import TypeVar

from skillgraft.embedded.lexicon import COMMON, Lexicon

T = TypeVar("T")


class Dice:
    """Random choices that depend on a name alone.

    All choices come from `random.random()`, the only method of `random` whose values Python guarantees
    for later versions.
    """

    def __init__(self, *name: object) -> None:
        """Start the sequence of choices of a name, for example `Dice("toy_film", "test")`."""
        self._random = random.Random("/".join(map(str, name))).random

    def chance(self, p: float) -> bool:
        """Return True with probability p."""
        return self._random() < p

    def pick(self, items: Sequence[T]) -> T:
        """Return one of the items, each equally likely."""
        return items[int(self._random() * len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """Return the items in random order."""
        return sorted(items, key=lambda _: self._random())


class _Slots:
    """A mapping for `str.format_map` that draws a phrase for each slot and fills the phrase's own slots."""

    def __init__(self, dice: Dice, lexicon: Lexicon) -> None:
        self.dice, self.lexicon = dice, lexicon

    def __getitem__(self, slot: str) -> str:
        return self.dice.pick(self.lexicon[slot]).format_map(self)


def say(dice: Dice, template: str, *lexicons: Lexicon, **fixed: str) -> str:
    """Return a template with its slots filled from lexicons.

    A later lexicon replaces the slots of an earlier one, and `fixed` words replace the slots of all.
    """
    words = dict(COMMON)
    for lexicon in lexicons:
        words.update(lexicon)
    words.update({slot: (word,) for slot, word in fixed.items()})
    text = template.format_map(_Slots(dice, words))
    return re.sub(r"\ba (?=[aeiou])", "an ", text)
