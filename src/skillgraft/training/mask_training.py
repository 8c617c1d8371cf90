"""Train the mask of a run with Lightning, by the method of `localize`; a resumed run has the same bits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from skillgraft.config.schema import RunConfig
from skillgraft.config.selector_options import MaskTrainingOptions
from skillgraft.core.best_mask import BestMask
from skillgraft.core.relaxed_graft import RelaxedGraft
from skillgraft.evaluation.metrics import measure
from skillgraft.evaluation.predict import predict
from skillgraft.models.classifier import Classifier
from skillgraft.runtime.errors import InputError
from skillgraft.tasks.batches import Batch
from skillgraft.tasks.encoder import Encoded
from skillgraft.training import names
from skillgraft.training.checkpoints import Progress, write_tensors
from skillgraft.training.mask_batches import MaskBatches
from skillgraft.training.resumable import Log, Resumable
from skillgraft.training.trainer import fit, make_trainer

SAVE_EVERY = 10  # steps between checkpoints where only the last step is evaluated


class MaskSGD(torch.optim.Optimizer):
    """SGD without momentum on the scores S, from the gradients of the grafted parameters."""

    def __init__(self, relaxed: RelaxedGraft, lr: float) -> None:
        self.relaxed = relaxed
        super().__init__(list(relaxed.parameters.values()), {"lr": lr})

    def step(self, closure: Any = None) -> Any:
        """Update the scores S and write the new relaxed graft θ(S) into the parameters."""
        loss = closure() if closure is not None else None
        self.relaxed.step(self.param_groups[0]["lr"])
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Do nothing, because `RelaxedGraft.step` clears the gradients that it uses."""


class MaskTraining(Resumable):
    """Minimizes the task loss of the relaxed graft θ(S) over the scores S (Panigrahi et al., 2023).

    Args:
        classifier: the classifier whose graftable parameters `relaxed` holds.
        relaxed: the relaxed graft; its scores are trained in place.
        cfg: the resolved configuration.
        batches: the batches of training examples, several per step.
        scored: split → encoded examples on which a rounded graft is scored.
        folder: where the checkpoint lies.
        log: is given each row of the history.
    """

    def __init__(
        self,
        classifier: Classifier,
        relaxed: RelaxedGraft,
        cfg: RunConfig,
        batches: MaskBatches,
        scored: dict[str, Sequence[Encoded]],
        folder: Path,
        log: Log,
    ) -> None:
        super().__init__()
        self.classifier, self.relaxed, self.cfg = classifier, relaxed, cfg
        self.batches, self.scored, self.folder, self.note = batches, scored, folder, log
        self.best = BestMask()
        self.history: list[dict[str, Any]] = []
        self.done = 0
        self.losses: list[Tensor] = []
        # the last step that changed the region, and the region after the present step
        self.changed, self.present = 0, torch.empty(0)

    @property
    def options(self) -> MaskTrainingOptions:
        """The options of mask training."""
        return cast(MaskTrainingOptions, self.cfg.graft)

    @property
    def settled(self) -> bool:
        """Whether the region has not changed for `graft.patience` steps."""
        patience = self.options.patience
        return patience is not None and self.done - self.changed >= patience

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD on the scores S."""
        graft = self.options
        # Lightning divides each loss by the number of batches, which gives the mean of batch means, as in
        # the authors' code. Localize-and-Stitch (He et al., TMLR 2025) sums over batches.
        summed = graft.selector == "stitch_l1"
        times = self.batches.per_step if summed else 1
        return MaskSGD(self.relaxed, graft.lr * times)

    def train_dataloader(self) -> MaskBatches:
        """Return the batches that are left, or this rank's part of them."""
        return replace(self.batches, rank=self.global_rank)

    def on_train_start(self) -> None:
        """Turn dropout off, as the authors' code does, and move the relaxed graft to the module's device."""
        super().on_train_start()
        self.classifier.eval()
        self.relaxed.to(self.device)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """After the last batch of a step, log the loss; on schedule evaluate the rounded graft and save."""
        graft = self.options
        if len(self.losses) < self.batches.per_rank:
            return
        self.done += 1
        loss = torch.stack(self.losses).mean().item()
        self.losses.clear()
        if not np.isfinite(loss):
            raise InputError(f"mask training diverged at step {self.done}: lower graft.lr")
        row = {"mask/step": self.done, "mask/loss": loss}
        self.compare()
        last = self.settled or self.done == graft.steps
        due = last or self.done % (graft.score_every or SAVE_EVERY) == 0
        # The authors' code evaluates the rounded graft after every step. Here `graft.score_every` sets the
        # interval, because each evaluation is one more pass over training and validation examples.
        if last or (due and graft.score_every is not None):
            row |= self.score()
        self.record(row)
        if due:
            self.save()
        if self.settled:
            self.trainer.should_stop = True

    def compare(self) -> None:
        """With `graft.patience`, record whether this step changed the region."""
        if self.options.patience is None:
            return
        before, self.present = self.present, self.relaxed.region().cpu()
        if not torch.equal(before, self.present):
            self.changed = self.done
        self.changed = self.trainer.strategy.broadcast(self.changed)  # rank 0 decides for all

    def score(self) -> dict[str, Any]:
        """Evaluate the objective of the rounded graft, and return the entry for the history.

        The objective is the task's metric on training examples plus the metric on validation examples, as
        in the authors' code. Without `graft.score_every` nothing is evaluated, and the latest graft is best.
        """
        metric, chosen, row = self.cfg.task.metric, self.relaxed.region(), {}
        if self.options.score_every is None:
            self.best.offer(self.done, float(self.done), chosen)
            return {"mask/size": chosen.numel()}
        size = self.cfg.trainer.evaluation_batch_size
        with self.relaxed.rounded(chosen):
            for split, rows in self.scored.items():
                probabilities = predict(self.classifier, rows, self.batches.pad, size)
                value = measure(probabilities, [row.label for row in rows], metric)[metric.value]
                row[f"mask/{split}/{metric.value}"] = value or 0.0
        total = sum(row.values())
        self.best.offer(self.done, total, chosen)
        return {**row, "mask/objective": total, "mask/size": chosen.numel()}

    def record(self, row: dict[str, Any]) -> None:
        """Append an entry to the history, and log the entry."""
        self.history.append(row)
        self.note(row)

    def save(self) -> None:
        """Write a checkpoint of the scores S, the best region and progress, complete or not at all."""
        if self.global_rank:
            return
        tensors = {"scores": self.relaxed.scores, "best": self.best.region}
        best = self.best
        progress = Progress(self.done, best.step, best.score, self.history, changed=self.changed)
        write_tensors(self.folder / names.MASK, tensors, vars(progress))

    def resume(self) -> None:
        """Load the checkpoint that `save` wrote; without one, evaluate the initial mask."""
        path = self.folder / names.MASK
        if not path.is_file():
            # Differs from the authors' code, which never evaluates the initial mask: a learned region must
            # not be worse than γ_base.
            self.record({"mask/step": 0, **self.score()})
            self.present = self.relaxed.region().cpu()
            return
        with safe_open(path, framework="pt") as file:
            progress = Progress(**json.loads(file.metadata()["progress"]))
        tensors = load_file(path)
        self.relaxed.scores.copy_(tensors["scores"])
        self.relaxed.build()  # θ(S) of the stored scores
        self.best = BestMask(progress.best_step, progress.best_score, tensors["best"])
        self.done, self.changed = progress.step, progress.changed
        self.present = self.relaxed.region().cpu()
        for row in progress.history[len(self.history) :]:
            self.record(row)


def learn_mask(
    classifier: Classifier,
    relaxed: RelaxedGraft,
    cfg: RunConfig,
    train: Sequence[Encoded],
    validation: Sequence[Encoded],
    pad: int,
    folder: Path,
    log: Log,
    bars: bool = False,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Train a mask, and return the best region's sorted flat indices and the history of the training.

    `folder` keeps the last checkpoint; a killed training goes on from there with the same bits.

    Args:
        classifier: the classifier whose graftable parameters `relaxed` holds.
        relaxed: the relaxed graft; its scores are trained in place.
        cfg: the resolved configuration.
        train: the encoded training examples.
        validation: the encoded validation examples.
        pad: the id of the padding token.
        folder: where the checkpoint lies.
        log: is given each row of the history.
        bars: whether progress bars are shown.
    """
    options = cast(MaskTrainingOptions, cfg.graft)
    size, examples, steps = options.batch_size, options.examples_per_step, options.steps
    batches = MaskBatches(train, pad, size, examples, cfg.seed, 0, steps, ranks=cfg.trainer.devices)
    scored = {"train": train[: options.score_examples], "validation": validation}
    module = MaskTraining(classifier, relaxed, cfg, batches, scored, folder, log)
    module.resume()
    batches.start = module.done
    if not module.settled and (left := len(batches)):
        trainer = make_trainer(
            cfg, left, folder, bars=bars, accumulate_grad_batches=batches.per_rank
        )
        fit(trainer, module)
    return module.best.region, module.history
