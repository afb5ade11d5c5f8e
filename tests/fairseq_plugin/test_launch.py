"""How a task ends with the processes that it started."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from amae_plugin.cluster import signals
from amae_plugin.fairseq_plugin.launch import REQUEUED, exit_code


@pytest.fixture
def terminated() -> Iterator[None]:
    signals.install_handlers()
    os.kill(os.getpid(), signal.SIGTERM)
    yield
    signals.forget()


def test_a_task_ends_as_the_process_that_has_said_why() -> None:
    codes = (2, REQUEUED, 130, 143, 1, -signal.SIGKILL, -signal.SIGTERM)
    assert [exit_code(code) for code in codes] == [2, REQUEUED, 130, 143, None, None, None]


@pytest.mark.parametrize(("job", "expected"), [(None, 143), ("1", REQUEUED)])
def test_a_signal_may_find_a_process_that_does_not_listen(
    job: str | None, expected: int, terminated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if job is not None:
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_PROCID", "0")
    assert exit_code(-signal.SIGTERM) == expected
