"""``fairseq-hydra-train`` in processes of its own: progress bars while they run, and the losses that they logged."""

import asyncio
import json
import os
import re
import shlex
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from amae_plugin.errors import UserError
from amae_plugin.files import write_json
from amae_plugin.processes import terminated_with_parent
from amae_plugin.recipes import override

COMMAND = "fairseq-hydra-train"
_LOG_LINE = re.compile(r"\[(train_inner|valid)\]\[INFO\] - (\{.*\})$")
_LINES_ON_FAILURE = 30
_LONGEST_LINE = 2**24
_GRACE_S = 30.0
"""Seconds for a training that is terminated to finish its update and to write a checkpoint."""
_SETTINGS = "settings.json"
_UNITS = {"update": ("num_updates", None), "s": ("wall", "{l_bar}{bar}| {n_fmt}/{total_fmt} s{postfix}")}
"""By unit: name under which fairseq logs a run's progress, and format of the bar; a bar of seconds shows no rate."""
_SERIES = {"train_inner": ("training", ""), "valid": ("validation", "valid_")}
"""By kind of log line: name of its losses, and prefix of its values' names."""


@dataclass(frozen=True)
class Training:
    """A run of ``fairseq-hydra-train``.

    Attributes:
        description: title of the progress bar.
        arguments: arguments of the command; the run must log in JSON, as this package's recipes do.
        end: length of the run in updates or, with ``unit``, in seconds.
        folder: folder of the run; everything that the command prints goes to ``output.log`` in it.
        unit: unit of ``end``.
    """

    description: str
    arguments: Sequence[str]
    end: int
    folder: Path
    unit: Literal["update", "s"] = "update"

    @property
    def log(self) -> Path:
        """File of everything that the command printed."""
        return self.folder / "output.log"

    @property
    def checkpoint(self) -> Path:
        """Checkpoint of the end of the run."""
        return self.folder / "checkpoints" / "checkpoint_last.pt"


def recipe_arguments(recipe: str, config_dir: Path, folder: Path, data: Path) -> list[str]:
    """Return the arguments of a training by a recipe, on the clips of *data* and on one device, as its batch is."""
    arguments = ["--config-dir", str(config_dir), "--config-name", recipe, override("hydra.run.dir", folder)]
    return [*arguments, override("task.data", data), "distributed_training.distributed_world_size=1"]


def complete(trainings: Sequence[Training]) -> None:
    """Run those trainings that are not done, as many at a time as there are processors.

    An interrupted training continues from its last checkpoint. If one fails or this process is interrupted or
    terminated, the others are terminated, killed if that takes them too long, and those that wait do not start. If this
    process is killed, the kernel terminates them.

    Raises:
        UserError: a command failed, or a folder holds a training with other settings.
    """
    asyncio.run(_complete([training for training in trainings if not _is_done(training)]))


async def _complete(trainings: Sequence[Training]) -> None:
    cpus = available_cpus()
    # Threads of trainings that run at the same time would wait for each other, several times as long as they work.
    threads = max(1, cpus // max(1, len(trainings)))
    waiting = iter(enumerate(trainings))

    async def work() -> None:
        for row, training in waiting:
            await _train(training, threads, row)

    # asyncio.run cancels the workers that are left when one of them raises an error, and waits for them.
    await asyncio.gather(*(work() for _ in range(cpus)))


def _is_done(training: Training) -> bool:
    settings = training.folder / _SETTINGS
    if not settings.exists():
        return False
    found = json.loads(settings.read_text())
    if found["arguments"] != list(training.arguments):
        raise UserError(f"{training.folder} holds a training with other settings: delete it to train anew")
    return bool(found["done"])


async def _train(training: Training, threads: int, row: int) -> None:
    """Train, with a progress bar *row* lines below the cursor."""
    settings = {"done": False, "arguments": list(training.arguments)}
    training.folder.mkdir(parents=True, exist_ok=True)
    write_json(training.folder / _SETTINGS, settings)
    tqdm.write(shlex.join([COMMAND, *training.arguments]))
    bar = {"unit": training.unit, "bar_format": _UNITS[training.unit][1], "position": row}
    with tqdm(total=training.end, desc=training.description, **bar) as progress:
        await _run(training, threads, progress)
    write_json(training.folder / _SETTINGS, {**settings, "done": True})


async def _run(training: Training, threads: int, progress: tqdm) -> None:
    command = [str(Path(sys.executable).with_name(COMMAND)), *training.arguments]
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    last_lines: deque[str] = deque(maxlen=_LINES_ON_FAILURE)
    pipes = {"stdout": PIPE, "stderr": STDOUT, "limit": _LONGEST_LINE}
    process = await asyncio.create_subprocess_exec(
        *command, **pipes, env=environment, preexec_fn=terminated_with_parent()
    )
    assert process.stdout is not None
    try:
        # By line: the log is whole, whatever ends this.
        with training.log.open("a", encoding="utf-8", buffering=1) as log:
            async for data in process.stdout:
                line = data.decode(errors="replace")
                log.write(line)
                last_lines.append(line)
                for kind, values in _logged([line]):
                    if kind == "train_inner":
                        done = int(values[_UNITS[training.unit][0]])
                        if not progress.n:
                            progress.initial = progress.n = done  # a resumed run did these before
                        progress.update(done - progress.n)
                        progress.set_postfix_str(f"loss {float(values['loss']):.3f}")
        code = await process.wait()
    finally:
        await _end(process)
    if code != 0:
        sys.stderr.writelines(last_lines)
        raise UserError(f"{COMMAND} failed (exit code {code}); everything it printed is in {training.log}")
    progress.update(training.end - progress.n)  # the last updates may be fewer than are logged at a time


async def _end(process: Process) -> None:
    """Terminate a process that has not ended, wait for its end, and kill it if that takes too long."""
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.terminate()
    end = asyncio.create_task(process.wait())
    try:
        await asyncio.wait([end], timeout=_GRACE_S)
    finally:  # also when interrupted a second time
        if process.returncode is None:
            process.kill()
            await end


def read_losses(log: Path) -> dict[str, list[tuple[float, float]]]:
    """Read the losses in a log of fairseq in JSON.

    Returns:
        ``training`` and ``validation``, each a list of (update, loss) by update. If an update was run twice, because
        the run was resumed from before it, the later loss counts.
    """
    losses: dict[str, dict[float, float]] = {name: {} for name, _ in _SERIES.values()}
    with log.open(encoding="utf-8") as lines:
        for kind, values in _logged(lines):
            name, prefix = _SERIES[kind]
            losses[name][float(values[f"{prefix}num_updates"])] = float(values[f"{prefix}loss"])
    return {name: sorted(points.items()) for name, points in losses.items()}


def _logged(lines: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the kind and the values of each line that reports on training or validation."""
    for line in lines:
        if match := _LOG_LINE.search(line.rstrip()):
            yield match[1], json.loads(match[2])


def available_cpus() -> int:
    """Count the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
