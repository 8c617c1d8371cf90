"""A claim by its name: a module of this package, or an entry point of another one."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import cast

import pandas as pd

from skillgraft.analysis.claims.statements import ClaimResult
from skillgraft.config.nearest import nearest
from skillgraft.config.schema import ClaimConfig
from skillgraft.runtime.errors import InputError

PACKAGE = "skillgraft.analysis.claims"
ENTRY_POINTS = "skillgraft.claims"  # the group: a name, and the function as MODULE:FUNCTION
JUDGE = "judge"  # the function of a module that is a claim

Judge = Callable[[pd.DataFrame, ClaimConfig], ClaimResult]


def find_claim(name: str) -> Judge:
    """Return the function that judges the claim of a name; a claim of this package comes first.

    Raises InputError for a name that no claim has, or where the entry point of a claim fails.
    """
    if name in modules() and (judge := judge_of(name)) is not None:
        return judge
    for entry in entry_points(group=ENTRY_POINTS, name=name):
        try:
            return cast(Judge, entry.load())
        except (ImportError, AttributeError) as error:
            raise InputError(f"claim.name={name}: {entry.value} fails: {error}") from error
    known = names()
    raise InputError(
        f"claim.name={name}: expected one of {', '.join(known)}.{nearest(name, known)}"
    )


def names() -> list[str]:
    """Return the names of all claims: those of this package, and those of installed packages."""
    ours = {name for name in modules() if judge_of(name) is not None}
    return sorted(ours | entry_points(group=ENTRY_POINTS).names)


def modules() -> set[str]:
    """Return the names of the modules of this package: the claims, and what they share."""
    return {module.name for module in iter_modules(import_module(PACKAGE).__path__)}


def judge_of(module: str) -> Judge | None:
    """Return the function by which a module of this package judges, None in one that is no claim."""
    return getattr(import_module(f"{PACKAGE}.{module}"), JUDGE, None)
