"""Signals that ask a training process to stop: SLURM's, a cloud machine's before it goes, and the user's interrupt."""

import multiprocessing
import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from types import FrameType

SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
"""SIGUSR2 precedes a time-out (sbatch ``--signal=USR2@seconds``), SIGTERM a preemption or a shutdown."""
_received: signal.Signals | None = None
_children: Iterable[int] = ()


def install_handlers(children: Iterable[int] = ()) -> None:
    """Have this process remember the signals instead of dying of them; a second interrupt is one again.

    That is for a process's parent to say if Python started it: an interrupt at a terminal reaches both, and the parent
    sends it on.

    A signal that this process ignores, as a job in a shell's background ignores interrupts, stays ignored.

    Args:
        children: processes to send the signals on to.
    """
    global _children
    _children = children
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _remember)


def forget() -> None:
    """Give the signals their usual meaning again."""
    global _received
    _received = None
    for number in SIGNALS:
        if signal.getsignal(number) == _remember:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def first_received() -> signal.Signals | None:
    """Return the first signal since :func:`install_handlers`."""
    return _received


def _remember(number: int, frame: FrameType | None) -> None:
    global _received
    if number == _received == signal.SIGINT and multiprocessing.parent_process() is None:
        raise KeyboardInterrupt
    _received = _received or signal.Signals(number)
    for child in _children:
        with suppress(ProcessLookupError):  # has ended
            os.kill(child, number)
