"""A run being made."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from skillgraft.config import compose, messages
from skillgraft.config import identity as config_identity
from skillgraft.config.choices import UNSIZED, Carry, Combine, Kind, Selector, Strategy, Trainable
from skillgraft.config.schema import RunConfig, TaskConfig
from skillgraft.evaluation.compared import MODELS
from skillgraft.experiments import provenance as run_provenance
from skillgraft.experiments.provenance import (
    code,
    device,
    digests,
    flags,
    forget_peaks,
    peaks,
    versions,
)
from skillgraft.experiments.resolve import ResolvedRun
from skillgraft.runtime import shared_machine
from skillgraft.runtime.errors import InputError
from skillgraft.runtime.files import read_json, write_json
from skillgraft.runtime.job import JobContext
from skillgraft.runtime.seeds import derive
from skillgraft.store import checksums, graft_files, metric_names, sequences
from skillgraft.store.folders import Store
from skillgraft.store.names import MADE, SHARED

if TYPE_CHECKING:
    from torch import Tensor

    from skillgraft.core.graft import Graft
    from skillgraft.evaluation.predict import Predictions
    from skillgraft.models.classifier import Classifier
    from skillgraft.tasks.encoder import Encoded
    from skillgraft.tracking.wandb_run import WandbRun
    from skillgraft.training.batches import TrainingTask

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Panel:
    """The rows on which a task is measured, as token ids; `words` are its verbalizer's."""

    task: TaskConfig
    splits: Mapping[str, Sequence[Encoded]]
    words: Tensor | None

    def labels(self) -> dict[str, list[int]]:
        """Return the label of every row by split."""
        return {name: [row.label for row in rows] for name, rows in self.splits.items()}

    def predict(self, classifier: Classifier, pad: int, size: int, shown: bool) -> Predictions:
        """Return the class probabilities of a model on every split; `shown` draws a bar for each."""
        from skillgraft.evaluation.predict import predict

        return {
            name: predict(classifier, rows, pad, size, self.words, shown)
            for name, rows in self.splits.items()
        }

    def write(self, predictions: Mapping[str, Predictions], path: Path) -> None:
        """Write a row an example, model and split."""
        from skillgraft.evaluation import prediction_files

        frame = prediction_files.to_frame(predictions, self.labels(), list(self.task.labels))
        frame.to_parquet(path, index=False)


def for_task(cfg: RunConfig, task: TaskConfig) -> RunConfig:
    """Return the configuration with another task in the place of the run's own."""
    other = compose.editable(cfg)
    other.task = task
    return other


@contextmanager
def deterministic() -> Iterator[None]:
    """Have a GPU give the same bits every time inside a `with` block."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    wanted = {
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # what cuBLAS wants, before its first use
        "NCCL_NVLS_ENABLE": "0",  # sums in the switch come in no fixed order
    }
    missing = [name for name in wanted if name not in os.environ]
    os.environ.update({name: wanted[name] for name in missing})
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        for name in missing:
            os.environ.pop(name, None)


class Making:
    """A run being made in its partial folder."""

    def __init__(self, resolved: ResolvedRun, context: JobContext) -> None:
        self.cfg, self.rows, self.identity = resolved.cfg, resolved.rows, resolved.identity
        self.store, self.size, self.context = resolved.store, resolved.size, context
        self.bars = context.shows_progress(self.cfg.trainer.progress)
        self.folder = self.store.partial(self.identity.id)
        self.spent = self.folder / "seconds.json"  # beside the stages' checkpoints
        earlier = read_json(self.spent) if self.spent.is_file() else {}
        self.seconds: dict[str, float] = earlier.get("seconds", {})
        self.attempts: int = earlier.get("attempts", 0) + 1
        self.weights: str | None = None  # whether the fine-tuned ones were made or are shared
        code()  # what is imported, not what the checkout holds when the run ends

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the wall time of a stage, also of one that a signal ends, to that of earlier attempts."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = self.seconds.get(stage, 0.0) + time.perf_counter() - start
            self.seconds[stage] = round(spent, 3)
            with suppress(FileNotFoundError):  # another process has taken over, and has published
                facts = {"attempts": self.attempts, "seconds": self.seconds}
                write_json(self.spent, facts)

    def make(self) -> None:
        """Do the whole run and publish it."""
        with self.timed("imports"):
            from skillgraft.tracking import wandb_run
        with self.on_device():
            forget_peaks(self.cfg.trainer.accelerator)
            with self.timed("load"):
                self.load()
            with wandb_run.tracking(self.cfg, self.identity, self.folder) as tracker:
                cached = self.finetuned(tracker)
                with self.timed("graft"):
                    graft = self.choose(cached, tracker)
                with self.timed("evaluate"):
                    metrics, predictions = self.evaluate(cached, graft)
                with self.timed("report"):
                    self.report(metrics, predictions, graft, tracker)
            self.finish(graft, cached, self.context.folder)

    # ------------------------------------------------------------------------------- stages

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Set threads and device for the run; on one of several GPUs, one that no other job has.

        Raises InputError where torch does not see as many GPUs as `trainer` asks for.
        """
        import torch

        from skillgraft.training import distributed

        trainer = self.cfg.trainer
        torch.set_num_threads(self.cfg.threads)
        distributed.quiet()
        self.device = torch.device("cuda" if trainer.accelerator == "gpu" else "cpu")
        if self.device.type == "cpu":
            yield
            return
        # as Lightning sets it later: ranks count the GPUs of one machine as their run does
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        seen = torch.cuda.device_count()
        if not torch.cuda.is_available():
            raise InputError("trainer.accelerator=gpu: torch sees no GPU; use trainer=cpu")
        if seen < trainer.devices:
            raise InputError(f"trainer.devices={trainer.devices}: torch sees {seen} GPUs")
        names = [str(torch.cuda.get_device_properties(i).uuid) for i in range(seen)]
        with (
            deterministic(),
            shared_machine.acquire_gpus(names, trainer.devices, self.context.number) as own,
        ):
            torch.cuda.set_device(own[0])  # what "cuda" means from here on
            try:
                yield
            finally:
                torch.cuda.empty_cache()  # a worker's next job may be lent another

    def load(self) -> None:
        """Load tokenizer, rows as token ids, and the pre-trained model: the last check of the input."""
        import torch

        from skillgraft.models import checkpoint_files, compiling, families, pretrained
        from skillgraft.tasks import tokens
        from skillgraft.tasks.batches import collate
        from skillgraft.tasks.encoder import make_encoder

        cfg = self.cfg
        self.read = run_provenance.files(cfg, self.store.cache / "digests")
        folder = checkpoint_files.locate(cfg.model)
        tokenizer = pretrained.load_tokenizer(folder)
        self.classifier: Classifier = pretrained.load_model(cfg, folder, tokenizer)
        self.pad = tokenizer.pad_token_id or 0
        self.tasks = {cfg.task.name: cfg.task, **cfg.other_tasks}
        positions = families.longest_input(self.classifier)
        self.panels: dict[str, Panel] = {}
        self.trains: dict[str, list[Encoded]] = {}
        for name, task in self.tasks.items():
            part = self.rows if name == cfg.task.name else self.rows.others[name]
            encoder = make_encoder(for_task(cfg, task), tokenizer, positions)
            words = None
            if len(self.tasks) > 1 and cfg.finetune.kind is not Kind.linear:
                words = torch.tensor(tokens.words_to_ids(task, tokenizer))
            splits = {split: encoder(rows) for split, rows in part.evaluated().items()}
            self.panels[name] = Panel(task, splits, words)
            self.trains[name] = encoder(part.train)
        self.own = self.panels[cfg.task.name]
        if cfg.trainer.strategy is not Strategy.fsdp:  # else θ_pre stays on the CPU
            self.classifier.to(self.device)
        self.start()
        self.classifier.to(self.device)
        if cfg.trainer.compile:
            batch = collate(self.trains[cfg.task.name][:2], self.pad)
            if (words := self.panels[cfg.task.name].words) is not None:
                batch["words"] = words
            compiling.compiled(self.classifier, batch)
        self.check_region()

    def start(self) -> None:
        """Keep θ_pre; in a sequence, what the last stage left, with the regions that are taken."""
        import torch

        # the classifier's own tensors are trained in place
        self.origin = {n: p.detach().clone() for n, p in self.classifier.graftable.items()}
        self.pretrained, self.taken = self.origin, torch.empty(0, dtype=torch.int64)
        before = sequences.chain(self.cfg)
        if not before:
            return
        if self.cfg.continual.carry is Carry.graft:
            from skillgraft.core.graft import Graft

            grafts = [Graft.load(stage["folder"] / "graft.safetensors") for stage in before]
            for graft in grafts:
                graft.apply(self.classifier.model)
            self.taken = torch.cat([graft.region() for graft in grafts]).unique()
        else:
            from safetensors.torch import load_file

            last = read_json(before[-1]["folder"] / "status.json")
            whole = Store(before[-1]["folder"].parent).finetuned(last["finetuned"])
            if not checksums.is_complete(whole):
                raise InputError(
                    f"continual.init_from={last['id']}: its fine-tuned weights are not in {whole}"
                )
            self.classifier.restore(load_file(whole / "weights.safetensors"))
        self.pretrained = {n: p.detach().clone() for n, p in self.classifier.graftable.items()}
        if self.cfg.continual.carry is not Carry.graft:
            self.origin = self.pretrained

    def check_region(self) -> None:
        """Raise InputError for a region that this model cannot have, before anything is trained."""
        from skillgraft.core import modules

        options, total = self.cfg.graft, self.graftable
        if self.size is not None and self.size > total:
            raise InputError(
                f"graft.size_from: {self.size} entries, of {total} that are graftable here"
            )
        if options.selector is Selector.file:
            self.files = self.stored()
        kind = options.selector.value
        if kind in modules.PART_OF:
            known = modules.part_names(self.origin, kind)
            if (part := self.part) not in known:
                hint = messages.nearest(part or "", known)
                raise InputError(f"graft.{kind}={part}: this model has {', '.join(known)}.{hint}")

    @property
    def part(self) -> str | None:
        """The bias, layer or kind of module that is the region, for the selectors that take one."""
        options = self.cfg.graft
        kinds = {Selector.layer: options.layer, Selector.module: options.module}
        return kinds.get(options.selector, options.selector.value)

    @property
    def graftable(self) -> int:
        """The number of graftable parameters."""
        return sum(tensor.numel() for tensor in self.origin.values())

    @property
    def batch_size(self) -> int:
        """The number of rows of a batch without gradients."""
        return self.cfg.trainer.evaluation_batch_size

    def predict(self, panel: Panel) -> Predictions:
        """Return the class probabilities of the classifier as it stands on a task's splits."""
        return panel.predict(self.classifier, self.pad, self.batch_size, self.bars)

    def finetuned(self, tracker: WandbRun) -> Path:
        """Return the folder of the run's fine-tuning, made here or found, and log its curves."""
        name = self.identity.finetuned
        whole = self.store.finetuned(name)
        with self.store.lock(f"finetuned-{name}"):
            if checksums.is_complete(whole):
                log.info("fine-tuned weights: taken from the store (%s)", name)
                self.weights = SHARED
                for row in read_json(whole / "history.json"):
                    tracker.log(row)
            else:
                log.info("fine-tuning: %d steps", self.cfg.finetune.steps)
                with self.timed("finetune"):
                    self.make_finetuned(whole, tracker)
                self.weights = MADE
        return whole

    def make_finetuned(self, whole: Path, tracker: WandbRun) -> None:
        """Fine-tune, evaluate θ_ft and θ_pre on every split, and publish both for all runs to share."""
        from skillgraft.training.checkpoints import write_tensors
        from skillgraft.training.fine_tuning import finetune

        folder = self.store.partial(f"finetuned-{self.identity.finetuned}")
        done = finetune(
            self.classifier, self.cfg, self.courses(), self.pad, folder, tracker.log, bars=self.bars
        )
        write_tensors(folder / "weights.safetensors", self.classifier.trained(), {})
        after = {name: self.predict(panel) for name, panel in self.panels.items()}
        self.reset()
        for name, panel in self.panels.items():
            predictions = {"pretrained": self.predict(panel), "finetuned": after[name]}
            panel.write(predictions, folder / f"predictions{self.suffix(name)}.parquet")
        write_json(folder / "history.json", done.history)
        for scratch in ("resume.safetensors", "best.safetensors"):
            (folder / scratch).unlink(missing_ok=True)
        self.store.publish(folder, whole, {"best_step": done.best_step})

    def suffix(self, task: str) -> str:
        """Return what the names of a task's files end in: nothing for a run's only task."""
        mixed = bool(self.cfg.finetune.tasks)
        return f"-{task}" if mixed or task != self.cfg.task.name else ""

    def courses(self) -> list[TrainingTask]:
        """Return what fine-tuning reads: the run's task, or all tasks of a mixture."""
        from skillgraft.training.batches import TrainingTask

        names = list(self.cfg.finetune.tasks or ()) or [self.cfg.task.name]
        return [
            TrainingTask(
                name,
                self.tasks[name].metric,
                self.trains[name],
                self.panels[name].splits["validation"],
                self.panels[name].words,
            )
            for name in names
        ]

    def reset(self) -> None:
        """Put θ_pre back into the classifier; a fine-tuned head stays, it serves all models."""
        for name, parameter in self.classifier.graftable.items():
            parameter.data.copy_(self.pretrained[name])

    def choose(self, cached: Path, tracker: WandbRun) -> Graft:
        """Return the graft of the region that the selector chooses."""
        import torch
        from safetensors.torch import load_file

        from skillgraft.core.graft import Graft
        from skillgraft.core.graft_facts import tasks_of

        cfg, weights = self.cfg, load_file(cached / "weights.safetensors")
        heads = {n.removeprefix("head."): t for n, t in weights.items() if n.startswith("head.")}
        self.after = {name: weights[name] for name in self.pretrained}
        self.classifier.restore({**self.pretrained, **{f"head.{n}": t for n, t in heads.items()}})
        if (twin := self.twin()) is not None:
            return twin
        if cfg.graft.selector is Selector.file:
            meta = {**self.files.meta, **self.meta(heads), "regions": tasks_of(self.files)}
            return replace(self.files, meta=meta, head=heads)
        finetuned = self.untaken(self.after)
        if all(torch.equal(finetuned[n], p.cpu()) for n, p in self.pretrained.items()):
            log.warning("fine-tuning moved nothing: every graft is the pre-trained model")
        with self.lent(), self.classifier.fixed_head():
            chosen = self.region(finetuned, self.asked(), tracker).cpu()
        chosen = chosen[~torch.isin(chosen, self.taken)]
        return Graft.take(chosen, self.origin, finetuned, self.meta(heads), heads)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Let the classifier have θ_pre's own tensors inside a `with` block: one copy less in memory.

        What chooses a region leaves them as they were. What comes after would not: at the end the
        classifier has its own again.
        """
        ours = {
            name: parameter
            for name, parameter in self.classifier.graftable.items()
            if parameter.device == self.pretrained[name].device
        }
        for name, parameter in ours.items():
            parameter.data = self.pretrained[name]
        try:
            yield
        finally:
            for name, parameter in ours.items():
                parameter.data = self.pretrained[name].clone()

    def untaken(self, finetuned: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return θ_ft with earlier stages' regions as they left them: not this one's to change."""
        from skillgraft.core import layout, regions

        if not self.taken.numel():
            return finetuned
        out = {name: tensor.clone() for name, tensor in finetuned.items()}
        for name, entries in layout.FlatLayout.of(out).split(self.taken).items():
            regions.write_at(out[name], entries, self.pretrained[name].cpu().take(entries))
        return out

    def asked(self) -> int:
        """Return the number of entries that a selector with a size is asked for."""
        from skillgraft.core import regions

        cfg, free = self.cfg, self.graftable - self.taken.numel()
        size = regions.region_size(cfg.sparsity, self.graftable) if self.size is None else self.size
        if cfg.graft.selector in UNSIZED:
            return size
        if size == 0:
            log.warning("sparsity=%g of %d asks for no entry", cfg.sparsity, self.graftable)
        if size > free:
            log.warning("%d entries are asked for, earlier stages have left %d", size, free)
        return min(size, free)

    def meta(self, heads: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return what the graft file says of itself."""
        cfg = self.cfg
        return {
            "model": cfg.model.name,
            "task": cfg.task.name,
            "labels": list(cfg.task.labels),
            "selector": cfg.graft.selector.value,
            "requested_sparsity": None if cfg.graft.selector in UNSIZED else cfg.sparsity,
            "seed": cfg.seed,
            "run": self.identity.id,
            "finetune": cfg.finetune.kind.value,
            "pool": cfg.finetune.pool.value if heads and cfg.finetune.pool else None,
            "norm": cfg.finetune.feature_norm if heads else None,
        }

    def twin(self) -> Graft | None:
        """Return the graft of a whole run that differs in comparison models only, if there is one."""
        from skillgraft.core.graft import Graft
        from skillgraft.runtime.errors import GraftError

        same = self.store.runs("region", self.identity.region)
        found = next((run["id"] for run in same if run["id"] != self.identity.id), None)
        if found is None:
            return None
        folder = self.store.run(found)
        try:
            graft = Graft.load(folder / "graft.safetensors")
            if (folder / "history.json").is_file():
                shutil.copy(folder / "history.json", self.folder)
        except (GraftError, OSError) as error:  # altered, or just being replaced: make it here
            log.warning("region: not taken from %s (%s)", found, error)
            return None
        log.info("region: taken from %s", found)
        (self.folder / "mask.safetensors").unlink(missing_ok=True)  # of a try that was killed
        return replace(graft, meta={**graft.meta, "run": self.identity.id})

    def region(self, finetuned: Mapping[str, Tensor], asked: int, tracker: WandbRun) -> Tensor:
        """Return the sorted flat indices that the selector chooses."""
        from skillgraft.core import gradient_scores, modules, movement, regions, top_k

        selector = self.cfg.graft.selector
        match selector:
            case Selector.learned | Selector.stitch_l1:
                return self.learn(finetuned, asked, tracker)
            case Selector.movement:
                return movement.base_region(finetuned, self.pretrained, asked, self.taken)
            case Selector.magnitude:
                return top_k.top_k(gradient_scores.magnitude(finetuned), asked, self.taken)
            case Selector.random:
                seed = derive(self.cfg.seed, "mask", "random")
                return regions.at_random(self.graftable, asked, seed, self.taken)
            case Selector.bias | Selector.layer | Selector.module:
                of = modules.PART_OF[selector.value]
                return modules.all_of(finetuned, lambda name: of(name) == self.part)
        return self.by_gradient(finetuned, asked)

    def by_gradient(self, finetuned: Mapping[str, Tensor], asked: int) -> Tensor:
        """Return the region of the selectors that read the loss's gradient, and train nothing."""
        from skillgraft.core import flat_model, gradient_scores, top_k
        from skillgraft.training import mask_batches
        from skillgraft.training.losses import batch_losses

        cfg, options = self.cfg, self.cfg.graft
        rows, squares = self.trains[cfg.task.name], options.selector is Selector.fisher
        size = 1 if squares and options.per_example else options.batch_size
        assert size is not None
        assert options.examples_per_step is not None
        batches = mask_batches.MaskBatches(
            rows, self.pad, size, options.examples_per_step, cfg.seed, 0, 1
        )
        flat = flat_model.FlatModel(self.classifier.graftable, finetuned)

        def losses() -> Iterable[Tensor]:
            return batch_losses(self.classifier, batches, flat.theta.device)

        try:
            assert options.path_points is not None
            if not squares and options.greedy_rounds is not None:
                return gradient_scores.greedy(
                    flat, losses, asked, options.greedy_rounds, self.taken
                )
            worth = (gradient_scores.fisher if squares else gradient_scores.attribution)(
                flat, losses, options.path_points
            )
            return top_k.top_k(worth, asked, self.taken)
        finally:
            flat.close()

    def stored(self) -> Graft:
        """Return the grafts of the files that are named, made one by the rule."""
        from skillgraft.core import digests
        from skillgraft.core.graft import Graft, intersection, union
        from skillgraft.core.graft_facts import base_name

        options, base = self.cfg.graft, digests.digest(self.origin)
        files = [graft_files.graft_file(path) for path in options.paths]
        grafts = [Graft.load(file) for file in files]
        for file, graft in zip(files, grafts, strict=True):
            if graft.base != base:
                raise InputError(
                    f"graft.paths: {file}: its base model is {base_name(graft)}, not this one"
                )
        return union(grafts) if options.combine is Combine.union else intersection(grafts)

    def learn(self, finetuned: Mapping[str, Tensor], asked: int, tracker: WandbRun) -> Tensor:
        """Return the learned region's indices, and log the curves of mask training."""
        import torch

        from skillgraft.core import best_mask, movement, relaxed_graft
        from skillgraft.training import mask_training

        cfg, options = self.cfg, self.cfg.graft
        log.info("mask training: %d steps", options.steps)
        total = self.graftable
        base = movement.base_region(finetuned, self.pretrained, asked, self.taken).to(self.device)
        if options.selector is Selector.stitch_l1:  # γ = σ(M): no region to flip, ±start instead
            assert options.init_score is not None
            scores = torch.full((total,), -options.init_score, device=self.device)
            scores[base] = options.init_score
            base, bias = base[:0], 0.0
        else:
            scores = best_mask.initial_scores(total, cfg.seed).to(self.device)
            assert options.sigmoid_bias is not None
            bias = options.sigmoid_bias
        penalty = options.l1_penalty if options.selector is Selector.stitch_l1 else None
        relaxed = relaxed_graft.RelaxedGraft(
            self.classifier.graftable, finetuned, base, scores, bias, penalty or 0.0
        )
        try:
            chosen, history = mask_training.learn_mask(
                self.classifier,
                relaxed,
                cfg,
                self.trains[cfg.task.name],
                self.own.splits["validation"],
                self.pad,
                self.folder,
                tracker.log,
                self.bars,
            )
        finally:
            relaxed.close()
        write_json(self.folder / "history.json", history)
        (self.folder / "mask.safetensors").unlink(missing_ok=True)
        return chosen

    def evaluate(self, cached: Path, graft: Graft) -> tuple[dict[str, Any], dict[str, Predictions]]:
        """Return metrics.json and the predictions of all models on the run's own task."""
        from skillgraft.core.activation import active
        from skillgraft.core.graft_facts import shares_by_layer, shares_by_module
        from skillgraft.evaluation import calibration, prediction_files
        from skillgraft.evaluation.metrics import compare
        from skillgraft.evaluation.predict import joined

        graft.save(self.folder / "graft.safetensors")
        predictions = {
            name: prediction_files.read_predictions(
                cached / f"predictions{self.suffix(name)}.parquet"
            )
            for name in self.panels
        }
        with active(self.classifier, graft):
            self.note(predictions, "graft")
        self.beside(graft, predictions)
        own = predictions.pop(self.cfg.task.name)
        temperatures = {}
        if self.cfg.compare.temperature:
            for model in ("finetuned", "graft"):
                validation = self.own.labels()["validation"]
                temperature = calibration.fit_temperature(own[model]["validation"], validation)
                temperatures[model] = temperature
                own[f"{model}_temperature_scaled"] = {
                    split: calibration.scale(p, temperature) for split, p in own[model].items()
                }
        for splits in own.values():  # after the temperatures, which are of the task's own classes
            for split, groups in self.rows.joined.items():
                splits[split] = joined(splits[split], groups)
        metrics: dict[str, Any] = dict(compare(own, self.own.labels(), self.cfg.task.metric))
        self.own.write(own, self.folder / "predictions.parquet")
        for name, models in predictions.items():
            panel = self.panels[name]
            models = {model: {"test": splits["test"]} for model, splits in models.items()}
            panel.write(models, self.folder / f"predictions-{name}.parquet")
            for model, measured in compare(models, panel.labels(), panel.task.metric).items():
                metrics[model][f"tasks/{name}"] = measured["test"]
        if temperatures:
            metrics["temperature"] = temperatures
        metrics["region"] = {
            "size": graft.size,
            "sparsity": graft.sparsity,
            "graftable": graft.graftable,
            "layer": shares_by_layer(graft),
            "module": shares_by_module(graft),
        }
        write_json(self.folder / "metrics.json", metrics)
        return metrics, own

    def note(self, predictions: dict[str, dict[str, Predictions]], model: str) -> None:
        """Add the predictions of the classifier as it stands, under a model's name, for every task."""
        for name, panel in self.panels.items():
            predictions[name][model] = self.predict(panel)

    def beside(self, graft: Graft, predictions: dict[str, dict[str, Predictions]]) -> None:
        """Add the predictions of the comparison models that the configuration asks for."""
        import torch

        parameters = self.classifier.graftable
        for alpha in self.cfg.compare.wise_ft_alphas:
            for name, parameter in parameters.items():
                # lerp gives both ends to the bit
                before, after = self.pretrained[name].to(parameter), self.after[name].to(parameter)
                parameter.data.copy_(torch.lerp(before, after, alpha))
            self.note(predictions, f"wise_{alpha:g}")
        inside = {
            name: torch.zeros(p.numel(), dtype=torch.bool).index_fill_(0, graft.indices[name], 1)
            for name, p in parameters.items()
        }
        only = {
            name: m.view_as(parameters[name]).to(parameters[name].device)
            for name, m in inside.items()
        }
        for steps in self.cfg.compare.lottery_steps:
            for name, parameter in parameters.items():
                parameter.data.copy_(self.pretrained[name].to(parameter) * only[name])
            self.train_inside(only, steps, f"lottery_{steps}", predictions)
        for steps in self.cfg.compare.inside_steps:
            self.reset()
            graft.apply(self.classifier)
            self.train_inside(only, steps, f"inside_{steps}", predictions)
        self.reset()

    def train_inside(
        self,
        only: Mapping[str, Tensor],
        steps: int,
        model: str,
        predictions: dict[str, dict[str, Predictions]],
    ) -> None:
        """Train the region's entries alone for some steps, all else held fast, and note the result."""
        from skillgraft.training.fine_tuning import finetune
        from skillgraft.training.resumable import log_nothing

        cfg = compose.editable(self.cfg)
        cfg.finetune.steps, cfg.finetune.trainable, cfg.finetune.l1 = steps, Trainable.full, 0.0
        folder = self.folder / model
        folder.mkdir(exist_ok=True)
        with self.classifier.fixed_head():
            finetune(
                self.classifier, cfg, self.courses(), self.pad, folder, log_nothing, only, self.bars
            )
        shutil.rmtree(folder)
        self.note(predictions, model)

    def report(
        self,
        metrics: Mapping[str, Any],
        predictions: Mapping[str, Predictions],
        graft: Graft,
        tracker: WandbRun,
    ) -> None:
        """Draw the run's figures, compare its region with its peers', and log all of it."""
        from skillgraft.analysis import overlaps, plots, tables

        tests = {model: predictions[model]["test"] for model in MODELS}
        title = f"{self.cfg.task.name}, {self.identity.group}, seed {self.cfg.seed}"
        diagram = plots.save(
            plots.reliability_diagram(tests, self.own.labels()["test"], title),
            self.folder / "figures" / "reliability.png",
        )
        tracker.image("reliability", diagram)
        tracker.table(
            "reliability_bins", tables.reliability_table(tests, self.own.labels()["test"])
        )
        overlap, matrix = overlaps.overlaps_with_runs(
            graft, self.cfg.task.name, self.identity, self.store
        )
        write_json(self.folder / "overlap.json", overlap)
        if len(matrix) > 1:
            drawing = plots.heat_map(matrix, f"overlap (IoU), {self.identity.group}", "IoU")
            tracker.image(
                "overlap_map", plots.save(drawing, self.folder / "figures" / "overlap.png")
            )
        values = metric_names.measured(metrics, overlap)
        tracker.point(values)
        tracker.summarize(values)
        tracker.graft(self.folder / "graft.safetensors", graft.meta)

    def facts(self) -> dict[str, Any]:
        """Return what names a run in every table, whole or not."""
        cfg = self.cfg
        return {
            "id": self.identity.id,
            "task": cfg.task.name,
            "model": cfg.model.name,
            "selector": cfg.graft.selector.value,
            "sparsity": cfg.sparsity,
            "seed": cfg.seed,
        }

    def finish(self, graft: Graft, cached: Path, job: Path | None) -> None:
        """Write what the run was, copy Hydra's files in, and publish the folder."""
        from skillgraft.core.graft_facts import tasks_of

        cfg, folder = self.cfg, self.folder
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True), encoding="utf-8")
        write_json(folder / "provenance.json", self.provenance(cached))
        self.spent.unlink()
        if job is not None and job.is_dir():
            for handler in logging.getLogger().handlers:
                handler.flush()
            shutil.copytree(job, folder / "hydra", dirs_exist_ok=True)
        status = {
            **self.facts(),
            "same_but_task": self.identity.same_but_task,
            "same_but_selector": self.identity.same_but_selector,
            "finetuned": self.identity.finetuned,
            "same_but_seed": self.identity.same_but_seed,
            "region": self.identity.region,
            "same_outcome": self.identity.same_outcome,
            "stage": self.identity.stage,
            "regions": tasks_of(graft),
            "config": config_identity.identity(cfg),
        }
        self.store.publish(folder, self.store.run(self.identity.id), status)

    def provenance(self, cached: Path) -> dict[str, Any]:
        """Return versions, code, files, digests, seeds, device, flags, timings and memory."""
        cfg = self.cfg
        purposes = {"data": "train", "model": "head", "mask": "scores"}
        return {
            "versions": versions(),
            "code": code(),
            "platform": platform.platform(),
            "accelerator": cfg.trainer.accelerator,
            "device": device(cfg.trainer.accelerator),
            "flags": flags(),
            "threads": cfg.threads,
            "command": list(self.context.command),
            "files": self.read,
            "digests": digests(self.identity, self.rows),
            # kept here, since the fine-tuned weights themselves can be freed
            "finetuned": {
                "name": self.identity.finetuned,
                "weights": checksums.recorded(cached).get("weights.safetensors"),
            },
            "seed": cfg.seed,
            "seeds": {kind: derive(cfg.seed, kind, of) for kind, of in purposes.items()},
            "notes": self.rows.notes,
            "seconds": self.seconds,
            "attempts": self.attempts,
            **peaks(cfg.trainer.accelerator),
        }
