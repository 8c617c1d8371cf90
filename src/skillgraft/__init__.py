"""Skill localization in language models: learn, keep, compare and reproduce sparse grafts."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skillgraft.export import load_applied
    from skillgraft.graft import Graft, GraftError, active
    from skillgraft.mask import localize
    from skillgraft.runs import Run, Runs

__version__ = version("skillgraft")
__all__ = [
    "Graft",
    "GraftError",
    "Run",
    "Runs",
    "__version__",
    "active",
    "load_applied",
    "localize",
]

PLACES = {
    "Graft": "graft",
    "GraftError": "graft",
    "Run": "runs",
    "Runs": "runs",
    "active": "graft",
    "load_applied": "export",
    "localize": "mask",
}


def __getattr__(name: str) -> Any:
    # torch is imported at the first use, so that the command line's --help is instant.
    if name in PLACES:
        return getattr(import_module(f"skillgraft.{PLACES[name]}"), name)
    raise AttributeError(f"module 'skillgraft' has no attribute '{name}'")
