"""What a selector may read to choose a region."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skillgraft.config.schema import RunConfig
from skillgraft.runtime.seeds import derive

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from skillgraft.models.classifier import Classifier
    from skillgraft.tasks.encoder import Encoded


@dataclass(frozen=True)
class Selection:
    """A fine-tuned model, and a number of its parameters that are to be chosen.

    - `classifier` stands at θ_pre, with the fine-tuned head; a selector leaves it as it was;
    - `theta_pre`, `theta_finetuned`: the graftable parameters, before and after, by their names;
    - `size`: the requested number of parameters, which bias, layer, module and file do not read;
    - `reserved`: the flat indices that earlier stages of a sequence have, not to be chosen again;
    - `train`, `validation`: the examples of the run's task; `pad` fills their batches up;
    - `folder` keeps checkpoints and history; `log` takes the rows of a curve;
    - `bars`: whether progress bars are shown.
    """

    cfg: RunConfig
    classifier: Classifier
    theta_pre: Mapping[str, Tensor]
    theta_finetuned: Mapping[str, Tensor]
    size: int
    reserved: Tensor
    train: Sequence[Encoded]
    validation: Sequence[Encoded]
    pad: int
    device: torch.device
    folder: Path
    log: Callable[[Mapping[str, Any]], None]
    bars: bool = False

    @property
    def options(self) -> Any:
        """The selector's own options: an instance of its module's `Options`."""
        return self.cfg.graft

    @property
    def graftable(self) -> int:
        """The number of graftable parameters."""
        return sum(tensor.numel() for tensor in self.theta_pre.values())

    def seed(self, purpose: str) -> int:
        """Return the run's seed for what a selector draws."""
        return derive(self.cfg.seed, "mask", purpose)
