"""Trainings side by side: how a failure and an interrupt end them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = """#!/bin/sh
echo $$ > "$1.pid"
echo "[train_inner][INFO] - {\\"num_updates\\": \\"1\\", \\"loss\\": \\"0.5\\"}"
[ "$2" = fails ] && sleep 0.5 && exit 3
exec sleep 600
"""


@pytest.fixture
def start(tmp_path: Path):
    """Starts a process that trains, two at a time, with a command that sleeps or fails in place of fairseq's."""
    command = tmp_path / "fairseq-hydra-train"
    command.write_text(COMMAND)
    command.chmod(0o755)

    def start(*ends: str) -> subprocess.Popen[str]:
        code = f"""
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background ignores it
from amae_plugin.errors import UserError
from amae_plugin.runs import training
root = Path({str(tmp_path)!r})
sys.executable = str(root / "python")
training.available_cpus = lambda: 2
arguments = [[str(root / str(index)), end] for index, end in enumerate({ends})]
trainings = [training.Training(each[0], each, 2, root / f"run{{index}}") for index, each in enumerate(arguments)]
try:
    training.complete(trainings)
except (UserError, KeyboardInterrupt) as error:
    print(type(error).__name__, error)
"""
        return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def pids(folder: Path) -> list[int]:
    return [int(path.read_text() or 0) for path in sorted(folder.glob("*.pid"))]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_interrupt_ends_what_runs_and_starts_nothing_else(tmp_path: Path, start) -> None:
    process = start("sleeps", "sleeps", "sleeps", "sleeps")
    while len(pids(tmp_path)) < 2 or not all(pids(tmp_path)):
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)  # to this process alone: the trainings learn of it from nobody else
    output, _ = process.communicate(timeout=60)
    assert output.splitlines()[-1].startswith("KeyboardInterrupt")
    assert len(pids(tmp_path)) == 2
    assert not any(map(is_running, pids(tmp_path)))


def test_a_failure_ends_the_others_and_shows_what_was_printed(tmp_path: Path, start) -> None:
    output, error = start("sleeps", "fails", "sleeps").communicate(timeout=60)
    log = tmp_path / "run1" / "output.log"
    message = f"fairseq-hydra-train failed (exit code 3); everything it printed is in {log}"
    assert output.splitlines()[-1] == f"UserError {message}"
    assert '"loss": "0.5"' in error and "loss 0.500" in error
    assert '"loss": "0.5"' in log.read_text()
    assert len(pids(tmp_path)) == 2, "the third one started"
    assert not any(map(is_running, pids(tmp_path)))
