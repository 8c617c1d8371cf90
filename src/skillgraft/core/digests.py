"""Digests of named tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of named tensors: names, shapes, dtypes and bytes, in name order."""
    return digest_one_by_one(sorted(tensors), lambda name: tensors[name])


def digest_one_by_one(names: Iterable[str], read: Callable[[str], Tensor]) -> str:
    """Return what `digest` does for tensors that are read when their turn comes; names are sorted."""
    content = hashlib.sha256()
    for name in names:
        tensor = read(name).detach().cpu().contiguous()
        content.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        content.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()
