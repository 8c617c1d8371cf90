"""Load: tokenizer, examples as token ids, and the pre-trained model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from skillgraft.config import compose, selectors
from skillgraft.config.choices import Kind, Strategy
from skillgraft.config.schema import RunConfig, TaskConfig
from skillgraft.experiments import provenance
from skillgraft.experiments.continual import StartingPoint, starting_point
from skillgraft.experiments.evaluation_set import EvaluationSet
from skillgraft.experiments.stages.inputs import RunInputs
from skillgraft.runtime.errors import InputError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from skillgraft.core.graft import Graft
    from skillgraft.evaluation.predict import Predictions
    from skillgraft.models.classifier import Classifier
    from skillgraft.tasks.encoder import Encoded
    from skillgraft.training.batches import TrainingTask


@dataclass(frozen=True)
class LoadedRun:
    """A model that has its starting point, and the token ids of every task that the run reads.

    The classifier is one for all stages: each stage leaves it at θ_pre, with the fine-tuned head.
    """

    inputs: RunInputs
    device: torch.device
    read: Mapping[str, str]  # the sha256 of every file that was read
    classifier: Classifier
    pad: int
    train: Mapping[str, Sequence[Encoded]]
    evaluation_sets: Mapping[str, EvaluationSet]
    start: StartingPoint
    stored_graft: Graft | None  # what the `file` selector found, before anything is trained

    @property
    def evaluation_set(self) -> EvaluationSet:
        """The examples on which the run's own task is measured."""
        return self.evaluation_sets[self.inputs.cfg.task.name]

    def predict_all_tasks(self) -> dict[str, Predictions]:
        """Return the class probabilities of the classifier as it stands, for every task's splits."""
        trainer = self.inputs.cfg.trainer
        size, bars = trainer.evaluation_batch_size, self.inputs.bars
        return {
            name: examples.predict(self.classifier, self.pad, size, bars)
            for name, examples in self.evaluation_sets.items()
        }

    def reset(self) -> None:
        """Put θ_pre back into the classifier; a fine-tuned head stays, it serves all models."""
        for name, parameter in self.classifier.graftable.items():
            parameter.data.copy_(self.start.theta_pre[name])

    def training_tasks(self) -> list[TrainingTask]:
        """Return what fine-tuning reads: the run's task, or all tasks of a mixture."""
        from skillgraft.training.batches import TrainingTask

        cfg = self.inputs.cfg
        return [
            TrainingTask(
                name,
                self.evaluation_sets[name].task.metric,
                self.train[name],
                self.evaluation_sets[name].splits["validation"],
                self.evaluation_sets[name].words,
            )
            for name in list(cfg.finetune.tasks or ()) or [cfg.task.name]
        ]

    def suffix(self, task: str) -> str:
        """Return what the names of a task's files end in: nothing for a run's only task."""
        cfg = self.inputs.cfg
        return f"-{task}" if cfg.finetune.tasks or task != cfg.task.name else ""


def load(inputs: RunInputs, device: torch.device) -> LoadedRun:
    """Load tokenizer, examples as token ids, and the pre-trained model: the last check of the input."""
    from skillgraft.models import checkpoint_files, compiling, families, pretrained
    from skillgraft.tasks.batches import collate

    cfg = inputs.cfg
    read = provenance.files(cfg, inputs.store.cache / "digests")
    folder = checkpoint_files.locate(cfg.model)
    tokenizer = pretrained.load_tokenizer(folder)
    classifier: Classifier = pretrained.load_model(cfg, folder, tokenizer)
    pad = tokenizer.pad_token_id or 0
    train, evaluation_sets = encode(inputs, tokenizer, families.longest_input(classifier))
    if cfg.trainer.strategy is not Strategy.fsdp:  # else θ_pre stays on the CPU
        classifier.to(device)
    start = starting_point(cfg, classifier)
    classifier.to(device)
    if cfg.trainer.compile:
        batch = collate(train[cfg.task.name][:2], pad)
        if (words := evaluation_sets[cfg.task.name].words) is not None:
            batch["words"] = words
        compiling.compiled(classifier, batch)
    stored = check_region(cfg, start, inputs.size)
    return LoadedRun(inputs, device, read, classifier, pad, train, evaluation_sets, start, stored)


def check_region(cfg: RunConfig, start: StartingPoint, size: int | None) -> Graft | None:
    """Raise InputError for a region that this model cannot have, before anything is trained.

    A selector that has grafts already, in files, gives its graft here.
    """
    if size is not None and size > start.graftable:
        raise InputError(
            f"graft.size_from: {size} entries, of {start.graftable} that are graftable here"
        )
    selector = selectors.find(cfg.graft.selector)
    if hasattr(selector, "check"):
        selector.check(cfg.graft, start.theta_base)
    return selector.load(cfg.graft, start.theta_base) if hasattr(selector, "load") else None


def encode(
    inputs: RunInputs, tokenizer: PreTrainedTokenizerBase, positions: int
) -> tuple[dict[str, list[Encoded]], dict[str, EvaluationSet]]:
    """Return the training examples and the evaluation set of every task, by its name.

    `positions` is the longest input of the model.
    """
    import torch

    from skillgraft.tasks import tokens
    from skillgraft.tasks.encoder import make_encoder

    cfg, rows = inputs.cfg, inputs.rows
    tasks = {cfg.task.name: cfg.task, **cfg.other_tasks}
    train: dict[str, list[Encoded]] = {}
    evaluation_sets: dict[str, EvaluationSet] = {}
    for name, task in tasks.items():
        part = rows if name == cfg.task.name else rows.others[name]
        encoder = make_encoder(for_task(cfg, task), tokenizer, positions)
        words = None
        if len(tasks) > 1 and cfg.finetune.kind is not Kind.linear:
            words = torch.tensor(tokens.words_to_ids(task, tokenizer))
        splits = {split: encoder(examples) for split, examples in part.evaluated().items()}
        evaluation_sets[name] = EvaluationSet(task, splits, words)
        train[name] = encoder(part.train)
    return train, evaluation_sets


def for_task(cfg: RunConfig, task: TaskConfig) -> RunConfig:
    """Return the configuration with another task in the place of the run's own."""
    other = compose.editable(cfg)
    other.task = task
    return other
