"""``fairseq-hydra-train`` in processes of its own: progress bars while they run, and the losses that they logged."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from amae_plugin.errors import UserError
from amae_plugin.files import write_json
from amae_plugin.processes import available_cpus, signals_held_back, terminated_with_parent
from amae_plugin.progress import tqdm
from amae_plugin.recipes import override

COMMAND = "fairseq-hydra-train"
_LOG_LINE = re.compile(r"\[(train_inner|valid|probe)\]\[INFO\] - (\{.*\})$")
_LINES_ON_FAILURE = 30
_POLL_S = 0.2
_GRACE_S = 30.0
"""Seconds for a training that is terminated to finish its update and to write a checkpoint."""
_SETTINGS = "settings.json"
_UNITS = {
    "update": ("num_updates", "updates", None),
    "s": ("wall", "seconds", "{l_bar}{bar}| {n_fmt}/{total_fmt} s{postfix}"),
}
"""By unit: name under which fairseq logs a run's progress, plural, and format of its bar; seconds have no rate."""
_SERIES = {"train_inner": ("training", ""), "valid": ("validation", "valid_")}
"""By kind of log line: name of its losses, and prefix of its values' names."""
_PROBE = "probe_"


@dataclass(frozen=True)
class Training:
    """A run of ``fairseq-hydra-train``.

    Attributes:
        description: title of the progress bar.
        arguments: arguments of the command; the run must log in JSON, as this package's recipes do.
        end: length of the run in updates or, with ``unit``, in seconds.
        folder: folder of the run; everything that the command prints goes to ``output.log`` in it.
        unit: unit of ``end``.
        start: checkpoint whose encoder the run begins with; None if it begins with random weights.
    """

    description: str
    arguments: Sequence[str]
    end: int
    folder: Path
    unit: Literal["update", "s"] = "update"
    start: Path | None = None

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


class Probe(NamedTuple):
    """Probe of a run.

    Attributes:
        update: number of updates before it.
        seconds: seconds of training before it.
        measure: what was measured, ``accuracy`` or ``mAP``.
        value: the result, in [0, 1].
    """

    update: int
    seconds: float
    measure: str
    value: float


def complete(
    trainings: Sequence[Training], at_once: int | None = None, failures: dict[Path, UserError] | None = None
) -> None:
    """Run those trainings that are not done, several at a time.

    An interrupted training continues from its last checkpoint. If one fails or this process is interrupted or
    terminated, the others are terminated, killed if that takes them too long, and those that wait do not start. If this
    process is killed, the kernel terminates them.

    Each has a progress bar in a terminal while it runs, and a line about it stays when it is done.

    Args:
        trainings: all of them, done or not; a training has the same number of threads whichever are done.
        at_once: number of trainings at a time; as many as there are processors if None.
        failures: gets the error of each training that fails, by its folder, and the others go on; None: they end.

    Raises:
        UserError: a command failed and *failures* is None, or a folder holds a training with other settings.
    """
    at_once = at_once or available_cpus()
    # Threads of trainings that run at the same time would wait for each other, several times as long as they work.
    threads = max(1, available_cpus() // max(1, min(at_once, len(trainings))))
    waiting = deque(training for training in trainings if not is_done(training))
    running = list[_Running]()
    with signals_held_back() as received:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    running.append(_Running(waiting.popleft(), threads))
                time.sleep(_POLL_S)
                if received:  # whatever ends at this moment is not done
                    break
                running = [one for one in running if not one.has_ended(failures)]
        finally:
            _end([one.process for one in running], received)
            for one in running:
                one.hide()


def is_done(training: Training) -> bool:
    """Tell whether a training has run to its end.

    Raises:
        UserError: its folder holds one with other settings, or one that began with an encoder that is gone.
    """
    settings = training.folder / _SETTINGS
    if not settings.exists():
        return False
    found = json.loads(settings.read_text())
    if found["arguments"] != list(training.arguments):
        raise UserError(f"{training.folder} holds a training with other settings: delete it to train anew")
    if found.get("start", of_start := _time_of(training.start)) != of_start:
        raise UserError(f"{training.folder} holds a training of another encoder than {training.start}: delete it, too")
    return bool(found["done"])


class _Running:
    """A training that runs, with a progress bar."""

    def __init__(self, training: Training, threads: int):
        self.training = training
        self._postfix = dict[str, str]()
        training.folder.mkdir(parents=True, exist_ok=True)
        self._note(done=False)
        tqdm.write(shlex.join([COMMAND, *training.arguments]))
        command = [str(Path(sys.executable).with_name(COMMAND)), *training.arguments]
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        # Not through a pipe: a training whose starter was killed could not write on, and so not save its state.
        with training.log.open("ab") as log:
            self._read = self._begin = log.tell()
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, preexec_fn=terminated_with_parent()
            )
        self._key, self._units, form = _UNITS[training.unit]
        self._start = time.monotonic()
        bar: dict[str, Any] = {"total": training.end, "desc": training.description, "unit": training.unit}
        self._progress = tqdm(bar_format=form, leave=False, **bar)

    def has_ended(self, failures: dict[Path, UserError] | None) -> bool:
        """Show the progress, and tell whether the training is done or its failure has been noted.

        Raises:
            UserError: it failed, and *failures* is None.
        """
        code = self.process.poll()  # before reading: after the end, what can be read is all
        with self.training.log.open("rb") as log:
            log.seek(self._read)
            lines = log.read().rpartition(b"\n")[0]
        self._read += len(lines)
        for kind, values in _logged(lines.decode(errors="replace").splitlines()):
            if kind == "probe":
                self._postfix["k-NN"] = f"{_read_probe(values).value:.1%}"
            if kind == "train_inner":
                done = int(values[self._key])
                if not self._progress.n:
                    self._progress.initial = self._progress.n = done  # a resumed run did these before
                self._progress.update(done - self._progress.n)
                self._postfix["loss"] = f"{float(values['loss']):.3f}"
                self._progress.set_postfix_str(self._figures)
        if code is None:
            return False
        if code != 0:
            printed = self.training.log.read_bytes()[self._begin :].decode(errors="replace").splitlines()
            tqdm.write("\n".join(printed[-_LINES_ON_FAILURE:]), file=sys.stderr)
            error = UserError(f"{COMMAND} failed (exit code {code}); everything it printed is in {self.training.log}")
            self.hide()
            if failures is None:
                raise error
            failures[self.training.folder] = error
            return True
        self.hide()
        self._note(done=True)
        length = f"{self.training.end:,} {self._units}"
        took = f"done in {time.monotonic() - self._start:.0f} s"
        tqdm.write(", ".join(filter(None, (f"{self.training.description}: {length}", self._figures, took))))
        return True

    @property
    def _figures(self) -> str:
        return ", ".join(map(" ".join, self._postfix.items()))

    def hide(self) -> None:
        """Take the bar away."""
        self._progress.clear()  # unlike `close`, this leaves the cursor at the beginning of its line
        self._progress.close()

    def _note(self, done: bool) -> None:
        start = _time_of(self.training.start)
        settings = {"done": done, "arguments": list(self.training.arguments), "start": start}
        write_json(self.training.folder / _SETTINGS, settings)


def _time_of(checkpoint: Path | None) -> int | None:
    """Return when a checkpoint was written, in nanoseconds; None if there is none."""
    return checkpoint.stat().st_mtime_ns if checkpoint is not None and checkpoint.exists() else None


def _end(processes: Sequence[subprocess.Popen[bytes]], received: Sequence[int]) -> None:
    """Terminate processes, and kill those that take too long to end, or longer than until a second signal."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _GRACE_S
    while any(process.poll() is None for process in processes):
        if time.monotonic() > deadline or len(received) > 1:
            for process in processes:
                process.kill()
        time.sleep(_POLL_S / 10)


def read_losses(log: Path) -> dict[str, list[tuple[float, float]]]:
    """Read the losses in a log of fairseq in JSON.

    Returns:
        ``training`` and ``validation``, each a list of (update, loss) by update. If an update was run twice, because
        the run was resumed from before it, the later loss counts.
    """
    losses: dict[str, dict[float, float]] = {name: {} for name, _ in _SERIES.values()}
    with log.open(encoding="utf-8", errors="replace") as lines:
        for kind, values in _logged(lines):
            if kind in _SERIES:
                name, prefix = _SERIES[kind]
                losses[name][float(values[f"{prefix}num_updates"])] = float(values[f"{prefix}loss"])
    return {name: sorted(points.items()) for name, points in losses.items()}


def read_probes(log: Path) -> list[Probe]:
    """Read the probes of a pretraining in its log, by update; those that a resumed run made anew count once."""
    probes: list[Probe] = []
    with log.open(encoding="utf-8", errors="replace") as lines:
        for kind, values in _logged(lines):
            if kind == "probe":
                latest = _read_probe(values)
                probes = [*(probe for probe in probes if probe.update < latest.update), latest]
    return probes


def _read_probe(values: dict[str, str]) -> Probe:
    rest = {name.removeprefix(_PROBE): value for name, value in values.items() if name.startswith(_PROBE)}
    update, seconds = int(rest.pop("num_updates")), float(rest.pop("seconds"))
    ((measure, value),) = rest.items()
    return Probe(update, seconds, measure, float(value))


def _logged(lines: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the kind and the values of each line that reports on training, validation or a probe."""
    for line in lines:
        if match := _LOG_LINE.search(line.rstrip()):
            yield match[1], json.loads(match[2])
