"""What a run was made with: versions, the code's own commit, device, flags and files."""

from __future__ import annotations

import functools
import os
import platform
import re
import resource
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from skillgraft.config import packages
from skillgraft.config.schema import ResolvedConfig
from skillgraft.models import checkpoint_files
from skillgraft.runtime.digests import cached_digest
from skillgraft.store.identity import Identity
from skillgraft.tasks import loading
from skillgraft.tasks.rows import TaskData

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
    """Return skillgraft's own commit and whether its checkout was dirty; None for an installed wheel.

    Dirty is a checkout with changes, or with code or configuration that git does not know.
    """
    root = packages.PACKAGE.parents[1]
    pyproject = root / "pyproject.toml"
    # installed, or copied, into somebody's repository: that one is not ours to read
    if not (root / ".git").exists() or not pyproject.is_file():
        return None
    if '\nname = "skillgraft"\n' not in pyproject.read_text(encoding="utf-8"):
        return None
    # inside a git hook GIT_DIR names another repository
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments],
            env={**env, "GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    try:
        found = git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
        ours = [f"{folder}/*.{end}" for folder in ("src", "conf") for end in ("py", "yaml")]
        untracked = git("ls-files", "--others", "--exclude-standard", "--", *ours)
    except (OSError, subprocess.CalledProcessError):  # no git here, or not its owner
        return None
    dirty = found.endswith("-dirty") or bool(untracked)
    return {"commit": found.removesuffix("-dirty"), "dirty": dirty}


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


def forget_peaks(accelerator: str) -> None:
    """Let the peaks of memory be those from here on, where the system can: a process may make many runs."""
    with suppress(OSError):  # no Linux, or not allowed
        Path("/proc/self/clear_refs").write_text("5")
    if accelerator == "gpu":
        import torch

        torch.cuda.reset_peak_memory_stats()


def peaks(accelerator: str) -> dict[str, int]:
    """Return the peak memory in MiB since `forget_peaks`, of the current GPU too."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        status = ""
    if (found := re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)) is not None:
        peak = int(found[1]) / 2**10
    else:  # in bytes on macOS, in KiB elsewhere
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak /= 2**20 if sys.platform == "darwin" else 2**10
    memory = {"peak_memory_mib": round(peak)}
    if accelerator == "gpu":
        import torch

        memory["peak_gpu_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return memory


def digests(identity: Identity, rows: TaskData) -> dict[str, str]:
    """Return the digests of all that a run reads: tokenizer, weights, grafts, and the rows of every task."""
    others = {f"data of {name}": part.digest() for name, part in rows.others.items()}
    return {**identity.digests, **others}


def files(cfg: ResolvedConfig, cache: Path) -> dict[str, str]:
    """Return the sha256 of every data file and base model file that a run reads, by its path."""
    folder = checkpoint_files.locate(cfg.model)
    model = {*checkpoint_files.weight_files(folder), *checkpoint_files.tokenizer_files(folder)}
    if folder.is_dir() and (folder / "config.json").is_file():
        model.add(folder / "config.json")
    read = [*loading.files(cfg), *sorted(model)]
    return {str(path): cached_digest(path, cache) for path in read}
