"""What launchers are told: cores, GPUs and jobs at once."""

from __future__ import annotations

from skillgraft.runtime.shared_machine import cores

# The launchers that plugins bring, each with the extra that installs it. Our presets stand on them.
EXTRAS = {"joblib": "joblib", "submitit_local": "slurm", "submitit_slurm": "slurm", "ray": "ray"}
GROUP = "hydra/launcher"


def missing(place: str) -> str | None:
    """Return what to do where a file that is not found, hydra/launcher/NAME, is a plugin's; else None."""
    group, _, name = place.rpartition("/")
    if group != GROUP or name not in EXTRAS:
        return None
    return f'{GROUP}={name} is not installed: pip install "skillgraft[{EXTRAS[name]}]"'


def gpus(accelerator: str, most: int | None = None) -> int | None:
    """Return how many GPUs to ask a launcher for: `most`, or all there are here; None for a CPU."""
    if accelerator != "gpu":
        return None
    if most is not None:
        return most
    import torch

    return torch.cuda.device_count()


def cpus(threads: int, devices: int = 1) -> int:
    """Return how many cores a job takes: `threads` for the process of each of its devices."""
    return max(1, threads) * devices


def jobs(threads: int, accelerator: str = "cpu", devices: int = 1) -> int:
    """Return how many jobs of so many devices fit at once: into the cores, and on GPUs into these."""
    fit, found = cores() // cpus(threads, devices), gpus(accelerator)
    return max(1, fit if found is None else min(fit, found // devices))


def too_many(n_jobs: int, threads: int, accelerator: str = "cpu", devices: int = 1) -> str | None:
    """Return a warning where more jobs are to go at once than fit; joblib counts below 0 from all cores."""
    at_once = n_jobs if n_jobs > 0 else cores() + 1 + n_jobs
    fit = jobs(threads, accelerator, devices)
    if at_once <= fit:
        return None
    each = f"threads={threads}" + (f" and trainer.devices={devices}" if devices > 1 else "")
    return (
        f"hydra.launcher.n_jobs={n_jobs}: {at_once} jobs at once, with {each} on "
        f"{cores()} cores; {fit} would fit"
    )
