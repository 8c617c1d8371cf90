"""Fine-tuning θ_pre → θ_ft on one task or several; a resumed run has the same bits.

Prompt-based fine-tuning follows LM-BFF (Gao et al., ACL 2021), as in Panigrahi et al., 2023.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from skillgraft.config.choices import Strategy
from skillgraft.config.schema import RunConfig
from skillgraft.evaluation.metrics import measure
from skillgraft.evaluation.predict import predict
from skillgraft.models.classifier import Classifier
from skillgraft.runtime.errors import InputError
from skillgraft.runtime.seeds import derive
from skillgraft.tasks.batches import Batch
from skillgraft.training import distributed, names
from skillgraft.training.batches import Batches, TrainingTask
from skillgraft.training.checkpoints import Progress, write_tensors
from skillgraft.training.optimizer import lr_factor, make_optimizer
from skillgraft.training.resumable import Log, Resumable
from skillgraft.training.trainable import trainable
from skillgraft.training.trainer import fit, make_trainer

LOG_EVERY = 10  # steps whose mean loss is one entry of the history


class FineTuning(Resumable):
    """Trains the parameters of a classifier that require a gradient: graftable ones, and a new head.

    Args:
        classifier: the classifier, θ_pre in it; trained in place.
        cfg: the resolved configuration.
        courses: the tasks that are trained on, with their encoded examples.
        pad: the id of the padding token.
        folder: where the checkpoints lie.
        log: is given each row of the history.
        only: graftable name → bool tensor; where it is False a parameter keeps its value.
    """

    def __init__(
        self,
        classifier: Classifier,
        cfg: RunConfig,
        courses: Sequence[TrainingTask],
        pad: int,
        folder: Path,
        log: Log,
        only: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.classifier, self.cfg, self.courses, self.pad = classifier, cfg, courses, pad
        self.folder, self.note, self.only = folder, log, only
        self.named = {n: p for n, p in classifier.named_parameters() if p.requires_grad}
        self.start: dict[str, Tensor] = {}  # θ_start, needed only for `only` and for the l1 penalty
        if only is not None or cfg.finetune.l1:
            self.start = {n: p.detach().clone() for n, p in classifier.graftable.items()}
        size, steps = cfg.finetune.batch_size, cfg.finetune.steps
        self.batches = Batches(courses, pad, size, cfg.seed, 0, steps, ranks=cfg.trainer.devices)
        self.progress = Progress()
        self.losses: list[Tensor] = []
        self.moments: dict[str, Tensor] = {}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD or AdamW over graftable parameters and head, with the moments of a resumed run."""
        optimizer = self.optimizer = make_optimizer(self.cfg.finetune, self.named)
        for key, tensor in self.moments.items():
            kind, _, name = key.partition("/")
            parameter = self.named[name]
            # AdamW keeps its count of steps on the CPU, wherever the parameter is
            optimizer.state[parameter][kind] = (
                tensor if kind == "step" else distributed.sharded_as(tensor, parameter)
            )
        return optimizer

    def configure_model(self) -> None:
        """Shard the model and its masks in a rank, where the strategy is FSDP."""
        if not isinstance(self.trainer.strategy, distributed.ShardedStrategy):
            return
        assert self.device_mesh is not None
        distributed.shard(self.classifier, self.device_mesh["data_parallel"])
        found, graftable = dict(self.classifier.named_parameters()), self.classifier.graftable
        self.named = {name: found[name] for name in self.named}

        def shards(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {
                n: distributed.local(distributed.sharded_as(t, graftable[n]))
                for n, t in tensors.items()
            }

        self.start = shards(self.start)
        self.only = None if self.only is None else shards(self.only)

    def train_dataloader(self) -> Batches:
        """Return the batches that are left, or this rank's parts of them."""
        return replace(self.batches, rank=self.global_rank)

    def on_train_start(self) -> None:
        """Turn dropout on, and move tensors that are not parameters to the module's device.

        Lightning leaves a model in evaluation mode, in which from_pretrained returns it. A rank receives
        all tensors on the CPU, and Lightning moves only the parameters.
        """
        super().on_train_start()
        self.classifier.train()
        self.losses = [loss.to(self.device) for loss in self.losses]
        self.start = {name: tensor.to(self.device) for name, tensor in self.start.items()}
        if self.only is not None:
            self.only = {name: mask.to(self.device) for name, mask in self.only.items()}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> int | None:
        """Seed dropout from seed, step and rank, and set the learning rate from the step.

        Neither depends on earlier steps, so that a resumed run has the bits of an uninterrupted run.
        """
        if (end := super().on_train_batch_start(batch, batch_idx)) is not None:
            return end
        step, rank = self.progress.step, self.global_rank
        torch.manual_seed(derive(self.cfg.seed, "dropout", step, *([rank] if rank else [])))
        share = lr_factor(self.cfg.finetune.lr_schedule, step, self.cfg.finetune.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share
        return None

    def on_after_backward(self) -> None:
        """Clear the gradient of fixed parameters, which must not count in the norm that is clipped."""
        for name, mask in (self.only or {}).items():
            gradient = self.classifier.graftable[name].grad
            if gradient is not None:
                distributed.local(gradient).masked_fill_(~mask, 0)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """End a step: log the loss, and on schedule evaluate, keep the best model, and save a checkpoint."""
        self.proximal_step()
        self.progress.step += 1
        step, last = self.progress.step, self.progress.step == self.cfg.finetune.steps
        if step % LOG_EVERY == 0 or last:
            loss = torch.stack(self.losses).mean().item()
            self.losses.clear()
            if not math.isfinite(loss):
                raise InputError(f"fine-tuning diverged by step {step}: lower finetune.lr")
            self.record({"finetune/step": step, "finetune/loss": loss})
        if step % self.cfg.finetune.evaluate_every == 0 or last:
            self.evaluate()
            self.save()

    @torch.no_grad()
    def proximal_step(self) -> None:
        """Apply the proximal step of the penalty l1 · ‖θ − θ_start‖₁, and restore fixed parameters.

            θ ← θ_start + sign(θ − θ_start) ⊙ max(|θ − θ_start| − lr · l1, 0)

        With a subgradient of the penalty no parameter would return to θ_start exactly. Soft thresholding
        by lr · l1 returns each parameter that is within lr · l1 of θ_start to θ_start, bit for bit.
        """
        if not self.start:
            return
        options = self.cfg.finetune
        share = lr_factor(options.lr_schedule, self.progress.step, options.steps)
        threshold = options.lr * share * options.l1
        for name, start in self.start.items():
            trained = self.classifier.graftable[name].requires_grad
            parameter = distributed.local(self.classifier.graftable[name])
            if threshold and trained:
                moved = nn.functional.softshrink(parameter - start, threshold)
                # start + 0 may change −0.0: parameters that have not moved keep the bits of θ_start
                parameter.copy_(torch.where(moved == 0, start, start + moved))
            if self.only is not None:
                parameter.copy_(torch.where(self.only[name], parameter, start))

    def evaluate(self) -> None:
        """Evaluate on the validation examples, and write the model where the metric is the best so far.

        With several tasks, the mean of the tasks' own metrics counts. Of equally good models the first
        is kept; the authors' code keeps the last.
        """
        step, scores = self.progress.step, []
        for course in self.courses:
            probabilities = predict(
                self.classifier,
                course.validation,
                self.pad,
                self.cfg.trainer.evaluation_batch_size,
                course.words,
            )
            if not np.isfinite(probabilities).all():
                raise InputError(f"fine-tuning diverged by step {step}: lower finetune.lr")
            labels = [example.label for example in course.validation]
            measured = measure(probabilities, labels, course.metric)
            scores.append(measured[course.metric.value] or 0.0)
            among = f"{course.task}/" if len(self.courses) > 1 else ""
            row = {f"finetune/validation/{among}{name}": v for name, v in measured.items()}
            self.record({"finetune/step": step, **row})
        # rank 0 decides: `gathered` must be called by all ranks or by none
        score = self.trainer.strategy.broadcast(sum(scores) / len(scores))
        if score > self.progress.best_score:
            self.progress.best_step, self.progress.best_score = step, score
            best = distributed.gathered(self.named, keep=self.global_rank == 0)
            if self.global_rank == 0:
                write_tensors(self.folder / names.BEST, best, {})

    def record(self, row: dict[str, Any]) -> None:
        """Append an entry to the history, and log the entry."""
        self.progress.history.append(row)
        self.note(row)

    def save(self) -> None:
        """Write a checkpoint of parameters, optimizer state and progress, complete or not at all."""
        state: dict[str, Tensor] = {f"weights/{name}": p for name, p in self.named.items()}
        for name, parameter in self.named.items():
            for kind, tensor in self.optimizer.state[parameter].items():
                if isinstance(tensor, Tensor):
                    state[f"optimizer/{kind}/{name}"] = tensor
        state = distributed.gathered(state, keep=self.global_rank == 0)
        if self.global_rank:
            return
        self.progress.losses = [loss.item() for loss in self.losses]
        write_tensors(self.folder / names.RESUME, state, vars(self.progress))

    def resume(self) -> None:
        """Load the checkpoint that `save` wrote, if there is one, and log the new part of its history."""
        path, known = self.folder / names.RESUME, len(self.progress.history)
        if not path.is_file():
            return
        with safe_open(path, framework="pt") as file:
            self.progress = Progress(**json.loads(file.metadata()["progress"]))
        device = next(self.classifier.parameters()).device
        self.losses = [torch.tensor(loss, device=device) for loss in self.progress.losses]
        tensors = load_file(path)
        self.restore(
            {n.removeprefix("weights/"): t for n, t in tensors.items() if n.startswith("weights/")}
        )
        prefix = "optimizer/"
        self.moments = {
            n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)
        }
        for row in self.progress.history[known:]:
            self.note(row)

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy stored tensors, by name, into the trained parameters."""
        for name, parameter in self.named.items():
            parameter.copy_(tensors[name])


def finetune(
    classifier: Classifier,
    cfg: RunConfig,
    courses: Sequence[TrainingTask],
    pad: int,
    folder: Path,
    log: Log,
    only: Mapping[str, Tensor] | None = None,
    bars: bool = False,
) -> Progress:
    """Fine-tune a classifier in place, leave it as its best validation model, and return the progress.

    `folder` keeps the best model and the last checkpoint; a killed fine-tuning goes on from there
    and ends with the same bits. `only` holds entries of graftable tensors fast, as `FineTuning` says.

    Args:
        classifier: the classifier, θ_pre in it; trained in place.
        cfg: the resolved configuration.
        courses: the tasks that are trained on, with their encoded examples.
        pad: the id of the padding token.
        folder: where the checkpoints lie.
        log: is given each row of the history.
        only: graftable name → bool tensor; where it is False a parameter keeps its value.
        bars: whether progress bars are shown.
    """
    with trainable(classifier, cfg):
        module = FineTuning(classifier, cfg, courses, pad, folder, log, only)
        module.resume()
        module.batches.start = module.progress.step
        if left := len(module.batches):
            # Differs from the authors' code, whose clipped norm includes the gradients of embeddings and LM
            # head: here no gradient is computed for frozen parameters.
            clip = cfg.finetune.gradient_clip_val or None
            sharded = cfg.trainer.strategy is Strategy.fsdp
            fit(make_trainer(cfg, left, folder, sharded, bars, gradient_clip_val=clip), module)
            classifier.zero_grad()  # frees gradients as large as the trained parameters
        classifier.eval()
        if module.progress.best_step >= 0:
            module.restore(load_file(folder / names.BEST))
    return module.progress
