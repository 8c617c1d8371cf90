"""Learning the mask of a run with Lightning: the same engine as `localize`, resumable to the bit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from skillgraft.config.choices import Selector
from skillgraft.config.schema import GraftConfig, RunConfig
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

SAVE_EVERY = 10  # steps between checkpoints where no step but the last is scored


class MaskSGD(torch.optim.Optimizer):
    """SGD without momentum on the scores, fed by the gradients of the grafted weights."""

    def __init__(self, relaxed: RelaxedGraft, lr: float) -> None:
        self.relaxed = relaxed
        super().__init__(list(relaxed.parameters.values()), {"lr": lr})

    def step(self, closure: Any = None) -> Any:
        """Update the scores and rebuild the grafted weights."""
        loss = closure() if closure is not None else None
        self.relaxed.step(self.param_groups[0]["lr"])
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Do nothing: the engine takes the gradients away as it uses them."""


class MaskTraining(Resumable):
    """Minimises the task loss of the relaxed graft over the scores (method: section 3)."""

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
        self.changed, self.present = 0, torch.empty(0)  # since when the region is what it is

    @property
    def settled(self) -> bool:
        """Whether the region has been the same for `graft.patience` steps."""
        patience = self.cfg.graft.patience
        return patience is not None and self.done - self.changed >= patience

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return plain SGD on the scores."""
        graft = self.cfg.graft
        assert graft.lr is not None
        # Lightning has divided by the number of batches; Localize-and-Stitch sums over them.
        summed = graft.selector is Selector.stitch_l1
        times = self.batches.per_step if summed else 1
        return MaskSGD(self.relaxed, graft.lr * times)

    def train_dataloader(self) -> MaskBatches:
        """Return the batches that are left, or this rank's share of them."""
        return replace(self.batches, rank=self.global_rank)

    def on_train_start(self) -> None:
        """Turn dropout off, and move the engine to where the module has been moved."""
        super().on_train_start()
        self.classifier.eval()
        self.relaxed.to(self.device)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """At the end of a step: log, and on schedule score the rounded graft and keep a checkpoint."""
        graft = self.cfg.graft
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
        if last or (due and graft.score_every is not None):
            row |= self.score()
        self.record(row)
        if due:
            self.save()
        if self.settled:
            self.trainer.should_stop = True

    def compare(self) -> None:
        """With `graft.patience`, note whether this step has changed the region."""
        if self.cfg.graft.patience is None:
            return
        before, self.present = self.present, self.relaxed.region().cpu()
        if not torch.equal(before, self.present):
            self.changed = self.done
        self.changed = self.trainer.strategy.broadcast(self.changed)  # the first rank's, of all

    def score(self) -> dict[str, Any]:
        """Score the rounded graft: the metric on training rows plus that on validation rows.

        Without `graft.score_every` no row is read and a later graft always counts.
        """
        metric, chosen, row = self.cfg.task.metric, self.relaxed.region(), {}
        if self.cfg.graft.score_every is None:
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
        """Keep a row of the history and pass it on."""
        self.history.append(row)
        self.note(row)

    def save(self) -> None:
        """Write scores, best region and progress: what a resumed run needs, whole or not at all."""
        if self.global_rank:
            return
        tensors = {"scores": self.relaxed.scores, "best": self.best.region}
        best = self.best
        progress = Progress(self.done, best.step, best.score, self.history, changed=self.changed)
        write_tensors(self.folder / names.MASK, tensors, vars(progress))

    def resume(self) -> None:
        """Take up a state that `save` wrote; without one, score the initial mask."""
        path = self.folder / names.MASK
        if not path.is_file():
            # The authors' code never scores its start; ours must not come out worse than it.
            self.record({"mask/step": 0, **self.score()})
            self.present = self.relaxed.region().cpu()
            return
        with safe_open(path, framework="pt") as file:
            progress = Progress(**json.loads(file.metadata()["progress"]))
        tensors = load_file(path)
        self.relaxed.scores.copy_(tensors["scores"])
        self.relaxed.build()
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
    """Return the best region's sorted flat indices and the history of mask training.

    `folder` keeps the last checkpoint; a killed training goes on from there with the same bits.
    `bars` shows a progress bar.
    """
    options: GraftConfig = cfg.graft
    assert options.steps is not None
    assert options.batch_size is not None
    assert options.examples_per_step is not None
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
