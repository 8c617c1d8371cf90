"""Draw k-shot samples, and split off validation examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from skillgraft.config.schema import TaskConfig
from skillgraft.runtime.seeds import derive
from skillgraft.tasks.rows import Row, by_class


def sample(rows: Sequence[Row], classes: int, shots: int, seed: int) -> list[int]:
    """Return the positions of up to `shots` examples per class, drawn without replacement and shuffled."""
    random = np.random.default_rng(seed)
    chosen = [
        int(index)
        for positions in by_class(rows, classes)
        for index in random.permutation(positions)[:shots]
    ]
    return [chosen[i] for i in random.permutation(len(chosen))]


def split_train(
    train: list[Row], validation: list[Row], task: TaskConfig, shots: int | None, seed: int
) -> tuple[list[Row], list[Row], list[str]]:
    """Return training examples, validation examples, and notes on classes with fewer than `shots` of them.

    With `shots`: that many per class for training, and as many for validation, from the validation split
    or else from the training examples left over. Without: all examples, where a task without a
    validation split is divided into 95 % for training and 5 % for validation (Panigrahi et al., 2023).

    Args:
        train: all training rows.
        validation: the rows of the validation split; empty where there is none.
        task: the task, for the names of its classes.
        shots: k, examples per class; None: all.
        seed: the run's seed.
    """
    # Differs from the authors' code, whose validation examples always come from the training set: here
    # a task's own validation split is used where there is one.
    classes, notes = len(task.labels), list[str]()
    if shots is None:
        order = np.random.default_rng(derive(seed, "data", "split")).permutation(len(train))
        if validation:
            return [train[i] for i in order], validation, notes
        cut = max(1, round(0.05 * len(train)))
        return [train[i] for i in order[cut:]], [train[i] for i in order[:cut]], notes
    chosen = sample(train, classes, shots, derive(seed, "data", "train"))
    taken = set(chosen)
    pool = validation or [row for i, row in enumerate(train) if i not in taken]
    held = sample(pool, classes, shots, derive(seed, "data", "validation"))
    few_train, few_held = [train[i] for i in chosen], [pool[i] for i in held]
    for name, rows in (("train", few_train), ("validation", few_held)):
        count = Counter(row.label for row in rows)
        short = {task.labels[c]: count[c] for c in range(classes) if count[c] < shots}
        if short:
            notes.append(f"{name}: fewer than {shots} rows for {short}")
    return few_train, few_held, notes


def imbalance(name: str, labels: Sequence[str], rows: Sequence[Row], first: int) -> list[str]:
    """Return a note where the first examples of a test set have other class frequencies than all (p < 1e-3).

    p is that of Fisher's exact test of each class against the others, with Bonferroni's correction for
    the number of classes. Some test sets, such as IMDb's, are sorted by label.
    """
    if first == len(rows):
        return []
    from scipy.stats import fisher_exact

    whole, head = (Counter(row.label for row in part) for part in (rows, rows[:first]))
    rest = len(rows) - first

    def chance(label: int) -> float:
        here, there = head[label], whole[label] - head[label]
        return float(fisher_exact([[here, first - here], [there, rest - there]]).pvalue)

    if min(map(chance, whole)) * len(whole) >= 1e-3:
        return []
    counts = ({labels[label]: part[label] for label in sorted(whole)} for part in (head, whole))
    return [
        f"{name}: the first {first} test rows are another mixture of classes than all {len(rows)}: "
        + " of ".join(map(str, counts))
    ]
