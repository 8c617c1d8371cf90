"""Shared fixtures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may wait for a hub

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def _two_threads() -> None:
    """The thread count is part of the bits; tests fix it as runs do."""
    import torch

    torch.set_num_threads(2)
