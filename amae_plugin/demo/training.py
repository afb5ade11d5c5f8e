"""``fairseq-hydra-train`` in a process of its own: a progress bar while it runs, its losses from what it logged."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from amae_plugin.errors import UserError

COMMAND = "fairseq-hydra-train"
_LOG_LINE = re.compile(r"\[(train_inner|valid)\]\[INFO\] - (\{.*\})$")
_LINES_ON_FAILURE = 30


def train(arguments: Sequence[str], updates: int, log: Path, description: str) -> None:
    """Run ``fairseq-hydra-train`` and show how far it is and its loss.

    Args:
        arguments: of the command; the run must log in JSON, as this package's recipes do.
        updates: at which the run ends.
        log: file to which everything that the command prints is added.
        description: of the progress bar.

    Raises:
        UserError: the command failed; its last lines are printed before.
    """
    command = [str(Path(sys.executable).with_name(COMMAND)), *arguments]
    # So small a model gains little from a second thread, and threads that wait for each other lose several times as
    # much as soon as anything else runs on the machine.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    lines: list[str] = []
    with (
        log.open("a", encoding="utf-8", buffering=1) as file,  # line by line: whatever ends this, the log is whole
        tqdm(total=updates, desc=description, unit="update") as progress,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                file.write(line)
                lines = [*lines[1 - _LINES_ON_FAILURE :], line]
                for kind, figures in _logged([line]):
                    if kind == "train_inner":
                        done = int(figures["num_updates"])
                        if not progress.n:
                            progress.initial = progress.n = done  # what a resumed run did before takes no time now
                        progress.update(done - progress.n)
                        progress.set_postfix_str(f"loss {float(figures['loss']):.3f}")
            if process.wait() == 0:
                progress.update(updates - progress.n)  # the last few may be fewer than are logged at a time
        except BaseException:
            process.terminate()  # leaving the block waits for it
            raise
    if process.returncode != 0:
        sys.stderr.writelines(lines)
        raise UserError(f"{COMMAND} failed (exit code {process.returncode}); everything it printed is in {log}")


def read_losses(log: Path) -> dict[str, list[tuple[float, float]]]:
    """The losses in a log of fairseq in JSON: ``training`` and ``validation``, each (update, loss) by update.

    Of an update that was run twice, because the run was resumed from before it, the later loss counts.
    """
    losses: dict[str, dict[float, float]] = {"training": {}, "validation": {}}
    with log.open(encoding="utf-8") as lines:
        for kind, figures in _logged(lines):
            if kind == "train_inner":
                losses["training"][float(figures["num_updates"])] = float(figures["loss"])
            else:
                losses["validation"][float(figures["valid_num_updates"])] = float(figures["valid_loss"])
    return {name: sorted(points.items()) for name, points in losses.items()}


def _logged(lines: Iterable[str]) -> Iterable[tuple[str, dict[str, Any]]]:
    for line in lines:
        match = _LOG_LINE.search(line.rstrip())
        if match:
            yield match[1], json.loads(match[2])
