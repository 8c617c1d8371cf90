"""What the options of selectors share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from omegaconf import MISSING

from skillgraft.config.fields import between, not_identity


@dataclass
class SelectorOptions:
    """The keys of `graft` that every selector has, and what the program must know of a selector.

    A field without a default needs a value; where one is null, the default counts.
    """

    reads_sparsity: ClassVar[bool] = True  # False: `sparsity` is no part of the run's identity
    finds_size: ClassVar[bool] = False  # True: the requested size is only where the selector starts
    named_by: ClassVar[str | None] = None  # the key whose value stands in the names of runs

    selector: str = MISSING
    size_from: str | None = not_identity(None)


@dataclass
class MaskTrainingOptions(SelectorOptions):
    """The options of a selector that trains a relaxed mask."""

    finds_size: ClassVar[bool] = True

    steps: int = between(0)
    lr: float = between(0)
    batch_size: int = between(1)
    examples_per_step: int = between(1)
    score_every: int | None = between(1, default=None)
    score_examples: int | None = between(1, default=None)
    patience: int | None = between(1, default=None)
