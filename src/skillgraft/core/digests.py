"""SHA-256 digests of named tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the names, shapes, dtypes and bytes of tensors, in the order of their names."""
    return digest_one_by_one(sorted(tensors), lambda name: tensors[name])


def digest_one_by_one(names: Iterable[str], read: Callable[[str], Tensor]) -> str:
    """Return the same SHA-256 as `digest`, with only one tensor in memory at a time.

    `names` must be sorted. `read` is called once for each name.
    """
    content = hashlib.sha256()
    for name in names:
        tensor = read(name).detach().cpu().contiguous()
        content.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        # as bytes: numpy has no bfloat16
        content.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()
