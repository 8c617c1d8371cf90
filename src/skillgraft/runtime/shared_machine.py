"""Share the cores and GPUs of one machine between the jobs of a sweep."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)

acquired: list[int] = []  # indices of the GPUs that this process's job holds


def cores() -> int:
    """Return how many cores this process may use, which a container or SLURM may limit."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def sleep_releasing_cpus(seconds: float) -> None:
    """Sleep, and let ray give this job's cores to another job for that time.

    ray starts the jobs of a sweep in no fixed order, so that a job may wait for a job that has not yet
    started. ray frees the cores of a job while the job waits for a ray task; the sleep is such a task.
    """
    if "ray" in sys.modules and (ray := sys.modules["ray"]).is_initialized():
        ray.get(ray.remote(num_cpus=0)(lambda: time.sleep(seconds)).remote())
    else:
        time.sleep(seconds)


@contextmanager
def acquire_gpus(
    gpus: Sequence[str], count: int = 1, job: int | None = None
) -> Iterator[list[int]]:
    """Reserve `count` GPUs for this job inside a `with` block, and yield their indices.

    No other job of this machine and user gets the same GPUs. `gpus` are the names of the visible GPUs,
    the same in every process. A job starts its search at its own number, so that jobs seldom compete.
    Where too few GPUs are free, the job shares GPUs with other jobs and logs a warning. The kernel
    releases the file locks of a killed job.
    """
    from filelock import FileLock, Timeout

    first = (job or 0) * count
    order = [(first + step) % len(gpus) for step in range(len(gpus))]
    own: list[int] = []
    with ExitStack() as held:
        for index in order:
            if len(own) == count:
                break
            file = f"skillgraft-{os.getuid()}-{gpus[index]}.lock"
            with suppress(Timeout):
                held.enter_context(FileLock(Path(tempfile.gettempdir()) / file, blocking=False))
                own.append(index)
        if len(own) < count:
            shared = [index for index in order if index not in own][: count - len(own)]
            log.warning("too few of %d GPUs are free: this job shares %s", len(gpus), shared)
            own += shared
        acquired[:] = own
        try:
            yield own
        finally:
            acquired.clear()
