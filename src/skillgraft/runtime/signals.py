"""Signals that end a run: training ends after the present step, with a checkpoint, anything else at once."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Ctrl-C, a scheduler's time limit, and the signal that submitit lets SLURM send before a preemption.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
# Seconds within which the same signal counts once: timeout and srun signal both a process and its group.
TOGETHER = 0.5
last_signal = (0, -math.inf)  # the number of the latest signal, and its time in seconds
asked: list[signal.Signals] = []  # signals that arrived during a training step
self_raised: list[signal.Signals] = []  # signals sent by this process itself, not yet handled
stop_hooks: list[Callable[[], None]] = []  # while Lightning trains: functions that request the end


class Interrupted(SystemExit):
    """The end of a run by a signal; the exit code is 128 + the signal's number, as shells report it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name
        self.cause = "Ctrl-C" if number == signal.SIGINT else self.name  # in words for people


def handle(number: int, _frame: FrameType | None) -> None:
    """Handle a signal: end the run after the training step, or at once without training or when repeated."""
    global last_signal
    if number in self_raised:
        self_raised.clear()
        return
    (before, since), now = last_signal, time.monotonic()
    if number == before and now - since < TOGETHER:
        return
    last_signal = (number, now)
    if asked or not stop_hooks:
        raise Interrupted(number)
    asked.append(signal.Signals(number))
    stop_hooks[-1]()


@contextmanager
def watching() -> Iterator[None]:
    """Handle the signals of SIGNALS inside a `with` block.

    Only a process's main thread can handle signals; in any other thread the block does nothing. A
    handler of SIGUSR2 that submitit has set is called once the run has ended, and queues the job again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    global last_signal
    last_signal = (0, -math.inf)
    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    except Interrupted as error:
        theirs = before[signal.SIGUSR2]
        if error.name == "SIGUSR2" and callable(theirs):
            theirs(signal.SIGUSR2, None)
        raise
    finally:
        for number, handler in before.items():
            # None: the handler was not set from Python, and Python cannot restore it
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        asked.clear()


def tell_lightning() -> None:
    """Send SIGTERM, the only signal after which Lightning stops between two steps, unless SIGTERM came."""
    if asked[0] != signal.SIGTERM:
        self_raised.append(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)


@contextmanager
def between_steps(tell: Callable[[], None] = tell_lightning) -> Iterator[None]:
    """Delay signals to the end of a training step inside a `with` block; `tell` requests the end."""
    stop_hooks.append(tell)
    try:
        yield
    finally:
        stop_hooks.pop()
