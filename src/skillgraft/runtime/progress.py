"""Progress bars with the time left, on the standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def bar(items: Iterable[T], what: str, total: int, on: bool) -> Iterable[T]:
    """Return the items, with a bar as they are taken where it is `on`; it goes when it is full."""
    if not on:
        return items
    from tqdm import tqdm

    return tqdm(items, desc=what, total=total, leave=False, file=sys.stderr)
