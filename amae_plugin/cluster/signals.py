"""Signals by which SLURM announces that it will end a job."""

import signal
from types import FrameType

SIGNALS = (signal.SIGUSR2, signal.SIGTERM)
"""SIGUSR2 precedes a time-out (sbatch ``--signal=USR2@seconds``), SIGTERM a preemption."""
_received: signal.Signals | None = None


def install_handlers() -> None:
    """Have this process remember the signals instead of dying of them."""
    for number in SIGNALS:
        signal.signal(number, _remember)


def first_received() -> signal.Signals | None:
    """Return the first signal since :func:`install_handlers`."""
    return _received


def _remember(number: int, frame: FrameType | None) -> None:
    global _received
    _received = _received or signal.Signals(number)
