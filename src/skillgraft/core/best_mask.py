"""The initial scores S of mask training, and the record of the best mask."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from skillgraft.runtime.seeds import derive


def initial_scores(total: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the initial scores S, (n,), uniform in [0, 1), drawn from a generator of their own.

    With c = 10, all S < 1 are far below c, so that γ(S) starts within 1.3e-4 of γ_base, as in the authors'
    code (Panigrahi et al., 2023).
    """
    # Differs from the authors' code, which draws S tensor by tensor from torch's global generator: there,
    # any other draw changes the mask.
    generator = torch.Generator().manual_seed(derive(seed, "mask", "scores"))
    return torch.rand(total, generator=generator, dtype=dtype)


@dataclass
class BestMask:
    """The best region so far, with the step and the objective at which the region was found.

    `score` is the objective, which is maximized. `region` holds sorted flat indices, int64.
    """

    step: int = -1
    score: float = -math.inf
    region: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def offer(self, step: int, score: float, chosen: Tensor) -> bool:
        """Keep a candidate whose objective is strictly larger, and return whether the candidate was kept."""
        if self.step >= 0 and score <= self.score:
            return False
        # a copy: the caller may go on to write into `chosen`
        self.step, self.score, self.region = step, score, chosen.clone()
        return True
