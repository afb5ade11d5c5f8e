"""``fairseq-hydra-train`` in a process of its own: a progress bar while it runs, its losses from what it logged."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from amae_plugin.errors import UserError

COMMAND = "fairseq-hydra-train"
_LOG_LINE = re.compile(r"\[(train_inner|valid)\]\[INFO\] - (\{.*\})$")
_LINES_ON_FAILURE = 30
_SETTINGS = "settings.json"
_PROGRESS = {"update": "num_updates", "s": "wall"}
"""What fairseq logs of a run's progress, by unit."""
_BARS = {"update": None, "s": "{l_bar}{bar}| {n_fmt}/{total_fmt} s{postfix}"}
"""Progress bars by unit: of time no rate, which would be seconds in a second."""


@dataclass(frozen=True)
class Training:
    """A run of ``fairseq-hydra-train``.

    Attributes:
        description: of the progress bar.
        arguments: of the command; the run must log in JSON, as this package's recipes do.
        end: of the run, in updates or, with ``unit``, in seconds.
        folder: of the run; ``output.log`` in it gets everything that the command prints.
        unit: of ``end``.
    """

    description: str
    arguments: Sequence[str]
    end: int
    folder: Path
    unit: Literal["update", "s"] = "update"

    @property
    def log(self) -> Path:
        """What the command printed."""
        return self.folder / "output.log"

    @property
    def checkpoint(self) -> Path:
        """The model at the end of the run."""
        return self.folder / "checkpoints" / "checkpoint_last.pt"


def complete(trainings: Sequence[Training]) -> None:
    """Run those trainings that are not done, as many at a time as there are processors.

    An interrupted training goes on from its last checkpoint.

    Raises:
        UserError: a command failed, or a folder holds a training with other settings.
    """
    todo = [training for training in trainings if not _is_done(training)]
    cpus = available_cpus()
    # Threads of trainings that run side by side would wait for each other, several times as long as they work.
    threads = max(1, cpus // max(1, len(todo)))
    with ThreadPoolExecutor(cpus) as pool:
        for result in [pool.submit(_train, training, threads, position) for position, training in enumerate(todo)]:
            result.result()


def _is_done(training: Training) -> bool:
    settings = training.folder / _SETTINGS
    if not settings.exists():
        return False
    found = json.loads(settings.read_text())
    if found["arguments"] != list(training.arguments):
        raise UserError(f"{training.folder} holds a training with other settings: delete it to train anew")
    return bool(found["done"])


def _train(training: Training, threads: int, position: int) -> None:
    """Train, with a progress bar at that line below the cursor."""
    training.folder.mkdir(parents=True, exist_ok=True)
    settings = {"done": False, "arguments": list(training.arguments)}
    write_json(training.folder / _SETTINGS, settings)
    tqdm.write(f"{COMMAND} {' '.join(training.arguments)}")
    _run(training, threads, position)
    write_json(training.folder / _SETTINGS, {**settings, "done": True})


def write_json(path: Path, values: object) -> None:
    """Write a file that is never there in part."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(values, indent=1) + "\n")
    partial.replace(path)


def _run(training: Training, threads: int, position: int) -> None:
    command = [str(Path(sys.executable).with_name(COMMAND)), *training.arguments]
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    lines: list[str] = []
    with (
        # Line by line: whatever ends this, the log is whole.
        training.log.open("a", encoding="utf-8", buffering=1) as file,
        tqdm(
            total=training.end,
            desc=training.description,
            unit=training.unit,
            bar_format=_BARS[training.unit],
            position=position,
        ) as progress,
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
                        done = int(figures[_PROGRESS[training.unit]])
                        if not progress.n:
                            progress.initial = progress.n = done  # what a resumed run did before takes no time now
                        progress.update(done - progress.n)
                        progress.set_postfix_str(f"loss {float(figures['loss']):.3f}")
            if process.wait() == 0:
                progress.update(training.end - progress.n)  # the last few may be fewer than are logged at a time
        except BaseException:
            process.terminate()  # leaving the block waits for it
            raise
    if process.returncode != 0:
        sys.stderr.writelines(lines)
        raise UserError(
            f"{COMMAND} failed (exit code {process.returncode}); everything it printed is in {training.log}"
        )


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


def available_cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
