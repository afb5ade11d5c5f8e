"""Signals that a training process remembers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator

import pytest

from amae_plugin.cluster import signals


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell
    signals.install_handlers()
    yield
    signals.forget()
    signal.signal(signal.SIGINT, before)


def interrupted_twice() -> None:
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
    sys.exit(signals.first_received())


def test_a_second_interrupt_is_one_again_but_not_for_a_process_that_also_gets_its_parents() -> None:
    process = multiprocessing.get_context("fork").Process(target=interrupted_twice)
    process.start()
    process.join()
    assert process.exitcode == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        interrupted_twice()


def test_a_child_that_has_ended_gets_no_signal() -> None:
    child = multiprocessing.get_context("fork").Process(target=int)
    child.start()
    child.join()
    signals.install_handlers([child.pid])
    os.kill(os.getpid(), signal.SIGTERM)
    assert signals.first_received() == signal.SIGTERM
