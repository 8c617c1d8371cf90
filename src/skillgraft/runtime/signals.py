"""Being asked to stop: a signal ends training at its next step, with a checkpoint, and all else at once."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Ctrl-C, a scheduler's end of time, and what submitit has SLURM send before a preemption.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
# Seconds in which a signal is still the one before: timeout and srun tell a process and its group.
TOGETHER = 0.5
last_signal = (0, -math.inf)  # the signal that has last asked for the end, and when
asked: list[signal.Signals] = []  # what has come while a step was being made
self_raised: list[signal.Signals] = []  # what was raised here, for Lightning, and has not come yet
stop_hooks: list[Callable[[], None]] = []  # while Lightning trains: what tells it to stop


class Interrupted(SystemExit):
    """The end of a run that was asked to stop: exit code 128 + the signal's number, as shells have it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name
        self.cause = "Ctrl-C" if number == signal.SIGINT else self.name  # in words for people


def handle(number: int, _frame: FrameType | None) -> None:
    """End the run: at the next step while something is trained, at once otherwise or when asked again."""
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
    """Heed the signals inside a `with` block; only a process's main thread can.

    Where submitit waits for a scheduler's signal, it is handed on once the run has ended: submitit
    queues the job again.
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
            # None: set by something that is not Python, which cannot be put back from here
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        asked.clear()


def tell_lightning() -> None:
    """Send the one signal after which Lightning stops between two steps, if it has not been that."""
    if asked[0] != signal.SIGTERM:
        self_raised.append(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)


@contextmanager
def between_steps(tell: Callable[[], None] = tell_lightning) -> Iterator[None]:
    """Let a signal wait for the end of a training step inside a `with` block; `tell` asks for the end."""
    stop_hooks.append(tell)
    try:
        yield
    finally:
        stop_hooks.pop()
