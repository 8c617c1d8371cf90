"""The examples on which a task is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from skillgraft.config.schema import TaskConfig

if TYPE_CHECKING:
    from torch import Tensor

    from skillgraft.evaluation.predict import Predictions
    from skillgraft.models.classifier import Classifier
    from skillgraft.tasks.encoder import Encoded


@dataclass(frozen=True)
class EvaluationSet:
    """The examples on which a task is measured, as token ids; `words` are its verbalizer's."""

    task: TaskConfig
    splits: Mapping[str, Sequence[Encoded]]
    words: Tensor | None

    def labels(self) -> dict[str, list[int]]:
        """Return the label of every example by split."""
        return {name: [row.label for row in rows] for name, rows in self.splits.items()}

    def predict(self, classifier: Classifier, pad: int, size: int, shown: bool) -> Predictions:
        """Return the class probabilities of a model on every split; `shown` draws a bar for each."""
        from skillgraft.evaluation.predict import predict

        return {
            name: predict(classifier, rows, pad, size, self.words, shown)
            for name, rows in self.splits.items()
        }

    def write(self, predictions: Mapping[str, Predictions], path: Path) -> None:
        """Write one row per example, model and split."""
        from skillgraft.evaluation import prediction_files

        frame = prediction_files.to_frame(predictions, self.labels(), list(self.task.labels))
        frame.to_parquet(path, index=False)
