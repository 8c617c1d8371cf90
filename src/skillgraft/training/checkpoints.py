"""Checkpoints from which a training resumes, written complete or not at all."""

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
    """The state of a training beside its tensors, for fine-tuning and for mask training."""

    step: int = 0
    best_step: int = -1
    best_score: float = -2.0  # below every metric: Matthews' correlation is at least -1
    history: list[dict[str, Any]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # of the steps since the last history entry
    changed: int = 0  # the last step of mask training at which the region changed


def write_tensors(path: Path, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
    """Write a safetensors file of tensors and progress, complete or not at all.

    Raises leases.LeaseLost where another process has taken over the run of this process.
    """
    leases.check()
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # in a folder: save_file first writes a temporary file of its own, which remains when it is killed
    folder = path.with_name(path.name + ".partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with atomic_write(path, folder / path.name) as scratch:
        save_file(content, scratch, {"progress": json.dumps(progress)})
    folder.rmdir()
