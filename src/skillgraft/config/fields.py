"""Fields of the schema: ranges, and what cannot change a result."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from omegaconf import MISSING


def between(low: float, high: float | None = None, default: Any = MISSING) -> Any:
    """Declare a number with an inclusive range, required where it has no default."""
    return field(default=default, metadata={"low": low, "high": high})


def not_identity(default: Any = MISSING) -> Any:
    """Declare a field that cannot change a result; a type is the maker of its default."""
    if isinstance(default, type):
        return field(default_factory=default, metadata={"identity": False})
    return field(default=default, metadata={"identity": False})
