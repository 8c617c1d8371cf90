"""The right name that is most like a wrong one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, names: Iterable[str]) -> str:
    """Return ' Did you mean X?' for the name most like `word`, or nothing."""

    def likeness(name: str) -> float:
        return difflib.SequenceMatcher(None, name.casefold(), word.casefold()).ratio()

    best = max(names, key=likeness, default="")  # of equals the first
    return f" Did you mean '{best}'?" if best and likeness(best) >= 0.6 else ""
