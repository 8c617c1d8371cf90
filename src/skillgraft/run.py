"""One run, left to right: rows → model → fine-tuning → region → metrics → store."""

from __future__ import annotations

import logging
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from skillgraft import config, data, store
from skillgraft.config import RunConfig, Selector
from skillgraft.errors import InputError
from skillgraft.store import Identity, Store

if TYPE_CHECKING:
    from torch import Tensor

    from skillgraft.evaluate import Predictions
    from skillgraft.graft import Graft
    from skillgraft.model import Classifier
    from skillgraft.prompt import Encoded
    from skillgraft.track import Tracker

log = logging.getLogger(__name__)
MODELS = ("pretrained", "finetuned", "graft")
VERSIONS = (
    "skillgraft",
    "torch",
    "transformers",
    "tokenizers",
    "pytorch-lightning",
    "torchmetrics",
    "numpy",
    "datasets",
    "hydra-core",
    "omegaconf",
    "safetensors",
    "wandb",
)


def run(cfg: RunConfig, folders: Sequence[Path] = (), job: Path | None = None) -> Path:
    """Make one run, or find it whole, and return its folder.

    `folders` are the configuration folders, in which OOD tasks are looked up; `job` is Hydra's
    folder of this job. Raises InputError for bad input before any training starts.
    """
    config.check(cfg)
    cfg.task.verbalizer = config.verbalizer(cfg.task)
    config.expand(cfg, list(folders))
    store.absolute_paths(cfg)
    rows = data.load(cfg)
    size = store.matched_size(cfg, rows)
    identity = store.identify(cfg, rows, size)
    place = Store(cfg.store)
    if store.is_whole(place.run(identity.id)) and not cfg.force:
        return found(place.run(identity.id))
    for note in rows.notes:
        log.warning("%s: %s", cfg.task.name, note)
    with place.lock(identity.id):
        place.mend(identity.id)
        if store.is_whole(place.run(identity.id)) and not cfg.force:
            return found(place.run(identity.id))
        Making(cfg, rows, identity, place, size).make(job)
    show(place.run(identity.id))
    return place.run(identity.id)


def found(folder: Path) -> Path:
    """Say that a run is there already, and show it."""
    log.info("already whole, nothing to do (force=true runs it again)")
    show(folder)
    return folder


class Making:
    """A run being made in its partial folder."""

    def __init__(
        self,
        cfg: RunConfig,
        rows: data.TaskData,
        identity: Identity,
        place: Store,
        size: int | None,
    ) -> None:
        self.cfg, self.rows, self.identity, self.place, self.size = cfg, rows, identity, place, size
        self.folder = place.partial(identity.id)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Keep the wall time of a stage for the provenance."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - start, 3)

    def make(self, job: Path | None) -> None:
        """Do the whole run and publish it."""
        with self.timed("imports"):
            from skillgraft import track
        with self.timed("load"):
            self.load()
        with track.tracking(self.cfg, self.identity, self.folder) as tracker:
            cached = self.finetuned(tracker)
            with self.timed("graft"):
                graft = self.choose(cached, tracker)
            with self.timed("evaluate"):
                metrics, predictions = self.evaluate(cached, graft)
            with self.timed("report"):
                self.report(metrics, predictions, graft, tracker)
        self.finish(job)

    # ------------------------------------------------------------------------------- stages

    def load(self) -> None:
        """Load tokenizer, rows as token ids, and the pre-trained model: the last check of the input."""
        import torch

        from skillgraft import checkpoint, model, prompt

        cfg = self.cfg
        torch.set_num_threads(cfg.threads)
        quiet()
        gpu = cfg.trainer.accelerator == "gpu"
        if gpu and not torch.cuda.is_available():
            raise InputError("trainer.accelerator=gpu: torch sees no GPU; use trainer=cpu")
        if gpu:  # the variable is what cuBLAS wants for the same bits, before its first use
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        folder = checkpoint.locate(cfg.model)
        tokenizer = model.load_tokenizer(folder)
        self.classifier: Classifier = model.load_model(cfg, folder, tokenizer)
        self.pad = tokenizer.pad_token_id or 0
        encoder = prompt.make_encoder(cfg, tokenizer, model.longest_input(self.classifier))
        self.train = encoder(self.rows.train)
        self.splits: dict[str, list[Encoded]] = {
            name: encoder(rows) for name, rows in self.rows.evaluated().items()
        }
        self.labels = {n: [r.label for r in rows] for n, rows in self.splits.items()}
        self.classifier.to("cuda" if gpu else "cpu")
        # θ_pre as the checkpoint has it; the classifier's own tensors are trained in place.
        self.pretrained = {n: p.detach().clone() for n, p in self.classifier.graftable.items()}

    def predict(self) -> Predictions:
        """Return the class probabilities of the classifier as it stands, on every split."""
        from skillgraft.evaluate import predict

        size = self.cfg.trainer.evaluation_batch_size
        return {n: predict(self.classifier, r, self.pad, size) for n, r in self.splits.items()}

    def finetuned(self, tracker: Tracker) -> Path:
        """Return the folder of the run's fine-tuning, made here or found, and log its curves."""
        name = self.identity.finetuned
        whole = self.place.finetuned(name)
        with self.place.lock(f"finetuned-{name}"):
            if store.is_whole(whole):
                log.info("fine-tuned weights: taken from the store (%s)", name)
                for row in store.read_json(whole / "history.json"):
                    tracker.log(row)
            else:
                log.info("fine-tuning: %d steps", self.cfg.finetune.steps)
                with self.timed("finetune"):
                    self.make_finetuned(whole, tracker)
        return whole

    def make_finetuned(self, whole: Path, tracker: Tracker) -> None:
        """Fine-tune, evaluate θ_ft and θ_pre on every split, and publish both for all runs to share."""
        from skillgraft import evaluate
        from skillgraft.finetune import finetune, write_tensors

        folder = self.place.partial(f"finetuned-{self.identity.finetuned}")
        progress = finetune(
            self.classifier,
            self.cfg,
            self.train,
            self.splits["validation"],
            self.pad,
            folder,
            tracker.log,
        )
        write_tensors(folder / "weights.safetensors", self.classifier.trained(), {})
        after = self.predict()
        self.reset()
        predictions = {"pretrained": self.predict(), "finetuned": after}
        frame = evaluate.to_frame(predictions, self.labels, list(self.cfg.task.labels))
        frame.to_parquet(folder / "predictions.parquet", index=False)
        store.write_json(folder / "history.json", progress.history)
        for scratch in ("resume.safetensors", "best.safetensors"):
            (folder / scratch).unlink(missing_ok=True)
        self.place.publish(folder, whole, {"best_step": progress.best_step})

    def reset(self) -> None:
        """Put θ_pre back into the classifier; a fine-tuned head stays, it serves all models."""
        for name, parameter in self.classifier.graftable.items():
            parameter.data.copy_(self.pretrained[name])

    def choose(self, cached: Path, tracker: Tracker) -> Graft:
        """Return the graft of the region that the selector chooses."""
        from safetensors.torch import load_file

        from skillgraft import region
        from skillgraft.graft import Graft
        from skillgraft.seeds import derive

        cfg, weights = self.cfg, load_file(cached / "weights.safetensors")
        heads = {n.removeprefix("head."): t for n, t in weights.items() if n.startswith("head.")}
        finetuned = {name: weights[name] for name in self.pretrained}
        self.classifier.restore({**self.pretrained, **{f"head.{n}": t for n, t in heads.items()}})
        total = sum(p.numel() for p in self.pretrained.values())
        asked = region.region_size(cfg.sparsity, total) if self.size is None else self.size
        if asked > total:
            raise InputError(f"graft.match: {asked} entries, of {total} that are graftable here")
        if cfg.graft.selector is Selector.learned:
            chosen = self.learn(finetuned, asked, total, tracker)
        elif cfg.graft.selector is Selector.movement:
            from skillgraft.mask import base_region

            chosen = base_region(finetuned, self.pretrained, asked)
        else:
            chosen = region.at_random(total, asked, derive(cfg.seed, "mask", "random"))
        meta = {
            "model": cfg.model.name,
            "task": cfg.task.name,
            "labels": list(cfg.task.labels),
            "selector": cfg.graft.selector.value,
            "asked_sparsity": cfg.sparsity,
            "seed": cfg.seed,
            "run": self.identity.id,
            "finetune": cfg.finetune.kind.value,
            "pool": cfg.finetune.pool.value if heads and cfg.finetune.pool else None,
            "norm": cfg.finetune.norm if heads else None,
        }
        graft = Graft.take(chosen.cpu(), self.pretrained, finetuned, meta, heads)
        graft.save(self.folder / "graft.safetensors")
        return graft

    def learn(
        self, finetuned: Mapping[str, Tensor], asked: int, total: int, tracker: Tracker
    ) -> Tensor:
        """Return the learned region's indices, and log the curves of mask training."""
        from skillgraft import learn, mask

        cfg = self.cfg
        log.info("mask training: %d steps", cfg.graft.steps)
        device = next(iter(self.pretrained.values())).device
        base = mask.as_mask(mask.base_region(finetuned, self.pretrained, asked), total)
        scores = mask.initial_scores(total, cfg.seed).to(device)
        assert cfg.graft.sigmoid_bias is not None
        relaxed = mask.RelaxedGraft(
            self.classifier.graftable, finetuned, base, scores, cfg.graft.sigmoid_bias
        )
        try:
            chosen, history = learn.learn(
                self.classifier,
                relaxed,
                cfg,
                self.train,
                self.splits["validation"],
                self.pad,
                self.folder,
                tracker.log,
            )
        finally:
            relaxed.close()
        store.write_json(self.folder / "history.json", history)
        (self.folder / "mask.safetensors").unlink(missing_ok=True)
        return chosen

    def evaluate(self, cached: Path, graft: Graft) -> tuple[dict[str, Any], dict[str, Predictions]]:
        """Return metrics.json and the predictions of all three models."""
        from skillgraft import evaluate

        predictions = evaluate.read_predictions(cached / "predictions.parquet")
        with graft.applied(self.classifier):
            predictions["graft"] = self.predict()
        frame = evaluate.to_frame(predictions, self.labels, list(self.cfg.task.labels))
        frame.to_parquet(self.folder / "predictions.parquet", index=False)
        metrics: dict[str, Any] = dict(
            evaluate.compare(predictions, self.labels, self.cfg.task.metric)
        )
        metrics["region"] = {
            "size": graft.size,
            "sparsity": graft.sparsity,
            "graftable": graft.graftable,
            "layer": graft.by_layer(),
            "module": graft.by_module(),
        }
        store.write_json(self.folder / "metrics.json", metrics)
        return metrics, predictions

    def report(
        self,
        metrics: Mapping[str, Any],
        predictions: Mapping[str, Predictions],
        graft: Graft,
        tracker: Tracker,
    ) -> None:
        """Draw the run's figures, compare its region with its peers', and log all of it."""
        from skillgraft import compare, evaluate, figure

        tests = {model: splits["test"] for model, splits in predictions.items()}
        title = f"{self.cfg.task.name}, {self.identity.group}, seed {self.cfg.seed}"
        diagram = figure.save(
            figure.reliability_diagram(tests, self.labels["test"], title),
            self.folder / "figures" / "reliability.png",
        )
        tracker.image("reliability", diagram)
        tracker.table("reliability_bins", compare.reliability_table(tests, self.labels["test"]))
        overlap, names, matrix = compare.with_peers(
            graft, self.cfg.task.name, self.identity, self.place
        )
        store.write_json(self.folder / "overlap.json", overlap)
        if len(names) > 1:
            drawing = figure.overlap_map(names, matrix, f"overlap (IoU), {self.identity.group}")
            tracker.image(
                "overlap_map", figure.save(drawing, self.folder / "figures" / "overlap.png")
            )
        tracker.summarize(evaluate.flatten(metrics))
        tracker.summarize({"overlap/compared": len(overlap)})
        for other, values in overlap.items():
            scalars = {k: v for k, v in values.items() if k != "run"}
            tracker.summarize({f"overlap/{other}/{name}": v for name, v in scalars.items()})
        tracker.graft(self.folder / "graft.safetensors", f"graft-{self.identity.hash}", graft.meta)

    def finish(self, job: Path | None) -> None:
        """Write what the run was, copy Hydra's files in, and publish the folder."""
        cfg, folder = self.cfg, self.folder
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True), encoding="utf-8")
        store.write_json(folder / "provenance.json", self.provenance())
        if job is not None and job.is_dir():
            for handler in logging.getLogger().handlers:
                handler.flush()
            shutil.copytree(job, folder / "hydra", dirs_exist_ok=True)
        status = {
            "id": self.identity.id,
            "task": cfg.task.name,
            "model": cfg.model.name,
            "selector": cfg.graft.selector.value,
            "sparsity": cfg.sparsity,
            "seed": cfg.seed,
            "peers": self.identity.peers,
            "rivals": self.identity.rivals,
            "finetuned": self.identity.finetuned,
            "setting": self.identity.setting,
        }
        self.place.publish(folder, self.place.run(self.identity.id), status)

    def provenance(self) -> dict[str, Any]:
        """Return versions, digests, the command line, host facts, timings and memory."""
        cfg = self.cfg
        # ru_maxrss is in KiB on Linux and in bytes on macOS
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {
            "versions": {name: version(name) for name in VERSIONS},
            "python": platform.python_version(),
            "platform": platform.platform(),
            "processor": platform.machine(),
            "threads": cfg.threads,
            "accelerator": cfg.trainer.accelerator,
            "command": sys.argv,
            "digests": dict(self.identity.digests),
            "seed": cfg.seed,
            "notes": self.rows.notes,
            "seconds": self.seconds,
            "peak_memory_mib": round(peak / (2**20 if sys.platform == "darwin" else 2**10)),
        }


def quiet() -> None:
    """Silence what Lightning says about every trainer it makes; its warnings stay."""
    for name in ("pytorch_lightning", "lightning.pytorch", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)


def show(folder: Path) -> None:
    """Print a run's short table and its folder."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    metrics, status = (
        store.read_json(folder / "metrics.json"),
        store.read_json(folder / "status.json"),
    )
    region, test = metrics["region"], metrics["graft"]["test"]
    metric = next((name for name in ("f1", "matthews") if name in test), "accuracy")
    table = Table(
        title=f"{status['task']}, {status['selector']} region of {region['size']:,} of "
        f"{region['graftable']:,} parameters ({region['sparsity']:.2e}), seed {status['seed']}",
        box=box.SIMPLE,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title_justify="left",
    )
    table.add_column("", no_wrap=True)
    for name in (
        "acc." if metric == "accuracy" else metric,
        "ECE",
    ):  # over their three columns, narrow enough for 80 characters
        for title, model in zip(
            (name, "", ""), ("pre-\ntrained", "fine-\ntuned", "\ngraft"), strict=True
        ):
            table.add_column(f"{title}\n{model}", justify="right")
    table.add_column("\nagree-\nment", justify="right")
    table.add_column("\nrel.\ngain", justify="right")

    def number(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    for split, measured in metrics["graft"].items():
        table.add_row(
            split,
            *(number(metrics[model][split][metric], ".3f") for model in MODELS),
            *(number(metrics[model][split]["ece"], ".3f") for model in MODELS),
            number(measured["agreement"], ".3f"),
            number(measured["relative_gain"], ".2f"),
        )
    # a pipe or a log has no width of its own: the table must not be cut there
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    console.print(str(folder), highlight=False, soft_wrap=True)
