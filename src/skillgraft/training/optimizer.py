"""The optimizer of fine-tuning, and its learning rate at each step."""

from __future__ import annotations

import torch
from torch import nn

from skillgraft.config.choices import LRSchedule, Optimizer
from skillgraft.config.schema import FinetuneConfig


def lr_factor(schedule: LRSchedule, step: int, steps: int) -> float:
    """Return the factor of the learning rate at a step, in [0, 1]: constant, or falling linearly to 0.

    The authors' code has a constant learning rate for SGD, and a linear schedule for AdamW.
    """
    return 1.0 if schedule is LRSchedule.constant else 1.0 - step / max(1, steps)


def make_optimizer(cfg: FinetuneConfig, named: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    """Return SGD or AdamW, with one group of parameters for each learning rate and weight decay.

    Biases and LayerNorms (all vectors) have no weight decay, as in LM-BFF. A new head may have a learning
    rate of its own.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named.items():
        lr = cfg.head_lr if name.startswith("head.") and cfg.head_lr is not None else cfg.lr
        decay = cfg.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((lr, decay), []).append(parameter)
    options = [
        {"params": parameters, "lr": lr, "peak": lr, "weight_decay": decay}
        for (lr, decay), parameters in groups.items()
    ]
    kind = torch.optim.AdamW if cfg.optimizer is Optimizer.adamw else torch.optim.SGD
    return kind(options, lr=cfg.lr)
