"""Examples of a task, after sampling."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from skillgraft.config.schema import TaskConfig

SPLITS = ("train", "validation", "test")


class Row(NamedTuple):
    """One example: its text, the second text of a pair, and the index of its label."""

    text: str
    text_b: str | None
    label: int


@dataclass(frozen=True)
class TaskData:
    """All rows a run reads, after sampling; `ood` holds the test rows of other tasks.

    `others` are whole tasks beside the run's own: of a mixture, or earlier in a sequence.
    """

    train: list[Row]
    validation: list[Row]
    test: list[Row]
    ood: dict[str, list[Row]]
    notes: list[str]
    others: dict[str, TaskData] = field(default_factory=dict)
    # split → classes that are one there
    joined: dict[str, list[list[int]]] = field(default_factory=dict)

    def evaluated(self) -> dict[str, list[Row]]:
        """Return the splits on which models are measured, by their name in metrics.json."""
        ood = {f"ood/{name}": rows for name, rows in self.ood.items()}
        return {"validation": self.validation, "test": self.test, **ood}

    def digest(self) -> str:
        """Return the sha256 of every row, its split and its order."""
        content = {"train": self.train, **self.evaluated()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def training_digest(self) -> str:
        """Return the sha256 of the rows on which weights and region depend: training and validation."""
        content = [self.train, self.validation]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def is_pair(task: TaskConfig) -> bool:
    """Return whether the task's template takes two texts."""
    return "*b*" in task.template


def by_class(rows: Sequence[Row], classes: int) -> list[list[int]]:
    """Return the positions of each class's rows."""
    positions: list[list[int]] = [[] for _ in range(classes)]
    for index, row in enumerate(rows):
        positions[row.label].append(index)
    return positions
