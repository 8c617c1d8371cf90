"""Fine-tuning: θ_pre → θ_ft on one task (method: section 2), resumable to the bit."""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import TQDMProgressBar
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from skillgraft.config import FinetuneConfig, Optimizer, RunConfig, Schedule
from skillgraft.errors import InputError
from skillgraft.evaluate import measure, predict
from skillgraft.model import Classifier
from skillgraft.prompt import Batch, Encoded, collate, in_batches
from skillgraft.seeds import derive

Log = Callable[[dict[str, Any]], None]
LOG_EVERY = 10  # steps whose losses are averaged into one row of the history


@dataclass
class Batches:
    """The training batches of steps `start` to `steps`, the same whatever was done before.

    An epoch's order comes from (seed, epoch) alone, so a resumed run sees the batches that an
    unbroken one would have seen.
    """

    examples: Sequence[Encoded]
    pad: int
    size: int
    seed: int
    start: int
    steps: int

    def __len__(self) -> int:
        """Return how many batches are left."""
        return max(0, self.steps - self.start)

    def __iter__(self) -> Iterator[Batch]:
        """Yield one batch a step."""
        per_epoch = -(-len(self.examples) // self.size)
        order: list[list[int]] = []
        epoch = -1
        for step in range(self.start, self.steps):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                random = np.random.default_rng(derive(self.seed, "data", "epoch", epoch))
                order = in_batches(random.permutation(len(self.examples)).tolist(), self.size)
            yield collate([self.examples[i] for i in order[step % per_epoch]], self.pad)


@dataclass
class Progress:
    """What a resumed fine-tuning needs to know beside its tensors."""

    step: int = 0
    best_step: int = -1
    best_score: float = -1.0
    history: list[dict[str, Any]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # since the last row of the history


def factor(schedule: Schedule, step: int, steps: int) -> float:
    """Return the share of the learning rate at a step: constant, or falling linearly to 0."""
    return 1.0 if schedule is Schedule.constant else 1.0 - step / max(1, steps)


class FineTuning(pl.LightningModule):
    """Trains exactly the graftable parameters, and a new head where there is one."""

    def __init__(
        self,
        classifier: Classifier,
        cfg: RunConfig,
        validation: Sequence[Encoded],
        pad: int,
        folder: Path,
        log: Log,
    ) -> None:
        super().__init__()
        self.classifier, self.cfg, self.validation, self.pad = classifier, cfg, validation, pad
        self.folder, self.note = folder, log
        self.progress = Progress()
        self.losses: list[Tensor] = []
        self.moments: dict[str, Tensor] = {}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD or AdamW over graftable parameters and head; no decay on vectors (as LM-BFF)."""
        self.named = {n: p for n, p in self.classifier.named_parameters() if p.requires_grad}
        optimizer = self.optimizer = make_optimizer(self.cfg.finetune, self.named)
        for key, tensor in self.moments.items():
            kind, _, name = key.partition("/")
            optimizer.state[self.named[name]][kind] = tensor
        return optimizer

    def on_train_start(self) -> None:
        """Turn dropout on: Lightning leaves a model as from_pretrained returned it, evaluating."""
        self.classifier.train()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout and set the learning rate from the step alone."""
        step = self.progress.step
        torch.manual_seed(derive(self.cfg.seed, "dropout", step))
        share = factor(self.cfg.finetune.schedule, step, self.cfg.finetune.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean cross-entropy over the class logits."""
        loss = nn.functional.cross_entropy(self.classifier(batch), batch["labels"])
        self.losses.append(loss.detach())
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log, and at each evaluation keep the best model and what a resumed run needs."""
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

    def evaluate(self) -> None:
        """Measure the validation rows, and write the model where it is strictly the best so far."""
        metric = self.cfg.task.metric
        labels = [example.label for example in self.validation]
        probabilities = predict(
            self.classifier, self.validation, self.pad, self.cfg.trainer.evaluation_batch_size
        )
        if not np.isfinite(probabilities).all():
            raise InputError(
                f"fine-tuning diverged by step {self.progress.step}: lower finetune.lr"
            )
        measured = measure(probabilities, labels, metric)
        step, score = self.progress.step, measured[metric.value]
        row = {f"finetune/validation/{name}": value for name, value in measured.items()}
        self.record({"finetune/step": step, **row})
        if score is not None and score > self.progress.best_score:
            self.progress.best_step, self.progress.best_score = step, score
            write_tensors(self.folder / "best.safetensors", self.classifier.trained(), {})

    def record(self, row: dict[str, Any]) -> None:
        """Keep a row of the history and pass it on."""
        self.progress.history.append(row)
        self.note(row)

    def save(self) -> None:
        """Write weights, optimiser state and progress: what a resumed run needs, whole or not at all."""
        state = {f"weights/{name}": t for name, t in self.classifier.trained().items()}
        for name, parameter in self.named.items():
            for kind, tensor in self.optimizer.state[parameter].items():
                if isinstance(tensor, Tensor):
                    state[f"optimizer/{kind}/{name}"] = tensor
        self.progress.losses = [loss.item() for loss in self.losses]
        write_tensors(self.folder / "resume.safetensors", state, vars(self.progress))

    def resume(self) -> None:
        """Take up a state that `save` wrote, if there is one."""
        path = self.folder / "resume.safetensors"
        if not path.is_file():
            return
        with safe_open(path, framework="pt") as file:
            self.progress = Progress(**json.loads(file.metadata()["progress"]))
        device = next(self.classifier.parameters()).device
        self.losses = [torch.tensor(loss, device=device) for loss in self.progress.losses]
        tensors = load_file(path)
        prefix = "weights/"
        self.classifier.restore(
            {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        )
        prefix = "optimizer/"
        self.moments = {
            n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)
        }
        for row in self.progress.history:
            self.note(row)


def make_optimizer(cfg: FinetuneConfig, named: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimiser, with one group for matrices, one for vectors, one for a new head."""
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


def write_tensors(path: Path, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
    """Write a safetensors file under another name and rename it: whole or absent."""
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    scratch = path.with_name(path.name + ".partial")
    scratch.write_bytes(save(content, {"progress": json.dumps(progress)}))
    scratch.replace(path)


def make_trainer(cfg: RunConfig, steps: int, folder: Path, **more: Any) -> pl.Trainer:
    """Return a Lightning Trainer that runs `steps` batches and writes nothing by itself."""
    progress = cfg.trainer.progress
    bar = sys.stderr.isatty() if progress is None else progress
    return pl.Trainer(
        accelerator=cfg.trainer.accelerator,
        devices=1,
        precision=cfg.trainer.precision,  # type: ignore[arg-type]
        max_epochs=1,
        limit_train_batches=steps,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=bar,
        callbacks=[TQDMProgressBar(leave=True)] if bar else [],
        num_sanity_val_steps=0,
        **more,
    )


def fit(trainer: pl.Trainer, module: pl.LightningModule, batches: Iterable[Batch]) -> None:
    """Run Lightning's loop, without the warnings that are about its own choices."""
    with warnings.catch_warnings():
        # Fine-tuning calls train() and mask training stays in eval mode: both on purpose.
        warnings.filterwarnings("ignore", message="Found .* module.* in eval mode")
        # Lightning 2.6 calls what torch 2.13 deprecates.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        device = next(module.parameters()).device
        trainer.fit(module, train_dataloaders=batches)
        module.to(device)  # Lightning leaves the module on the CPU


def finetune(
    classifier: Classifier,
    cfg: RunConfig,
    train: Sequence[Encoded],
    validation: Sequence[Encoded],
    pad: int,
    folder: Path,
    log: Log,
) -> Progress:
    """Fine-tune `classifier` in place to its best validation model, and return the history.

    `folder` keeps the best model and the last checkpoint; a killed fine-tuning goes on from there
    and ends with the same bits.
    """
    module = FineTuning(classifier, cfg, validation, pad, folder, log)
    module.resume()
    options = cfg.finetune
    start = module.progress.step
    if start < options.steps:
        batches = Batches(train, pad, options.batch_size, cfg.seed, start, options.steps)
        trainer = make_trainer(cfg, len(batches), folder, gradient_clip_val=options.clip or None)
        fit(trainer, module, batches)
    classifier.eval()
    if module.progress.best_step >= 0:
        classifier.restore(load_file(folder / "best.safetensors"))
    return module.progress
