"""Read and write graft files: one safetensors file each, checked by a digest of its content.

For each tensor NAME with parameters in the region, the file holds `indices/NAME`, `values/NAME` and
`pretrained/NAME`, each (k,). The header `skillgraft` is JSON: format, base, shapes, meta and digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from skillgraft.core import digests
from skillgraft.core.layout import FlatLayout
from skillgraft.runtime.errors import GraftError
from skillgraft.runtime.files import atomic_write

if TYPE_CHECKING:
    from skillgraft.core.graft import Graft

FORMAT = 1  # version of the file format; `read` refuses a newer version


def write(graft: Graft, path: str | Path) -> Path:
    """Write a graft as one safetensors file, complete or not at all, and return the path.

    Indices are int32 where every tensor has fewer than 2³¹ elements, and int64 otherwise.
    """
    path = Path(path)
    small = max(graft.layout.sizes, default=0) < 2**31
    kind = torch.int32 if small else torch.int64
    tensors = {f"indices/{n}": i.to(kind) for n, i in graft.indices.items() if i.numel()}
    tensors |= {f"values/{n}": graft.values[n] for n, i in graft.indices.items() if i.numel()}
    tensors |= {
        f"pretrained/{n}": graft.pretrained[n] for n, i in graft.indices.items() if i.numel()
    }
    tensors |= {f"head/{name}": tensor for name, tensor in graft.head.items()}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    header = {
        "format": FORMAT,
        "base": graft.base,
        "shapes": [[name, list(shape)] for name, shape in graft.shapes.items()],
        "meta": dict(graft.meta),
        "size": graft.size,
        "graftable": graft.graftable,
        # the dtype of tensors without a parameter in the region, which are not in the file
        "dtype": str(next(iter(graft.values.values()), torch.empty(0)).dtype),
    }
    header["digest"] = digest_of(header, tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    # a fixed name: a resumed run overwrites the partial file that a killed run left in its folder
    with atomic_write(path, path.with_name(path.name + ".partial")) as scratch:
        scratch.write_bytes(save(tensors, {"skillgraft": json.dumps(header)}))
    return path


def read(path: str | Path) -> dict[str, Any]:
    """Return the fields of `Graft` from a file.

    Raises GraftError where the file is missing, truncated, altered, or not a graft.
    """
    path = Path(path)
    if not path.is_file():
        raise GraftError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("skillgraft", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise GraftError(f"{path}: not a complete safetensors file ({error})") from error
    if not isinstance(header, dict) or not isinstance(header.get("format"), int):
        raise GraftError(f"{path}: a safetensors file, but no graft")
    if header["format"] > FORMAT:
        raise GraftError(f"{path}: format {header['format']} is newer than this version reads")
    if header.pop("digest", None) != digest_of(header, tensors):
        raise GraftError(f"{path}: its content does not match its digest: the file was altered")
    shapes = {name: tuple(shape) for name, shape in header["shapes"]}
    empty = torch.empty(0, dtype=getattr(torch, header["dtype"].removeprefix("torch.")))
    none = {"indices": torch.empty(0, dtype=torch.int32)}

    def named(kind: str) -> dict[str, Tensor]:
        return {n: tensors.get(f"{kind}/{n}", none.get(kind, empty)) for n in shapes}

    indices = {name: index.long() for name, index in named("indices").items()}
    values, pretrained = named("values"), named("pretrained")
    check_indices(indices, shapes, path)
    for name, index in indices.items():
        if not index.shape == values[name].shape == pretrained[name].shape:
            raise GraftError(f"{path}: {name}: not as many values as indices")
    head = {n.removeprefix("head/"): t for n, t in tensors.items() if n.startswith("head/")}
    return {
        "indices": indices,
        "values": values,
        "pretrained": pretrained,
        "shapes": shapes,
        "base": header["base"],
        "meta": header["meta"],
        "head": head,
    }


def digest_of(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a graft file's header (without the digest itself) and tensors."""
    return hashlib.sha256((json.dumps(header) + digests.digest(tensors)).encode()).hexdigest()


def check_indices(indices: Mapping[str, Tensor], shapes: Mapping[str, tuple], path: Path) -> None:
    """Raise GraftError where the indices of a tensor are out of range, or not sorted and unique."""
    for name, size in zip(shapes, FlatLayout(shapes).sizes, strict=True):
        index = indices[name]
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < size:
            raise GraftError(f"{path}: {name}: an index is out of range (0 to {size - 1})")
        if bool((index.diff() <= 0).any()):
            raise GraftError(f"{path}: {name}: the indices are not sorted and unique")
