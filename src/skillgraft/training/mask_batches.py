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
    """The batches of steps `start` to `steps` of mask training, with `examples` training examples per step.

    The examples of a step and their order depend on (seed, step) alone. With several ranks, each rank
    gets complete batches, with the `weight` of each batch's loss. Where the batches of a step are not a
    multiple of the ranks, the last batch is repeated with weight 0. (In the authors' code a step has up
    to 128 batches of 8 examples.)
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
        """The number of batches of one step."""
        return -(-min(self.examples, len(self.rows)) // self.size)

    @property
    def per_rank(self) -> int:
        """The number of batches that each rank has in one step."""
        return -(-self.per_step // self.ranks)

    def __len__(self) -> int:
        """Return the number of batches that are left for each rank."""
        return (self.steps - self.start) * self.per_rank

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of all steps, one after the other."""
        for step in range(self.start, self.steps):
            random = np.random.default_rng(derive(self.seed, "mask", "rows", step))
            order = random.permutation(len(self.rows))[: self.examples].tolist()
            groups = in_batches(order, self.size)
            # Lightning divides the loss by per_rank, and DDP the gradient by ranks: by `even` together
            even = self.per_rank * self.ranks
            for place in range(self.rank, even, self.ranks):
                group = groups[min(place, len(groups) - 1)]
                batch = collate([self.rows[i] for i in group], self.pad)
                if self.ranks > 1:
                    weight = even / len(groups) if place < len(groups) else 0.0
                    batch["weight"] = torch.tensor(weight)
                yield batch
