"""One model over several processes, the ranks of Lightning's DDP: their shares, their start and their end."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import shutil
import signal
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.strategies import DDPStrategy, Strategy
from torch.multiprocessing.spawn import ProcessRaisedException

from skillgraft.config import TrainerConfig
from skillgraft.errors import InputError
from skillgraft.prompt import Batch

FOLDER = "ranks"  # beside a training's checkpoints, while its ranks run


def share(batch: Batch, rank: int, ranks: int) -> Batch:
    """Return the rows `rank`, `rank + ranks`, … of a batch, with the `weight` of their mean loss.

    The mean over ranks of weight · mean loss is the mean over the batch's rows. A rank that has no
    row takes the first with weight 0: every rank must have a gradient.
    """
    rows = len(batch["labels"])
    mine = list(range(rank, rows, ranks))
    part = {n: t if n == "words" else t[mine or [0]] for n, t in batch.items()}
    return {**part, "weight": torch.tensor(len(mine) * ranks / rows)}


def strategy(cfg: TrainerConfig) -> Strategy | str:
    """Return the strategy for `cfg.devices`; its processes are not made by the command line again.

    Once CUDA is in use only spawn is open. On the CPU a server that has imported everything is
    forked: quicker, and unlike the run itself it has no threads, which a child would lack.
    """
    if cfg.devices == 1:
        return "auto"
    if cfg.accelerator == "gpu":
        return DDPStrategy(start_method="spawn")
    multiprocessing.set_forkserver_preload(["skillgraft.learn", "transformers.modeling_utils"])
    return DDPStrategy(start_method="forkserver")


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


def end_with_parent() -> None:
    """From here on end this rank when the run's own process has ended: nobody would take up its work."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch(sentinel: int) -> None:
        wait([sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, args=[parent.sentinel], daemon=True).start()


def receive(path: Path) -> LightningModule:
    """Return the module of a file, in a new process that is made ready for it."""
    # Ctrl-C reaches every process of a terminal: the run itself says what has become of it
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    tempfile.tempdir = str(path.parent)  # where Lightning leaves an empty folder
    quiet()
    ignore_warnings()
    kind, state, threads = torch.load(path, map_location="cpu", weights_only=False)
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
    except ProcessRaisedException as error:
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
