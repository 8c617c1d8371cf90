"""Compute the class probabilities of a model on examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from skillgraft.models.classifier import Classifier
from skillgraft.runtime import progress
from skillgraft.tasks.batches import by_length, collate, to_device
from skillgraft.tasks.encoder import Encoded

Predictions = dict[str, np.ndarray]  # split → (N, classes) float32


@torch.no_grad()
def predict(
    classifier: Classifier,
    examples: Sequence[Encoded],
    pad: int,
    batch_size: int,
    words: torch.Tensor | None = None,
    shown: bool = False,
) -> np.ndarray:
    """Return the class probabilities of a model, (N, classes) float32, without dropout, in input order.

    Args:
        classifier: the model; its training flag is put back.
        examples: N encoded examples.
        pad: the id of the padding token.
        batch_size: examples per batch, at least 1.
        words: ids of the verbalizer of another task than the classifier's own, (classes,) int64.
        shown: whether a progress bar is drawn.
    """
    training, device = classifier.training, next(classifier.parameters()).device
    classifier.eval()
    out: list[torch.Tensor] = [torch.empty(0)] * len(examples)
    batches = by_length(examples, batch_size)
    for positions in progress.bar(batches, "evaluation", -(-len(examples) // batch_size), shown):
        batch = collate([examples[i] for i in positions], pad)
        if words is not None:
            batch["words"] = words
        logits = classifier(to_device(batch, device))
        for position, row in zip(positions, logits.double().softmax(-1).float().cpu(), strict=True):
            out[position] = row
    classifier.train(training)
    return torch.stack(out).numpy()


def joined(probabilities: np.ndarray, groups: Sequence[Sequence[int]]) -> np.ndarray:
    """Return (N, classes) probabilities in which each group of classes counts as its first class.

    The first class of a group gets the sum of the group's probabilities, and the others get 0.
    """
    out = probabilities.copy()
    for first, *rest in groups:
        out[:, first] += out[:, rest].sum(1)
        out[:, rest] = 0
    return out
