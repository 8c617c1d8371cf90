"""Train one model in several processes, the ranks of Lightning's DDP or FSDP."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import re
import shutil
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.multiprocessing.spawn import ProcessException

from skillgraft.config.schema import TrainerConfig
from skillgraft.runtime import signals
from skillgraft.runtime.errors import InputError
from skillgraft.tasks.batches import Batch

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from skillgraft.models.classifier import Classifier

FOLDER = "ranks"  # a folder beside the checkpoints, which exists while ranks run


def share_of_batch(batch: Batch, rank: int, ranks: int) -> Batch:
    """Return the examples `rank`, `rank + ranks`, … of a batch, with the `weight` of their mean loss.

    weight = (examples of the rank) · ranks / (examples of the batch), so that the mean over ranks of
    weight · mean loss is the mean over the batch's examples. A rank without an example takes the first
    one with weight 0, because DDP needs a gradient from every rank.
    """
    rows = len(batch["labels"])
    mine = list(range(rank, rows, ranks))
    part = {n: t if n == "words" else t[mine or [0]] for n, t in batch.items()}
    return {**part, "weight": torch.tensor(len(mine) * ranks / rows)}


def ending_at_once(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a rank's function; where the function fails, end the rank without waiting for other ranks."""
    try:
        return function(*args, **options)
    except BaseException:
        # before Lightning's own exit, which waits for the other ranks, while they may wait for this rank
        atexit.register(os._exit, 1)
        raise


class Launcher(_MultiProcessingLauncher):
    """Lightning's launcher of ranks, with ranks that end at once where they fail."""

    def launch(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Start the ranks and return the result of rank 0; `trainer` is among the options."""
        return super().launch(partial(ending_at_once, function), *args, **options)


class DeterministicDDP(DDPStrategy):
    """Lightning's distributed data parallelism (DDP) with the same bits in a resumed run.

    With find_unused_parameters the loss need not depend on every parameter, and DDP keeps its buckets
    of gradients. Without it, DDP would rebuild the buckets after the first step in the order in which
    gradients arrive. The buckets decide the order in which ranks are summed, and so the last bits.
    """

    def __init__(self, start_method: Literal["spawn", "forkserver"]) -> None:
        super().__init__(start_method=start_method, find_unused_parameters=True)
        self.start_method = start_method

    @cached_property
    def launcher(self) -> Launcher:
        """What starts the ranks: one object, which knows their processes."""
        return Launcher(self, self.start_method)


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's fully sharded data parallelism (FSDP) with ranks that are started as those of DDP.

    Lightning's ModelParallelStrategy and FSDPStrategy start ranks by running the command line again.
    FSDPStrategy also refuses to run on a CPU.
    """

    def __init__(self, devices: int, start_method: Literal["spawn", "forkserver"]) -> None:
        super().__init__(data_parallel_size=devices, tensor_parallel_size=1)
        self.start_method = start_method

    @cached_property
    def launcher(self) -> Launcher:
        """What starts the ranks: one object, which knows their processes."""
        return Launcher(self, self.start_method)


def strategy(cfg: TrainerConfig, sharded: bool = False) -> Strategy | str:
    """Return Lightning's strategy for `cfg.devices` processes, started without the command line.

    After CUDA was used, a process can only be spawned. On the CPU, ranks are forked from a server that has
    imported the libraries: this is quicker, and safe, because the server has no threads, which a fork
    would lose.
    """
    if cfg.devices == 1 and not sharded:
        return "auto"
    method: Literal["spawn", "forkserver"] = "spawn" if cfg.accelerator == "gpu" else "forkserver"
    # hides a warning of torch's C++ code that find_unused_parameters costs time
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if method == "forkserver":
        start_server()
    return ShardedStrategy(cfg.devices, method) if sharded else DeterministicDDP(method)


def start_server() -> None:
    """Start the server from which ranks are forked, unless it runs; signals reach neither it nor ranks."""
    multiprocessing.set_forkserver_preload(
        ["skillgraft.training.mask_training", "transformers.modeling_utils"]
    )
    # The server starts the resource tracker, whose start unblocks two signals: start the tracker first.
    resource_tracker.ensure_running()
    # child processes inherit the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def shard(classifier: Classifier, mesh: DeviceMesh) -> None:
    """Shard every parameter of a classifier over the ranks of `mesh`.

    The parameters of one unit are gathered before they are used, and freed together afterwards. Each
    transformer block is a unit, found by the names of graftable parameters up to their first number.
    All other parameters are one more unit.
    """
    names = {id(parameter): name for name, parameter in classifier.named_parameters()}
    graftable = {short: names[id(p)] for short, p in classifier.graftable.items()}
    found = (re.match(r"(.*?\.\d+)\.", name) for name in graftable.values())
    for block in dict.fromkeys(match[1] for match in found if match):
        fully_shard(classifier.get_submodule(block), mesh=mesh)
    fully_shard(classifier, mesh=mesh)
    classifier.graftable = {short: classifier.get_parameter(n) for short, n in graftable.items()}


def local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a sharded tensor, in the same memory, or a plain tensor itself."""
    with torch.no_grad():
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sharded_as(tensor: Tensor, other: Tensor) -> Tensor:
    """Return a complete tensor, which every rank has, on the device of `other` and sharded like `other`."""
    if not isinstance(other, DTensor):
        return tensor.to(other.device)
    mesh, there = other.device_mesh, tensor.to(other.device)
    return distribute_tensor(there, mesh, other.placements, src_data_rank=None)


def gathered(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Return complete tensors on the CPU, gathered one after the other, or nothing unless `keep`.

    Every rank must call this function, since every rank sends its shards.
    """
    out = {}
    for name, tensor in tensors.items():
        whole = tensor.detach()
        whole = whole.full_tensor() if isinstance(whole, DTensor) else whole
        if keep:
            out[name] = whole.cpu()
    return out


def quiet() -> None:
    """Silence Lightning's messages about every trainer; its warnings remain."""
    for name in (
        "pytorch_lightning",
        "lightning.pytorch",
        "pytorch_lightning.utilities.rank_zero",
        "lightning_fabric",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)


def ignore_warnings() -> None:
    """Ignore warnings of Lightning about its own choices, and about deliberate choices of this project."""
    # Fine-tuning calls train() and mask training stays in eval mode.
    warnings.filterwarnings("ignore", message="Found .* module.* in eval mode")
    # Lightning 2.6 calls a function that torch 2.13 deprecates.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    # The launcher decides how a job is started.
    warnings.filterwarnings("ignore", message="The `srun` command is available")


def send(module: LightningModule, path: Path) -> None:
    """Write a module and the number of threads to a file, from which ranks `receive` them."""
    torch.save((type(module), module.__getstate__(), torch.get_num_threads()), path)


def ignore_signals() -> None:
    """Ignore signals in a rank, since the run's own process handles signals and tells its ranks.

    Some signals (Ctrl-C) reach all processes of a group at once.
    """
    for number in signals.SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_with_parent() -> None:
    """Start a thread that ends this rank when the run's own process has ended.

    Without that process nothing would read the rank's results.
    """

    def watch() -> None:
        while (parent := multiprocessing.parent_process()) is None:  # the process is being set up
            time.sleep(0.1)
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def receive(path: Path) -> LightningModule:
    """Return the module of a file that `send` wrote, and prepare this new process as a rank."""
    ignore_signals()
    end_with_parent()  # this early, because ranks wait half an hour for a rank that never starts
    tempfile.tempdir = str(path.parent)  # Lightning leaves an empty folder there
    quiet()
    ignore_warnings()
    # mmap: ranks share the memory of tensors that they do not change
    kind, state, threads = torch.load(path, map_location="cpu", weights_only=False, mmap=True)
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # else Lightning sets its own number
    module = kind.__new__(kind)
    module.__setstate__(state)
    return module


@contextmanager
def started(module: LightningModule, path: Path) -> Iterator[None]:
    """Allow ranks to be started inside a `with` block, and end all of them at the end of the block.

    Raises InputError where a rank raised InputError.
    """
    shutil.rmtree(path.parent, ignore_errors=True)  # left by a killed run
    path.parent.mkdir()
    others = set(multiprocessing.active_children())
    try:
        send(module, path)
        yield
    except ProcessException as error:
        if signals.asked:  # the signal reached a rank before the rank ignored signals
            raise signals.Interrupted(signals.asked[0]) from None
        said = re.findall(r"^[\w.]*InputError: (.*)$", str(error), re.MULTILINE)
        if not said:
            raise
        raise InputError(said[-1]) from None
    finally:
        # Killed, because a rank that waits for another rank would not react to a request. Checkpoints are
        # complete in any case.
        for rank in set(multiprocessing.active_children()) - others:
            rank.kill()
            rank.join()
        shutil.rmtree(path.parent)
        # Lightning's choice of a free port, which may be taken by now: the next training finds its own
        os.environ.pop("MASTER_PORT", None)
