"""Fine-tuning: θ_pre → θ_ft on one task (method: section 2), resumable to the bit."""

from __future__ import annotations

import json
import logging
import math
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.utilities.exceptions import SIGTERMException
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from skillgraft import bars, launch, lease, ranks, stop
from skillgraft.config import (
    FinetuneConfig,
    Metric,
    Optimizer,
    RunConfig,
    Schedule,
    Strategy,
    Train,
)
from skillgraft.errors import InputError
from skillgraft.evaluate import measure, predict
from skillgraft.files import atomic_write
from skillgraft.model import Classifier
from skillgraft.prompt import Batch, Encoded, collate, in_batches, to_device
from skillgraft.seeds import derive

log = logging.getLogger(__name__)
Log = Callable[[dict[str, Any]], None]
LOG_EVERY = 10  # steps whose losses are averaged into one row of the history


class Course(NamedTuple):
    """What fine-tuning reads of one task; `words` are its verbalizer's ids, None the classifier's own."""

    task: str
    metric: Metric
    train: Sequence[Encoded]
    validation: Sequence[Encoded]
    words: Tensor | None = None


@dataclass
class Batches:
    """The training batches of steps `start` to `steps`, the same whatever was done before.

    An epoch's order comes from (seed, epoch) alone, so a resumed run sees the batches that an
    unbroken one would have seen. Of T courses each has one batch in every cycle of T steps, in an
    order that comes from (seed, cycle): tasks count alike, whatever their number of rows.
    On several ranks a batch is dealt out by rows, and padded as the whole.
    """

    courses: Sequence[Course]
    pad: int
    size: int
    seed: int
    start: int
    steps: int
    rank: int = 0
    ranks: int = 1

    def __len__(self) -> int:
        """Return how many batches are left."""
        return max(0, self.steps - self.start)

    def __iter__(self) -> Iterator[Batch]:
        """Yield one batch a step."""
        orders = [EpochOrder(len(course.train), self.size, self.seed) for course in self.courses]
        for step in range(self.start, self.steps):
            cycle, place = divmod(step, len(self.courses))
            if len(self.courses) > 1:
                random = np.random.default_rng(derive(self.seed, "data", "cycle", cycle))
                place = int(random.permutation(len(self.courses))[place])
            course = self.courses[place]
            batch = collate([course.train[i] for i in orders[place].at(cycle)], self.pad)
            batch = batch if course.words is None else {**batch, "words": course.words}
            yield batch if self.ranks == 1 else ranks.share(batch, self.rank, self.ranks)


@dataclass
class EpochOrder:
    """Which rows the batches of one task hold: every row once an epoch."""

    rows: int
    size: int
    seed: int
    epoch: int = -1
    order: list[list[int]] = field(default_factory=list)

    def at(self, number: int) -> list[int]:
        """Return the positions of the rows of a batch, counted from the start of training."""
        epoch, place = divmod(number, -(-self.rows // self.size))
        if epoch != self.epoch:
            random = np.random.default_rng(derive(self.seed, "data", "epoch", epoch))
            self.epoch = epoch
            self.order = in_batches(random.permutation(self.rows).tolist(), self.size)
        return self.order[place]


@dataclass
class Progress:
    """What a resumed fine-tuning needs to know beside its tensors."""

    step: int = 0
    best_step: int = -1
    best_score: float = -2.0  # below every score: Matthews goes down to -1
    history: list[dict[str, Any]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # since the last row of the history
    changed: int = 0  # the last step at which the region of mask training was another


def factor(schedule: Schedule, step: int, steps: int) -> float:
    """Return the share of the learning rate at a step: constant, or falling linearly to 0."""
    return 1.0 if schedule is Schedule.constant else 1.0 - step / max(1, steps)


def discard(row: Mapping[str, Any]) -> None:
    """Log nothing."""


class Resumable(pl.LightningModule):
    """A Lightning module that can write what a resumed run needs, after any batch.

    On several ranks all do the same but for their shares of the batches, rank 0 alone writes, and the
    process that started them takes up what it has written.
    """

    classifier: Classifier
    folder: Path
    note: Log
    batches: Any  # of the steps from `start` on
    losses: list[Tensor]  # of the batches since the last row of the history

    @property
    def launched(self) -> bool:
        """Whether the training is done by ranks, processes that are started for it."""
        return self.trainer.strategy.launcher is not None

    @property
    def sent(self) -> Path:
        """The file through which ranks receive the module."""
        return self.folder / ranks.FOLDER / "module.pt"

    @property
    def end(self) -> Path:
        """The file whose being there tells ranks to stop."""
        return self.sent.with_name("end")

    def __reduce__(self) -> Any:
        """Be a file to another process: by multiprocessing's own way ranks would share memory."""
        return ranks.receive, (self.sent,)

    def __getstate__(self) -> dict[str, Any]:
        """Return what ranks are to have: the log is with the process that started them."""
        return {**super().__getstate__(), "note": discard}

    def state_dict(self, *_args: Any, **_more: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return nothing: what Lightning would carry back from a rank, `save` has written."""
        return {}

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Return the batch on the device, as batches without gradients get there."""
        return to_device(batch, device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean cross-entropy over the class logits, weighted by the rank's share."""
        loss = nn.functional.cross_entropy(self.classifier(batch), batch["labels"])
        if "weight" in batch:
            loss = loss * batch["weight"]
        # for the log, the mean over ranks
        self.losses.append(self.trainer.strategy.reduce(loss.detach().clone(), reduce_op="mean"))
        return loss

    def resume(self) -> None:
        """Take up what `save` wrote, and pass on what is new in its history."""
        raise NotImplementedError

    def save(self) -> None:
        """Write it, whole or not at all."""
        raise NotImplementedError

    def on_train_start(self) -> None:
        """End at once where a signal came before Lightning listened; in a rank, let it not listen."""
        if stop.asked:
            raise SIGTERMException
        if self.launched:  # the run itself has the signals
            ranks.ignore_signals()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> int | None:
        """End the training, with a checkpoint, where ranks were told to: all before the same batch."""
        if not self.launched:
            return None
        told = self.end.exists() if self.global_rank == 0 else False
        if not self.trainer.strategy.reduce_boolean_decision(told, all=False):
            return None
        self.save()
        return -1  # to Lightning: no further batch


class FineTuning(Resumable):
    """Trains what of the classifier asks for a gradient: graftable parameters, and a new head.

    `only` maps graftable names to bool tensors: entries where it is False stay as they are.
    """

    def __init__(
        self,
        classifier: Classifier,
        cfg: RunConfig,
        courses: Sequence[Course],
        pad: int,
        folder: Path,
        log: Log,
        only: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.classifier, self.cfg, self.courses, self.pad = classifier, cfg, courses, pad
        self.folder, self.note, self.only = folder, log, only
        self.named = {n: p for n, p in classifier.named_parameters() if p.requires_grad}
        self.start: dict[str, Tensor] = {}  # what a movement is measured from, where that is needed
        if only is not None or cfg.finetune.l1:
            self.start = {n: p.detach().clone() for n, p in classifier.graftable.items()}
        size, steps = cfg.finetune.batch_size, cfg.finetune.steps
        self.batches = Batches(courses, pad, size, cfg.seed, 0, steps, ranks=cfg.trainer.devices)
        self.progress = Progress()
        self.losses: list[Tensor] = []
        self.moments: dict[str, Tensor] = {}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD or AdamW over graftable parameters and head; no decay on vectors (as LM-BFF)."""
        optimizer = self.optimizer = make_optimizer(self.cfg.finetune, self.named)
        for key, tensor in self.moments.items():
            kind, _, name = key.partition("/")
            parameter = self.named[name]
            # AdamW counts its steps on the CPU, wherever the parameter is
            optimizer.state[parameter][kind] = (
                tensor if kind == "step" else ranks.sharded_as(tensor, parameter)
            )
        return optimizer

    def configure_model(self) -> None:
        """Shard what a rank has received, where the strategy is to shard."""
        if not isinstance(self.trainer.strategy, ranks.Sharded):
            return
        assert self.device_mesh is not None
        ranks.shard(self.classifier, self.device_mesh["data_parallel"])
        found, graftable = dict(self.classifier.named_parameters()), self.classifier.graftable
        self.named = {name: found[name] for name in self.named}

        def shards(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {n: ranks.local(ranks.sharded_as(t, graftable[n])) for n, t in tensors.items()}

        self.start = shards(self.start)
        self.only = None if self.only is None else shards(self.only)

    def train_dataloader(self) -> Batches:
        """Return the batches that are left, or this rank's share of them."""
        return replace(self.batches, rank=self.global_rank)

    def on_train_start(self) -> None:
        """Turn dropout on: Lightning leaves a model as from_pretrained returned it, evaluating.

        A rank has received all tensors on the CPU, and Lightning has moved the parameters.
        """
        super().on_train_start()
        self.classifier.train()
        self.losses = [loss.to(self.device) for loss in self.losses]
        self.start = {name: tensor.to(self.device) for name, tensor in self.start.items()}
        if self.only is not None:
            self.only = {name: mask.to(self.device) for name, mask in self.only.items()}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> int | None:
        """Seed dropout, from step and rank alone, and set the learning rate from the step alone."""
        if (end := super().on_train_batch_start(batch, batch_idx)) is not None:
            return end
        step, rank = self.progress.step, self.global_rank
        torch.manual_seed(derive(self.cfg.seed, "dropout", step, *([rank] if rank else [])))
        share = factor(self.cfg.finetune.schedule, step, self.cfg.finetune.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share
        return None

    def on_after_backward(self) -> None:
        """Clear the gradient of entries that are held fast: the clipped norm is not theirs."""
        for name, mask in (self.only or {}).items():
            gradient = self.classifier.graftable[name].grad
            if gradient is not None:
                ranks.local(gradient).masked_fill_(~mask, 0)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log, and at each evaluation keep the best model and what a resumed run needs."""
        self.pull_back()
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
    def pull_back(self) -> None:
        """After an optimiser's step: the proximal step of l1 · ‖θ − θ_start‖₁, and entries held fast.

        A subgradient of the l1 term would leave every entry a little off; the proximal step (soft
        thresholding by lr · l1) puts entries that move less than that exactly back.
        """
        if not self.start:
            return
        options = self.cfg.finetune
        share = factor(options.schedule, self.progress.step, options.steps)
        threshold = options.lr * share * options.l1
        for name, start in self.start.items():
            trained = self.classifier.graftable[name].requires_grad
            parameter = ranks.local(self.classifier.graftable[name])
            if threshold and trained:
                moved = nn.functional.softshrink(parameter - start, threshold)
                # entries that have not moved keep their own bits
                parameter.copy_(torch.where(moved == 0, start, start + moved))
            if self.only is not None:
                parameter.copy_(torch.where(self.only[name], parameter, start))

    def evaluate(self) -> None:
        """Measure the validation rows, and write the model where it is strictly the best so far.

        Over several tasks the score is the mean of the tasks' own metrics.
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
        # the first rank's, so that none is alone in what all have to do together
        score = self.trainer.strategy.broadcast(sum(scores) / len(scores))
        if score > self.progress.best_score:
            self.progress.best_step, self.progress.best_score = step, score
            best = ranks.gathered(self.named, keep=self.global_rank == 0)
            if self.global_rank == 0:
                write_tensors(self.folder / "best.safetensors", best, {})

    def record(self, row: dict[str, Any]) -> None:
        """Keep a row of the history and pass it on."""
        self.progress.history.append(row)
        self.note(row)

    def save(self) -> None:
        """Write weights, optimiser state and progress: what a resumed run needs, whole or not at all."""
        state: dict[str, Tensor] = {f"weights/{name}": p for name, p in self.named.items()}
        for name, parameter in self.named.items():
            for kind, tensor in self.optimizer.state[parameter].items():
                if isinstance(tensor, Tensor):
                    state[f"optimizer/{kind}/{name}"] = tensor
        state = ranks.gathered(state, keep=self.global_rank == 0)
        if self.global_rank:
            return
        self.progress.losses = [loss.item() for loss in self.losses]
        write_tensors(self.folder / "resume.safetensors", state, vars(self.progress))

    def resume(self) -> None:
        """Take up a state that `save` wrote, if there is one."""
        path, known = self.folder / "resume.safetensors", len(self.progress.history)
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
        """Copy stored tensors into what is trained."""
        for name, parameter in self.named.items():
            parameter.copy_(tensors[name])


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
    """Write a safetensors file, complete or not at all.

    Raises lease.LeaseLost where another process has taken over what this process makes.
    """
    lease.check()
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # a folder: save_file writes to a scratch file of its own first, which a kill leaves
    folder = path.with_name(path.name + ".partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with atomic_write(path, folder / path.name) as scratch:
        save_file(content, scratch, {"progress": json.dumps(progress)})
    folder.rmdir()


def make_trainer(
    cfg: RunConfig, steps: int, folder: Path, sharded: bool = False, **more: Any
) -> pl.Trainer:
    """Return a Lightning Trainer that runs `steps` batches and writes nothing by itself."""
    shown = bars.shown(cfg.trainer.progress)
    return pl.Trainer(
        accelerator=cfg.trainer.accelerator,
        devices=[*launch.lent] or cfg.trainer.devices,
        strategy=ranks.strategy(cfg.trainer, sharded),
        precision=cfg.trainer.precision,  # type: ignore[arg-type]
        max_epochs=1,
        limit_train_batches=steps,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=shown,
        callbacks=[TQDMProgressBar(leave=True)] if shown else [],
        num_sanity_val_steps=0,
        # one process, whatever cluster it is on: Lightning would otherwise look for SLURM's tasks
        plugins=[LightningEnvironment()],
        **more,
    )


def fit(trainer: pl.Trainer, module: Resumable) -> None:
    """Run Lightning's loop, without the warnings that are about its own choices.

    Raises Interrupted where a signal has asked for it: after the step and with a checkpoint, and on
    several ranks after the same step.
    """
    if module.batches.start:
        log.info("going on from step %d", module.batches.start)
    with warnings.catch_warnings():
        ranks.ignore_warnings()
        device = next(module.parameters()).device
        if trainer.strategy.launcher is not None:
            sharded = isinstance(trainer.strategy, ranks.Sharded)
            if sharded:
                module.to("cpu")  # the GPU is the ranks'
            if device.type == "cuda":
                torch.cuda.empty_cache()  # what torch keeps of it
            with ranks.started(module, module.sent), stop.between_steps(module.end.touch):
                trainer.fit(module)
            if sharded:
                module.to(device)
            module.resume()
        else:
            try:
                with stop.between_steps():
                    trainer.fit(module)
            except SIGTERMException:  # between two batches; without a code, as if all were well
                module.save()
                raise stop.Interrupted(stop.asked[0] if stop.asked else signal.SIGTERM) from None
            module.to(device)  # Lightning leaves the module on the CPU
        if stop.asked:  # with several ranks, or after Lightning's last look
            raise stop.Interrupted(stop.asked[0])


@contextmanager
def trainable(classifier: Classifier, cfg: RunConfig) -> Iterator[None]:
    """Make trainable what `finetune.train` names inside a `with` block.

    Low-rank updates are merged into the dense matrices at its end, so that the graftable tensors
    hold what was learned whatever was trained.
    """
    options = cfg.finetune
    if options.train is Train.full:
        yield
        return
    if options.train is Train.bias:
        for name, parameter in classifier.graftable.items():
            parameter.requires_grad_(name.endswith("bias"))
        if not any(parameter.requires_grad for parameter in classifier.graftable.values()):
            raise InputError("finetune.train=bias: this model's graftable parameters have no bias")
        yield
    else:
        with low_rank(classifier, cfg):
            yield
    for parameter in classifier.graftable.values():
        parameter.requires_grad_(True)


@contextmanager
def low_rank(classifier: Classifier, cfg: RunConfig) -> Iterator[None]:
    """Give every graftable matrix a trainable low-rank update, and merge them at the end."""
    try:
        import peft
    except ImportError as error:
        raise InputError(
            'finetune.train=lora needs peft: pip install "skillgraft[lora]"'
        ) from error
    options = cfg.finetune
    assert options.rank is not None
    assert options.alpha is not None
    ours = {id(parameter) for parameter in classifier.graftable.values()}
    matrices = [
        name
        for name, module in classifier.model.named_modules()
        if id(getattr(module, "weight", None)) in ours and module.weight.ndim == 2
    ]
    if not matrices:
        raise InputError("finetune.train=lora: no graftable parameter of this model is a matrix")
    transposed = any(type(classifier.model.get_submodule(n)).__name__ == "Conv1D" for n in matrices)
    settings = peft.LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        target_modules=matrices,
        fan_in_fan_out=transposed,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft asks for a name that transformers 5 deprecates
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        torch.manual_seed(derive(cfg.seed, "model", "lora"))
        adapted = peft.get_peft_model(classifier.model, settings)
    yield
    adapted.merge_and_unload()


def finetune(
    classifier: Classifier,
    cfg: RunConfig,
    courses: Sequence[Course],
    pad: int,
    folder: Path,
    log: Log,
    only: Mapping[str, Tensor] | None = None,
) -> Progress:
    """Fine-tune `classifier` in place to its best validation model, and return the history.

    `folder` keeps the best model and the last checkpoint; a killed fine-tuning goes on from there
    and ends with the same bits. `only` holds entries of graftable tensors fast, as `FineTuning` says.
    """
    with trainable(classifier, cfg):
        module = FineTuning(classifier, cfg, courses, pad, folder, log, only)
        module.resume()
        module.batches.start = module.progress.step
        if left := len(module.batches):
            clip = cfg.finetune.clip or None
            sharded = cfg.trainer.strategy is Strategy.fsdp
            fit(make_trainer(cfg, left, folder, sharded, gradient_clip_val=clip), module)
            classifier.zero_grad()  # the last step's: as large as the model
        classifier.eval()
        if module.progress.best_step >= 0:
            module.restore(load_file(folder / "best.safetensors"))
    return module.progress
