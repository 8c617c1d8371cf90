"""Progress bars with the time left, on the standard error: on a terminal, and nowhere else."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TypeVar

from hydra.core.hydra_config import HydraConfig

T = TypeVar("T")

unwanted: list[bool] = []  # not empty: `grafts --no-progress`


def shown(asked: bool | None = None) -> bool:
    """Return whether bars are drawn: as asked, else on a terminal outside of CI, for one job, if wanted.

    Bars of several jobs of a sweep on one terminal would write over each other.
    """
    if asked is not None:
        return asked
    alone = True
    if HydraConfig.initialized():
        alone = HydraConfig.get().launcher._target_.endswith(".BasicLauncher")
    return sys.stderr.isatty() and not os.environ.get("CI") and not unwanted and alone


def bar(items: Iterable[T], what: str, total: int, on: bool) -> Iterable[T]:
    """Return the items, with a bar as they are taken where it is `on`; it goes when it is full."""
    if not on:
        return items
    from tqdm import tqdm

    return tqdm(items, desc=what, total=total, leave=False, file=sys.stderr)
