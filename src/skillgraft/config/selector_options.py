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
    """How the region is chosen."""
    size_from: str | None = not_identity(None)
    """A run, or a selector such as `learned`, whose region's size this region gets in place of
    `sparsity`."""


@dataclass
class MaskTrainingOptions(SelectorOptions):
    """The options of a selector that trains a relaxed mask."""

    finds_size: ClassVar[bool] = True

    steps: int = between(0)
    """Steps of mask training."""
    lr: float = between(0)
    """The learning rate of the mask's scores."""
    batch_size: int = between(1)
    """Training examples in one gradient."""
    examples_per_step: int = between(1)
    """Training examples per step of mask training, or per pass of a gradient selector."""
    score_every: int | None = between(1, default=None)
    """Steps between two evaluations of the rounded mask, of which the best is kept; null: the
    last mask counts."""
    score_examples: int | None = between(1, default=None)
    """Training examples in such an evaluation at most, beside all validation examples."""
    patience: int | None = between(1, default=None)
    """Stop where the region has been the same for so many steps; null: never."""


@dataclass
class GradientOptions(SelectorOptions):
    """The options of a selector that reads gradients on the path θ_pre → θ_ft, and trains nothing."""

    path_points: int = between(1)
    """Points of the straight path θ_pre → θ_ft at which gradients are taken."""
    batch_size: int = between(1)
    """Training examples in one gradient."""
    examples_per_step: int = between(1)
    """Training examples per step of mask training, or per pass of a gradient selector."""
