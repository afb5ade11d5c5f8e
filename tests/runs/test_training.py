"""Trainings side by side: how a failure, and the end of the process that started them, end them."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from amae_plugin.runs.training import Probe, read_losses, read_probes

COMMAND = """#!/bin/sh
echo $$ > "$1.pid.new" && mv "$1.pid.new" "$1.pid"
echo "[train_inner][INFO] - {\\"num_updates\\": \\"1\\", \\"loss\\": \\"0.5\\"}"
[ "$2" = fails ] && sleep 0.5 && exit 3
[ "$2" = ends ] && sleep 0.5 && exit
[ "$2" = stubborn ] && trap "" TERM INT
[ "$2" = finishes ] && trap "exit 0" INT TERM && while :; do sleep 0.05; done
exec sleep 600
"""


@pytest.fixture
def start(tmp_path: Path):
    """Starts a process that trains, two at a time, with a command that sleeps or fails in place of fairseq's."""
    command = tmp_path / "fairseq-hydra-train"
    command.write_text(COMMAND)
    command.chmod(0o755)

    def start(*ends: str, options: str = "", terminal: int = subprocess.PIPE) -> subprocess.Popen[str]:
        code = f"""
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background ignores it
from amae_plugin.processes import run_program
from amae_plugin.runs import training
root = Path({str(tmp_path)!r})
sys.executable = str(root / "python")
training.available_cpus = lambda: 2
training._GRACE_S = 1.0
arguments = [[str(root / str(index)), end] for index, end in enumerate({ends})]
trainings = [training.Training(each[0], each, 2, root / f"run{{index}}") for index, each in enumerate(arguments)]
failures = {{}}
code = run_program("name", lambda: training.complete(trainings{options}), "continue")
for folder, error in failures.items():
    print(f"{{folder.name}}: {{error}}")
sys.exit(code)
"""
        pipes = {"stdout": terminal, "stderr": terminal}
        return subprocess.Popen([sys.executable, "-c", code], **pipes, text=True, start_new_session=True)

    return start


def pids(folder: Path) -> list[int]:
    return [int(path.read_text()) for path in sorted(folder.glob("*.pid"))]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(true: Callable[[], bool]) -> None:
    while not true():
        time.sleep(0.02)


@pytest.mark.parametrize("ends", ["sleeps", "stubborn", "finishes"])
@pytest.mark.parametrize(
    ("number", "group", "code", "word"),
    [
        (signal.SIGINT, False, 130, "interrupted"),
        (signal.SIGINT, True, 130, "interrupted"),  # Ctrl-C: the trainings get it as well
        (signal.SIGTERM, False, 143, "terminated"),
        (signal.SIGTERM, True, 143, "terminated"),
    ],
)
def test_a_signal_ends_what_runs_and_starts_nothing_else(
    tmp_path: Path, start, ends: str, number: signal.Signals, group: bool, code: int, word: str
) -> None:
    process = start(ends, ends, ends, ends)
    wait_until(lambda: len(pids(tmp_path)) == 2 or process.poll() is not None)
    (os.killpg if group else os.kill)(process.pid, number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code, error
    assert error.splitlines()[-1] == f"name: {word}; continue", repr(error)
    assert "Traceback" not in error
    assert len(pids(tmp_path)) == 2
    assert not any(map(is_running, pids(tmp_path)))
    assert not any('"done": true' in path.read_text() for path in tmp_path.glob("run*/settings.json"))


def test_the_kernel_ends_what_a_killed_process_leaves(tmp_path: Path, start) -> None:
    process = start("sleeps", "finishes")
    wait_until(lambda: len(pids(tmp_path)) == 2 or process.poll() is not None)
    process.kill()
    process.communicate()
    wait_until(lambda: not any(map(is_running, pids(tmp_path))))


def test_a_failure_ends_the_others_and_shows_what_was_printed(tmp_path: Path, start) -> None:
    _, error = start("sleeps", "fails", "sleeps").communicate(timeout=60)
    log = tmp_path / "run1" / "output.log"
    message = f"fairseq-hydra-train failed (exit code 3); everything it printed is in {log}"
    assert error.splitlines()[-1] == f"name: {message}"
    assert '"loss": "0.5"' in error
    assert '"loss": "0.5"' in log.read_text()
    assert len(pids(tmp_path)) == 2, "the third one started"
    assert not any(map(is_running, pids(tmp_path)))


def test_bars_leave_a_line_for_each_training_and_nothing_else(tmp_path: Path, start) -> None:
    out, error = start("ends", "ends", "ends").communicate(timeout=60)
    assert error == "", "without a terminal there are no bars"
    lines = out.splitlines()
    for folder in tmp_path.glob("run*"):
        shutil.rmtree(folder)

    terminal, inside = pty.openpty()
    termios.tcsetwinsize(inside, (24, 100))
    process = start("ends", "ends", "ends", terminal=inside)
    os.close(inside)
    written = b""
    with suppress(OSError):  # at the end of what is written
        while True:
            written += os.read(terminal, 10_000)
    os.close(terminal)
    assert process.wait() == 0
    drawn = written.decode()
    assert "loss 0.500" in drawn and "\x1b[A" in drawn, "there were bars, one below the other"
    expected = [str(tmp_path / str(index)) for index in range(3)]
    for shown in (lines, screen(drawn)):
        begun = [line.split()[1] for line in shown if line.startswith("fairseq-hydra-train")]
        done = [line.partition(", done in ")[0] for line in shown if ", done in " in line]
        assert begun == expected
        assert sorted(done) == [f"{name}: 2 updates, loss 0.500" for name in expected]
        assert len(shown) == 6


def screen(text: str) -> list[str]:
    """The lines of a terminal without an edge, after a text with a progress bar's movements."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[A|[\r\n]|[^\r\n\x1b]+", text):
        if part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif part == "\x1b[A":
            row -= 1
        else:
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in lines if line.strip()]


def test_the_others_go_on_where_failures_are_noted(tmp_path: Path, start) -> None:
    process = start("ends", "fails", "ends", options=", 1, failures")
    output, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    failed = [line for line in output.splitlines() if "failed" in line]
    assert len(failed) == 1 and failed[0].startswith("run1: fairseq-hydra-train failed (exit code 3)")
    done = [json.loads(path.read_text())["done"] for path in sorted(tmp_path.glob("run*/settings.json"))]
    assert done == [True, False, True]


def test_probes_are_read_once_each(tmp_path: Path) -> None:
    log = tmp_path / "output.log"
    rows = [(0, 0.5, 0.1), (10, 30, 0.2), (20, 60, 0.3), (20, 61, 0.4)]  # resumed from update 10, killed after 20
    names = ("probe_num_updates", "probe_seconds", "probe_mAP")
    lines = [f"[2026][probe][INFO] - {json.dumps(dict(zip(names, map(str, row))))}" for row in rows]
    lines.insert(1, '[2026][train_inner][INFO] - {"loss": "0.5", "num_updates": "5"}')
    log.write_text("\n".join(lines))
    assert read_probes(log) == [Probe(*row[:2], "mAP", row[2]) for row in (rows[0], rows[1], rows[3])]
    assert read_losses(log) == {"training": [(5, 0.5)], "validation": []}
