"""Shared fixtures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may wait for a hub

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """The thread count is part of the bits, and two workers of pytest-xdist share two cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def undrawn() -> Iterator[None]:
    """Leave figures empty: drawing them is half of a small run."""
    from skillgraft.analysis import plots

    def save(drawing: object, path: Path) -> Path:
        path.parent.mkdir(exist_ok=True)
        path.touch()
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save", save)
        patch.setattr(plots, "reliability_diagram", lambda *_: None)
        patch.setattr(plots, "heat_map", lambda *_: None)
        yield
