"""Baselines that stand beside the graft in metrics.json: WiSE-FT, lottery tickets, training inside."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING

from skillgraft.config import compose
from skillgraft.config.choices import Trainable
from skillgraft.experiments.stages.load import LoadedRun
from skillgraft.experiments.stages.select import SelectedRun

if TYPE_CHECKING:
    from torch import Tensor

    from skillgraft.core.graft import Graft
    from skillgraft.evaluation.predict import Predictions


def evaluate_baselines(selected: SelectedRun) -> dict[str, dict[str, Predictions]]:
    """Return the predictions of the baselines that the configuration asks for, by model and task."""
    loaded = selected.finetuned.loaded
    compare, parameters = loaded.inputs.cfg.compare, loaded.classifier.graftable
    only = inside_region(selected.graft, parameters)
    predictions = {}
    for alpha in compare.wise_ft_alphas:
        interpolate(loaded, selected.theta_finetuned, alpha)
        predictions[f"wise_{alpha:g}"] = loaded.predict_all_tasks()
    for steps in compare.lottery_steps:
        for name, parameter in parameters.items():
            parameter.data.copy_(loaded.start.theta_pre[name].to(parameter) * only[name])
        predictions[f"lottery_{steps}"] = train_inside(loaded, only, steps, f"lottery_{steps}")
    for steps in compare.inside_steps:
        loaded.reset()
        selected.graft.apply(loaded.classifier)
        predictions[f"inside_{steps}"] = train_inside(loaded, only, steps, f"inside_{steps}")
    loaded.reset()
    return predictions


def interpolate(loaded: LoadedRun, theta_finetuned: Mapping[str, Tensor], alpha: float) -> None:
    """Put (1 − α) θ_pre + α θ_ft into the classifier (WiSE-FT)."""
    import torch

    for name, parameter in loaded.classifier.graftable.items():
        # lerp gives both ends to the bit
        before = loaded.start.theta_pre[name].to(parameter)
        after = theta_finetuned[name].to(parameter)
        parameter.data.copy_(torch.lerp(before, after, alpha))


def inside_region(graft: Graft, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return, for every parameter tensor, the mask of the region."""
    import torch

    inside = {
        name: torch.zeros(p.numel(), dtype=torch.bool).index_fill_(0, graft.indices[name], 1)
        for name, p in parameters.items()
    }
    return {
        name: m.view_as(parameters[name]).to(parameters[name].device) for name, m in inside.items()
    }


def train_inside(
    loaded: LoadedRun, only: Mapping[str, Tensor], steps: int, model: str
) -> dict[str, Predictions]:
    """Train the region's parameters alone for some steps, all else held fast, and predict.

    `only` is the region's mask; `model` names the folder of the training's checkpoint.
    """
    from skillgraft.training.fine_tuning import finetune
    from skillgraft.training.resumable import log_nothing

    cfg = compose.editable(loaded.inputs.cfg)
    cfg.finetune.steps, cfg.finetune.trainable, cfg.finetune.l1 = steps, Trainable.full, 0.0
    folder = loaded.inputs.folder / model
    folder.mkdir(exist_ok=True)
    with loaded.classifier.fixed_head():
        finetune(
            loaded.classifier,
            cfg,
            loaded.training_tasks(),
            loaded.pad,
            folder,
            log_nothing,
            only,
            loaded.inputs.bars,
        )
    shutil.rmtree(folder)
    return loaded.predict_all_tasks()
