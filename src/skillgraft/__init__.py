"""Skill localization in language models: learn, keep, compare and reproduce sparse grafts."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skillgraft.activation import active
    from skillgraft.errors import GraftError
    from skillgraft.export import load_applied
    from skillgraft.graft import Graft
    from skillgraft.hub_grafts import load_from_hub, push_to_hub
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
    "load_from_hub",
    "localize",
    "push_to_hub",
]

PLACES = {
    "Graft": "graft",
    "GraftError": "errors",
    "Run": "runs",
    "Runs": "runs",
    "active": "activation",
    "load_applied": "export",
    "load_from_hub": "hub_grafts",
    "localize": "mask",
    "push_to_hub": "hub_grafts",
}


def __getattr__(name: str) -> Any:
    # torch is imported at the first use, so that the command line's --help is instant.
    if name in PLACES:
        return getattr(import_module(f"skillgraft.{PLACES[name]}"), name)
    raise AttributeError(f"module 'skillgraft' has no attribute '{name}'")
