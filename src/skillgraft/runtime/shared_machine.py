"""How the jobs of a sweep share a machine: cores and GPUs."""

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

acquired: list[int] = []  # the GPUs that this process's job has, while it has some


def cores() -> int:
    """Return how many cores this process may use: a container or SLURM may give fewer than there are."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def sleep_releasing_cpus(seconds: float) -> None:
    """Sleep, and leave the cores to another job where the launcher knows how to.

    ray starts the jobs of a sweep in no fixed order; it gives away the cores of a job that waits for
    a task of its own, so that the jobs which that one waits for can start.
    """
    if "ray" in sys.modules and (ray := sys.modules["ray"]).is_initialized():
        ray.get(ray.remote(num_cpus=0)(lambda: time.sleep(seconds)).remote())
    else:
        time.sleep(seconds)


@contextmanager
def acquire_gpus(
    gpus: Sequence[str], count: int = 1, job: int | None = None
) -> Iterator[list[int]]:
    """Lend a job the indices of `count` GPUs that no other job of this machine and user has, until it ends.

    `gpus` are the names of those that this process sees, the same in every process. Jobs look from
    their number on, so that they seldom ask for the same ones; where too few are free, as when more
    jobs were asked for than fit, a job shares those that come first. The locks are the kernel's: a
    killed job gives its GPUs back.
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
