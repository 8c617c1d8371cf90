"""One model over several processes, the ranks of Lightning's DDP or FSDP: their shares, start and end."""

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

FOLDER = "ranks"  # beside a training's checkpoints, while its ranks run


def share_of_batch(batch: Batch, rank: int, ranks: int) -> Batch:
    """Return the rows `rank`, `rank + ranks`, … of a batch, with the `weight` of their mean loss.

    The mean over ranks of weight · mean loss is the mean over the batch's rows. A rank that has no
    row takes the first with weight 0: every rank must have a gradient.
    """
    rows = len(batch["labels"])
    mine = list(range(rank, rows, ranks))
    part = {n: t if n == "words" else t[mine or [0]] for n, t in batch.items()}
    return {**part, "weight": torch.tensor(len(mine) * ranks / rows)}


def ending_at_once(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a rank's function; where it fails, end the rank without waiting for the other ranks."""
    try:
        return function(*args, **options)
    except BaseException:
        # before Lightning takes leave of the other ranks, which may wait for this one
        atexit.register(os._exit, 1)
        raise


class Launcher(_MultiProcessingLauncher):
    """Lightning's launcher, whose ranks end at once where they fail."""

    def launch(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Start the ranks and return what rank 0 does; `trainer` is among the options."""
        return super().launch(partial(ending_at_once, function), *args, **options)


class DeterministicDDP(DDPStrategy):
    """Lightning's distributed data parallelism, for parameters that the loss may not reach.

    And with buckets of gradients that stay what they are. By itself it would deal them out anew after
    the first step, by the order in which they came; where that is another, so is the order in which
    ranks are summed, and a run that is taken up would have other bits.
    """

    def __init__(self, start_method: Literal["spawn", "forkserver"]) -> None:
        super().__init__(start_method=start_method, find_unused_parameters=True)
        self.start_method = start_method

    @cached_property
    def launcher(self) -> Launcher:
        """What starts the ranks: one object, which knows their processes."""
        return Launcher(self, self.start_method)


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's fully sharded data parallelism, whose ranks are started as those of its DDP.

    By itself it would start them by running the command line again; its FSDPStrategy too, which
    refuses a CPU besides.
    """

    def __init__(self, devices: int, start_method: Literal["spawn", "forkserver"]) -> None:
        super().__init__(data_parallel_size=devices, tensor_parallel_size=1)
        self.start_method = start_method

    @cached_property
    def launcher(self) -> Launcher:
        """What starts the ranks: one object, which knows their processes."""
        return Launcher(self, self.start_method)


def strategy(cfg: TrainerConfig, sharded: bool = False) -> Strategy | str:
    """Return the strategy for `cfg.devices`; its processes are not made by the command line again.

    Once CUDA is in use only spawn is open. On the CPU a server that has imported everything is
    forked: quicker, and unlike the run itself it has no threads, which a child would lack.
    """
    if cfg.devices == 1 and not sharded:
        return "auto"
    method: Literal["spawn", "forkserver"] = "spawn" if cfg.accelerator == "gpu" else "forkserver"
    # of a rank's libraries in C++: that find_unused_parameters costs time
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if method == "forkserver":
        start_server()
    return ShardedStrategy(cfg.devices, method) if sharded else DeterministicDDP(method)


def start_server() -> None:
    """Start the server that ranks are forked from, if there is none; signals are not for it, or for them."""
    multiprocessing.set_forkserver_preload(
        ["skillgraft.training.mask_training", "transformers.modeling_utils"]
    )
    resource_tracker.ensure_running()  # which the server wants, and whose start unblocks two of them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)  # inherited
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def shard(classifier: Classifier, mesh: DeviceMesh) -> None:
    """Leave each rank of `mesh` its shard of every parameter of the classifier, gathered where it is used.

    Units, whose parameters are gathered and freed together, are the transformer blocks: what the
    names of the graftable parameters have up to their first number. The rest is one more unit.
    """
    names = {id(parameter): name for name, parameter in classifier.named_parameters()}
    graftable = {short: names[id(p)] for short, p in classifier.graftable.items()}
    found = (re.match(r"(.*?\.\d+)\.", name) for name in graftable.values())
    for block in dict.fromkeys(match[1] for match in found if match):
        fully_shard(classifier.get_submodule(block), mesh=mesh)
    fully_shard(classifier, mesh=mesh)
    classifier.graftable = {short: classifier.get_parameter(n) for short, n in graftable.items()}


def local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a tensor that is sharded, sharing its memory; else the tensor itself."""
    with torch.no_grad():
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sharded_as(tensor: Tensor, other: Tensor) -> Tensor:
    """Return a whole tensor, which every rank has, on the device of another and sharded like it."""
    if not isinstance(other, DTensor):
        return tensor.to(other.device)
    mesh, there = other.device_mesh, tensor.to(other.device)
    return distribute_tensor(there, mesh, other.placements, src_data_rank=None)


def gathered(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Return the tensors whole and on the CPU, one after the other, where they are to be kept.

    Every rank must ask, since each has its shards to give.
    """
    out = {}
    for name, tensor in tensors.items():
        whole = tensor.detach()
        whole = whole.full_tensor() if isinstance(whole, DTensor) else whole
        if keep:
            out[name] = whole.cpu()
    return out


def quiet() -> None:
    """Silence what Lightning says about every trainer it makes; its warnings stay."""
    for name in (
        "pytorch_lightning",
        "lightning.pytorch",
        "pytorch_lightning.utilities.rank_zero",
        "lightning_fabric",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)


def ignore_warnings() -> None:
    """Ignore what Lightning warns of that is its own choice, or ours on purpose."""
    # Fine-tuning calls train() and mask training stays in eval mode.
    warnings.filterwarnings("ignore", message="Found .* module.* in eval mode")
    # Lightning 2.6 calls what torch 2.13 deprecates.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    # What a job is started with is the launcher's to say.
    warnings.filterwarnings("ignore", message="The `srun` command is available")


def send(module: LightningModule, path: Path) -> None:
    """Write a module, and the number of threads, for `receive`."""
    torch.save((type(module), module.__getstate__(), torch.get_num_threads()), path)


def ignore_signals() -> None:
    """Leave signals to the run itself, which tells its ranks: some reach every process at once."""
    for number in signals.SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_with_parent() -> None:
    """From here on end this rank when the run's own process has ended: nobody would take up its work."""

    def watch() -> None:
        while (parent := multiprocessing.parent_process()) is None:  # while it is being set up
            time.sleep(0.1)
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def receive(path: Path) -> LightningModule:
    """Return the module of a file, in a new process that is made ready for it."""
    ignore_signals()
    end_with_parent()  # already where ranks wait for each other, for half an hour if one never comes
    tempfile.tempdir = str(path.parent)  # where Lightning leaves an empty folder
    quiet()
    ignore_warnings()
    # mapped: ranks share the pages of what they do not change
    kind, state, threads = torch.load(path, map_location="cpu", weights_only=False, mmap=True)
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # else Lightning deals out the cores
    module = kind.__new__(kind)
    module.__setstate__(state)
    return module


@contextmanager
def started(module: LightningModule, path: Path) -> Iterator[None]:
    """Let ranks be started inside a `with` block; at its end, however it ends, there are none.

    Raises InputError where a rank did.
    """
    shutil.rmtree(path.parent, ignore_errors=True)  # of a run that was killed
    path.parent.mkdir()
    others = set(multiprocessing.active_children())
    try:
        send(module, path)
        yield
    except ProcessException as error:
        if signals.asked:  # by a signal that has reached a rank before it could ignore it
            raise signals.Interrupted(signals.asked[0]) from None
        said = re.findall(r"^[\w.]*InputError: (.*)$", str(error), re.MULTILINE)
        if not said:
            raise
        raise InputError(said[-1]) from None
    finally:
        # not asked to end: a rank that waits for another would not hear it. Checkpoints are whole.
        for rank in set(multiprocessing.active_children()) - others:
            rank.kill()
            rank.join()
        shutil.rmtree(path.parent)
        os.environ.pop("MASTER_PORT", None)  # Lightning's, free a while ago: the next finds its own
