"""What a resumed training needs, written whole or not at all."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from skillgraft.runtime import leases
from skillgraft.runtime.files import atomic_write


@dataclass
class Progress:
    """What a resumed fine-tuning needs to know beside its tensors."""

    step: int = 0
    best_step: int = -1
    best_score: float = -2.0  # below every score: Matthews goes down to -1
    history: list[dict[str, Any]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # since the last row of the history
    changed: int = 0  # the last step at which the region of mask training was another


def write_tensors(path: Path, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
    """Write a safetensors file, complete or not at all.

    Raises lease.LeaseLost where another process has taken over what this process makes.
    """
    leases.check()
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # a folder: save_file writes to a scratch file of its own first, which a kill leaves
    folder = path.with_name(path.name + ".partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with atomic_write(path, folder / path.name) as scratch:
        save_file(content, scratch, {"progress": json.dumps(progress)})
    folder.rmdir()
