"""The batches of mask training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from skillgraft.runtime.seeds import derive
from skillgraft.tasks.batches import Batch, collate, in_batches
from skillgraft.tasks.encoder import Encoded


@dataclass
class MaskBatches:
    """The batches of mask steps `start` to `steps`; each step goes over `examples` training rows.

    A step's rows and their order come from (seed, step) alone. On several ranks a step's batches are
    dealt out whole, with the `weight` of each one's loss: where they do not come out even, one is
    repeated with weight 0.
    """

    rows: Sequence[Encoded]
    pad: int
    size: int
    examples: int
    seed: int
    start: int
    steps: int
    rank: int = 0
    ranks: int = 1

    @property
    def per_step(self) -> int:
        """Return the number of batches of one step."""
        return -(-min(self.examples, len(self.rows)) // self.size)

    @property
    def per_rank(self) -> int:
        """Return how many batches each rank has in one step."""
        return -(-self.per_step // self.ranks)

    def __len__(self) -> int:
        """Return how many batches are left for each rank."""
        return (self.steps - self.start) * self.per_rank

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of all steps, one after the other."""
        for step in range(self.start, self.steps):
            random = np.random.default_rng(derive(self.seed, "mask", "rows", step))
            order = random.permutation(len(self.rows))[: self.examples].tolist()
            groups = in_batches(order, self.size)
            # Lightning divides by a rank's number of batches, and DDP by the ranks
            even = self.per_rank * self.ranks
            for place in range(self.rank, even, self.ranks):
                group = groups[min(place, len(groups) - 1)]
                batch = collate([self.rows[i] for i in group], self.pad)
                if self.ranks > 1:
                    weight = even / len(groups) if place < len(groups) else 0.0
                    batch["weight"] = torch.tensor(weight)
                yield batch
