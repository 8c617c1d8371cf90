"""Initial scores, and the best mask so far."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from skillgraft.runtime.seeds import derive


def initial_scores(total: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return S, uniform in [0, 1), drawn from the mask's seed, independent of any other."""
    generator = torch.Generator().manual_seed(derive(seed, "mask", "scores"))
    return torch.rand(total, generator=generator, dtype=dtype)


@dataclass
class BestMask:
    """The best mask so far: a later one must be strictly better."""

    step: int = -1
    score: float = -math.inf
    region: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def offer(self, step: int, score: float, chosen: Tensor) -> bool:
        """Keep a candidate where it is strictly better, and return whether it was."""
        if self.step >= 0 and score <= self.score:
            return False
        self.step, self.score, self.region = step, score, chosen.clone()
        return True
