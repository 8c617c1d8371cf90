"""Skill localization in language models: learn, keep, compare and reproduce sparse grafts."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skillgraft.graft import Graft, GraftError
    from skillgraft.mask import localize
    from skillgraft.runs import Run, Runs

__version__ = version("skillgraft")
__all__ = ["Graft", "GraftError", "Run", "Runs", "__version__", "localize"]


def __getattr__(name: str) -> Any:
    # torch is imported at the first use, so that the command line's --help is instant.
    if name == "localize":
        from skillgraft.mask import localize

        return localize
    if name in ("Graft", "GraftError"):
        from skillgraft import graft

        return getattr(graft, name)
    if name in ("Run", "Runs"):
        from skillgraft import runs

        return getattr(runs, name)
    raise AttributeError(f"module 'skillgraft' has no attribute '{name}'")
