"""The training batches of fine-tuning, in an order that depends on seed and step alone."""

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
    """The examples and the metric of one task in fine-tuning.

    `words` are the token ids of the task's label words, (classes,), or None for the classifier's own.
    """

    task: str
    metric: Metric
    train: Sequence[Encoded]
    validation: Sequence[Encoded]
    words: Tensor | None = None


@dataclass
class Batches:
    """The training batches of steps `start` to `steps` of fine-tuning on one task or several.

    The order of an epoch depends on (seed, epoch) alone, so that a resumed run sees the batches that an
    uninterrupted run would have seen. Each of T tasks has one batch in every cycle of T steps, in an
    order that depends on (seed, cycle): tasks count equally, whatever their number of examples.
    With several ranks, each rank gets a part of every batch, padded to the length of the complete batch.
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
        """Return the number of batches that are left."""
        return max(0, self.steps - self.start)

    def __iter__(self) -> Iterator[Batch]:
        """Yield one batch per step."""
        orders = [EpochOrder(len(course.train), self.size, self.seed) for course in self.courses]
        for step in range(self.start, self.steps):
            cycle, place = divmod(step, len(self.courses))
            if len(self.courses) > 1:
                random = np.random.default_rng(derive(self.seed, "data", "cycle", cycle))
                place = int(random.permutation(len(self.courses))[place])
            course = self.courses[place]
            batch = collate([course.train[i] for i in orders[place].at(cycle)], self.pad)
            # the batch brings the label words of its task, which the classifier reads in place of its own
            batch = batch if course.words is None else {**batch, "words": course.words}
            yield (
                batch
                if self.ranks == 1
                else distributed.share_of_batch(batch, self.rank, self.ranks)
            )


@dataclass
class EpochOrder:
    """The order of one task's examples in batches: every example once per epoch.

    The last batch of an epoch may be smaller. The order of the present epoch is kept, not drawn for
    each batch.
    """

    rows: int
    size: int
    seed: int
    epoch: int = -1
    order: list[list[int]] = field(default_factory=list)

    def at(self, number: int) -> list[int]:
        """Return the positions of the examples of batch `number`, counted from the start of training."""
        epoch, place = divmod(number, -(-self.rows // self.size))
        if epoch != self.epoch:
            random = np.random.default_rng(derive(self.seed, "data", "epoch", epoch))
            self.epoch = epoch
            self.order = in_batches(random.permutation(self.rows).tolist(), self.size)
        return self.order[place]
