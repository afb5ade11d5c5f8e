"""How commands end that are interrupted, terminated, killed, or whose output nobody reads."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from amae_plugin.processes import run_program

BIN = Path(sys.executable).parent
PRETRAINING = """
task: {_name: amae_pretraining, data: "???", target_length: 64, num_mel_bins: 32}
model: {_name: amae_audio_mae, patch_size: [8, 8], embed_dim: 24, depth: 1, num_heads: 3, decoder: global}
"""


def commands(folder: Path) -> dict[str, list[str]]:
    """Commands that take minutes in processes of their own, by name; they find what they need in a folder."""
    (folder / "recipe.yaml").write_text(PRETRAINING)
    soundfile.write(folder / "clip.wav", np.zeros(160_000), 16_000)
    (folder / "train.tsv").write_text(".\n" + "clip.wav\t160000\n" * 100_000)
    recipe = ["--config-dir", str(folder), "--recipe", "recipe", "--precision", "fp32"]
    return {
        "benchmark": [str(BIN / "amae"), "benchmark", *recipe, "--steps", "100000"],
        "stats": [str(BIN / "amae"), "stats", str(folder), "--clips", "0", "--workers", "2"],
        "demo": [str(BIN / "python"), "-m", "amae_plugin.demo", "--out", str(folder / "demo")],
    }


def descendants(pid: int) -> set[int]:
    """Processes that a process started, and those that these started, other than Python's helpers."""
    children: dict[int, set[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            children.setdefault(int(parent), set()).add(int(path.parent.name))
    found, new = set(), {pid}
    while new := set().union(*(children.get(one, set()) for one in new)):
        found |= new
    return found


def wait_until(true: Callable[[], object]) -> None:
    while not true():
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("benchmark", signal.SIGINT),
        ("benchmark", signal.SIGTERM),
        ("stats", signal.SIGTERM),
        ("demo", signal.SIGTERM),
        ("demo", signal.SIGKILL),
    ],
)
def test_whatever_ends_a_command_ends_its_processes(tmp_path: Path, name: str, number: signal.Signals) -> None:
    terminal, side_of_command = pty.openpty()  # where there is no terminal, no progress is shown
    termios.tcsetwinsize(terminal, (24, 100))
    process = subprocess.Popen(
        commands(tmp_path)[name],
        stdout=subprocess.DEVNULL,
        stderr=side_of_command,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        start_new_session=True,
    )
    printed = b""
    # The progress of the work in the other processes.
    while b"1/" not in printed and b"8/" not in printed:
        printed += os.read(terminal, 10_000)
        assert process.poll() is None, printed
    started = descendants(process.pid)
    assert started
    process.send_signal(number)
    process.wait(timeout=60)
    rest = os.read(terminal, 100_000)
    for end in (terminal, side_of_command):
        os.close(end)
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        assert b"Traceback" not in rest, rest.decode()
        assert ("interrupted" if number == signal.SIGINT else "terminated") in rest.decode().splitlines()[-1]
    wait_until(lambda: not any(map(is_running, started)))


def test_a_command_whose_worker_is_killed_ends_with_advice(tmp_path: Path) -> None:
    process = subprocess.Popen(commands(tmp_path)["stats"], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(descendants(process.pid)) == 2)
    os.kill(min(descendants(process.pid)), signal.SIGKILL)
    last = process.communicate(timeout=60)[1].splitlines()[-1]
    assert process.returncode == 2
    assert last.startswith("amae: a process that loads clips has ended early.") and "--workers" in last


@pytest.mark.parametrize("buffer", [{}, {"PYTHONUNBUFFERED": "1"}])
def test_output_that_nobody_reads_is_no_error(
    tmp_path: Path, write_checkpoint: Callable[..., Path], buffer: dict[str, str]
) -> None:
    command = [BIN / "amae", "inspect", write_checkpoint(tmp_path / "checkpoint.pt", None)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | buffer
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environment, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_no_command_minds_who_reads_its_help_or_its_errors() -> None:
    script = """
import os, sys
from amae_plugin.cli.main import COMMANDS, main
reader, unread = os.pipe()
os.close(reader)
for command in COMMANDS:
    for stream, arguments in ((1, ["--help"]), (2, ["", "--help"])):  # the help, and an error
        child = os.fork()
        if not child:
            os.dup2(unread, stream)
            sys.exit(main([command, *arguments]))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code == 141, (command, arguments, code)
"""
    command = [sys.executable, "-c", script]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, capture_output=True, text=True, env=buffered, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_other_pipes_that_break_are_errors() -> None:
    def work() -> None:
        raise BrokenPipeError("of something else")

    with pytest.raises(BrokenPipeError, match="of something else"):
        run_program("name", work)
