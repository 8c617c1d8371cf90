"""The device of a run, and the settings that make it give the same bits every time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from skillgraft.config.schema import RunConfig
from skillgraft.runtime import shared_machine
from skillgraft.runtime.errors import InputError

if TYPE_CHECKING:
    import torch


@contextmanager
def deterministic() -> Iterator[None]:
    """Have a GPU give the same bits every time inside a `with` block."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    wanted = {
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # what cuBLAS wants, before its first use
        "NCCL_NVLS_ENABLE": "0",  # sums in the switch come in no fixed order
    }
    missing = [name for name in wanted if name not in os.environ]
    os.environ.update({name: wanted[name] for name in missing})
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        for name in missing:
            os.environ.pop(name, None)


@contextmanager
def on_device(cfg: RunConfig, job: int | None) -> Iterator[torch.device]:
    """Set threads and device for a run; on one of several GPUs, one that no other job has.

    `job` is the number of the job in its sweep: jobs look for a GPU from their number on. Raises
    InputError where torch does not see as many GPUs as `trainer` asks for.
    """
    import torch

    from skillgraft.training import distributed

    trainer = cfg.trainer
    torch.set_num_threads(cfg.threads)
    distributed.quiet()
    device = torch.device("cuda" if trainer.accelerator == "gpu" else "cpu")
    if device.type == "cpu":
        yield device
        return
    # as Lightning sets it later: ranks count the GPUs of one machine as their run does
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    seen = torch.cuda.device_count()
    if not torch.cuda.is_available():
        raise InputError("trainer.accelerator=gpu: torch sees no GPU; use trainer=cpu")
    if seen < trainer.devices:
        raise InputError(f"trainer.devices={trainer.devices}: torch sees {seen} GPUs")
    names = [str(torch.cuda.get_device_properties(i).uuid) for i in range(seen)]
    with (
        deterministic(),
        shared_machine.acquire_gpus(names, trainer.devices, job) as own,
    ):
        torch.cuda.set_device(own[0])  # what "cuda" means from here on
        try:
            yield device
        finally:
            torch.cuda.empty_cache()  # a worker's next job may be lent another
