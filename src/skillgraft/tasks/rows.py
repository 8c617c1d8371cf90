"""The examples of a task after sampling."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from skillgraft.config.schema import TaskConfig

SPLITS = ("train", "validation", "test")


class Row(NamedTuple):
    """One example: a text, the second text of a pair (or None), and the index of the label."""

    text: str
    text_b: str | None
    label: int


@dataclass(frozen=True)
class TaskData:
    """All examples that a run reads, after sampling.

    `ood` maps a task's name to test examples from another distribution. `others` are further complete
    tasks: those of a mixture, or those earlier in a sequence. `notes` say what was short or unusual.
    """

    train: list[Row]
    validation: list[Row]
    test: list[Row]
    ood: dict[str, list[Row]]
    notes: list[str]
    others: dict[str, TaskData] = field(default_factory=dict)
    # split → groups of classes that count as one class there, by their indices
    joined: dict[str, list[list[int]]] = field(default_factory=dict)

    def evaluated(self) -> dict[str, list[Row]]:
        """Return the splits on which models are evaluated, by the split's name in metrics.json."""
        ood = {f"ood/{name}": rows for name, rows in self.ood.items()}
        return {"validation": self.validation, "test": self.test, **ood}

    def digest(self) -> str:
        """Return the SHA-256 of all examples, with their splits and their order."""
        content = {"train": self.train, **self.evaluated()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def training_digest(self) -> str:
        """Return the SHA-256 of the training and validation examples, which determine θ_ft and the region."""
        content = [self.train, self.validation]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def is_pair(task: TaskConfig) -> bool:
    """Return whether the task's template takes two texts."""
    return "*b*" in task.template


def by_class(rows: Sequence[Row], classes: int) -> list[list[int]]:
    """Return, for each class, the positions of its examples."""
    positions: list[list[int]] = [[] for _ in range(classes)]
    for index, row in enumerate(rows):
        positions[row.label].append(index)
    return positions
