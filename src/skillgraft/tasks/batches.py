"""Padded batches of token ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from skillgraft.tasks.encoder import Encoded

Batch = dict[str, Tensor]


def collate(examples: Sequence[Encoded], pad: int) -> Batch:
    """Return one batch, padded on the right with `pad` to the length T of its longest example.

    `input_ids`, `attention_mask`, `token_type_ids`: (B, T) int64; `mask_position`, `labels`: (B,) int64.
    """
    longest = max(len(example.ids) for example in examples)
    ids = torch.full((len(examples), longest), pad)
    types = torch.zeros_like(ids)
    attention = torch.zeros_like(ids)
    for i, example in enumerate(examples):
        ids[i, : len(example.ids)] = torch.tensor(example.ids)
        types[i, : len(example.types)] = torch.tensor(example.types)
        attention[i, : len(example.ids)] = 1
    return {
        "input_ids": ids,
        "attention_mask": attention,
        "token_type_ids": types,
        "mask_position": torch.tensor([example.mask for example in examples]),
        "labels": torch.tensor([example.label for example in examples]),
    }


def to_device(batch: Mapping[str, Tensor], device: torch.device) -> Batch:
    """Return a batch on a device; the copy to a GPU runs from pinned memory while the CPU goes on."""
    if device.type != "cuda":
        return {name: tensor.to(device) for name, tensor in batch.items()}
    return {n: tensor.pin_memory().to(device, non_blocking=True) for n, tensor in batch.items()}


def in_batches(order: Sequence[int], size: int) -> list[list[int]]:
    """Return consecutive groups of `size` positions; the last group may be shorter."""
    return [list(order[i : i + size]) for i in range(0, len(order), size)]


def by_length(examples: Sequence[Encoded], size: int) -> Iterator[list[int]]:
    """Yield groups of `size` positions of examples sorted by length, so that batches have little padding."""
    # the position breaks ties: batches, and so the last bits of logits, are the same in every run
    order = sorted(range(len(examples)), key=lambda i: (len(examples[i].ids), i))
    yield from in_batches(order, size)
