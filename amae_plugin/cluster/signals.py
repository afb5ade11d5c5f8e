"""The signals by which SLURM announces that it will end a job."""

from __future__ import annotations

import signal
from types import FrameType

SIGNALS = (signal.SIGUSR2, signal.SIGTERM)
"""SIGUSR2 comes before a time-out (sbatch ``--signal=USR2@seconds``), SIGTERM before a preemption."""

_received: signal.Signals | None = None


def watch() -> None:
    """From now on, remember these signals instead of dying of them."""
    for number in SIGNALS:
        signal.signal(number, _remember)


def received() -> signal.Signals | None:
    """The first of them that came since :func:`watch`."""
    return _received


def _remember(number: int, frame: FrameType | None) -> None:
    global _received
    _received = _received or signal.Signals(number)
