"""The training batches of fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from torch import Tensor

from skillgraft.config.choices import Metric
from skillgraft.runtime.seeds import derive
from skillgraft.tasks.batches import Batch, collate, in_batches
from skillgraft.tasks.encoder import Encoded
from skillgraft.training import distributed


class TrainingTask(NamedTuple):
    """What fine-tuning reads of one task; `words` are its verbalizer's ids, None the classifier's own."""

    task: str
    metric: Metric
    train: Sequence[Encoded]
    validation: Sequence[Encoded]
    words: Tensor | None = None


@dataclass
class Batches:
    """The training batches of steps `start` to `steps`, the same whatever was done before.

    An epoch's order comes from (seed, epoch) alone, so a resumed run sees the batches that an
    unbroken one would have seen. Of T courses each has one batch in every cycle of T steps, in an
    order that comes from (seed, cycle): tasks count alike, whatever their number of rows.
    On several ranks a batch is dealt out by rows, and padded as the whole.
    """

    courses: Sequence[TrainingTask]
    pad: int
    size: int
    seed: int
    start: int
    steps: int
    rank: int = 0
    ranks: int = 1

    def __len__(self) -> int:
        """Return how many batches are left."""
        return max(0, self.steps - self.start)

    def __iter__(self) -> Iterator[Batch]:
        """Yield one batch a step."""
        orders = [EpochOrder(len(course.train), self.size, self.seed) for course in self.courses]
        for step in range(self.start, self.steps):
            cycle, place = divmod(step, len(self.courses))
            if len(self.courses) > 1:
                random = np.random.default_rng(derive(self.seed, "data", "cycle", cycle))
                place = int(random.permutation(len(self.courses))[place])
            course = self.courses[place]
            batch = collate([course.train[i] for i in orders[place].at(cycle)], self.pad)
            batch = batch if course.words is None else {**batch, "words": course.words}
            yield (
                batch
                if self.ranks == 1
                else distributed.share_of_batch(batch, self.rank, self.ranks)
            )


@dataclass
class EpochOrder:
    """Which rows the batches of one task hold: every row once an epoch."""

    rows: int
    size: int
    seed: int
    epoch: int = -1
    order: list[list[int]] = field(default_factory=list)

    def at(self, number: int) -> list[int]:
        """Return the positions of the rows of a batch, counted from the start of training."""
        epoch, place = divmod(number, -(-self.rows // self.size))
        if epoch != self.epoch:
            random = np.random.default_rng(derive(self.seed, "data", "epoch", epoch))
            self.epoch = epoch
            self.order = in_batches(random.permutation(self.rows).tolist(), self.size)
        return self.order[place]
