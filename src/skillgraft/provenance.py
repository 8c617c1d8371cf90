"""What a run was made with: versions, the code's own commit, device, flags and files."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from skillgraft import checkpoint, config, data
from skillgraft.config import RunConfig

# What computes a number or decides what is computed; those not installed are left out.
LIBRARIES = (
    "skillgraft", "torch", "transformers", "tokenizers", "pytorch-lightning", "torchmetrics",
    "numpy", "pandas", "pyarrow", "scipy", "statsmodels", "datasets", "huggingface-hub",
    "safetensors", "hydra-core", "omegaconf", "wandb", "peft", "gguf", "accelerate",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Return the versions of Python and of all installed libraries that compute."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@functools.cache  # as it was when the process started to make runs: what is imported does not change later
def code() -> dict[str, Any] | None:
    """Return skillgraft's own commit and whether its checkout was dirty; None for an installed wheel."""
    root = config.PACKAGE.parents[1]
    pyproject = root / "pyproject.toml"
    # installed, or copied, into somebody's repository: that one is not ours to read
    if not (root / ".git").exists() or not pyproject.is_file():
        return None
    if '\nname = "skillgraft"\n' not in pyproject.read_text(encoding="utf-8"):
        return None
    # inside a git hook GIT_DIR names another repository
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        found = subprocess.run(
            [
                "git",
                "-C",
                str(root),
                "describe",
                "--always",
                "--dirty",
                "--abbrev=40",
                "--exclude=*",
            ],
            env={**env, "GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git here, or not its owner
        return None
    return {"commit": found.removesuffix("-dirty"), "dirty": found.endswith("-dirty")}


def device(accelerator: str) -> dict[str, Any]:
    """Return the device that computes: its name, and what of it can change the bits."""
    import torch

    if accelerator == "gpu" and torch.cuda.is_available():
        return {
            "name": torch.cuda.get_device_name(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    capability = torch.backends.cpu.get_cpu_capability()
    return {"name": "cpu", "machine": platform.machine(), "capability": capability}


def flags() -> dict[str, Any]:
    """Return torch's determinism flags as they stand."""
    import torch

    return {
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    }


def files(cfg: RunConfig, cache: Path) -> dict[str, str]:
    """Return the sha256 of every data file and base model file that a run reads, by its path."""
    folder = checkpoint.locate(cfg.model)
    model = {*checkpoint.weight_files(folder), *checkpoint.tokenizer_files(folder)}
    if folder.is_dir() and (folder / "config.json").is_file():
        model.add(folder / "config.json")
    read = [*data.files(cfg), *sorted(model)]
    return {str(path): checkpoint.cached_digest(path, cache) for path in read}
