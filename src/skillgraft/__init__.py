"""Skill localization in language models: learn, keep, compare and reproduce sparse grafts."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skillgraft.analysis.runs import Run, Runs
    from skillgraft.core.activation import active
    from skillgraft.core.graft import Graft
    from skillgraft.core.localize import localize
    from skillgraft.export.grafted_classifier import load_applied
    from skillgraft.export.hub import load_from_hub, push_to_hub
    from skillgraft.runtime.errors import GraftError

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

MODULES = {
    "Graft": "core.graft",
    "GraftError": "runtime.errors",
    "Run": "analysis.runs",
    "Runs": "analysis.runs",
    "active": "core.activation",
    "load_applied": "export.grafted_classifier",
    "load_from_hub": "export.hub",
    "localize": "core.localize",
    "push_to_hub": "export.hub",
}


def __getattr__(name: str) -> Any:
    # torch is imported at the first use, so that the command line's --help is instant.
    if name in MODULES:
        return getattr(import_module(f"skillgraft.{MODULES[name]}"), name)
    raise AttributeError(f"module 'skillgraft' has no attribute '{name}'")
