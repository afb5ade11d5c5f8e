"""Jobs of SLURM through submitit: submit them, watch them, and tell how they ended."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import JobPaths, pickle_load
from tqdm import tqdm

from amae_plugin.cluster.snapshot import Snapshot
from amae_plugin.errors import UserError

FOLDER = "slurm"
"""Within the folder of a run or a sweep: snapshots, and a subfolder a job with submitit's files and the logs."""
_UNREACHABLE = "UNREACHABLE"
_GOING = {
    _UNREACHABLE,
    "PENDING",
    "CONFIGURING",
    "RUNNING",
    "COMPLETING",
    "REQUEUED",
    "RESIZING",
    "SUSPENDED",
    "STAGE_OUT",
}
_SQUEUE_FIELDS = "JobArrayID:|,State:|,Reason:|,NodeList:|,RestartCnt:|"
_LOG_LINES = 40


@dataclass(frozen=True)
class Resources:
    """What a job asks for: the settings of ``config/hydra/launcher/slurm.yaml``, which explains them.

    ``requeues`` is not SLURM's: the job looks at it itself.
    """

    name: str
    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    timeout_min: int
    nodes: int
    devices_per_node: int
    tasks_per_node: int
    gpus_per_node: int | None
    cpus_per_device: int
    mem_gb: float | None
    requeues: int
    signal_delay_s: int
    array_parallelism: int
    setup: Sequence[str]
    srun_args: Sequence[str]
    sbatch: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.tasks_per_node not in (1, self.devices_per_node):
            raise UserError(
                f"hydra.launcher.tasks_per_node={self.tasks_per_node}: must be 1 (a task that starts the processes of "
                f"its node) or hydra.launcher.devices_per_node={self.devices_per_node} (a task a process)"
            )

    def executor(self, folder: Path, snapshot: Snapshot) -> submitit.AutoExecutor:
        """submitit's executor for jobs that run the snapshot's code and log to a subfolder of *folder*."""
        try:
            executor = submitit.AutoExecutor(folder / "%j", cluster="slurm")
        except RuntimeError as error:
            raise UserError(f"no SLURM here: {error}") from None
        cpus = self.cpus_per_device * self.devices_per_node // self.tasks_per_node
        executor.update_parameters(
            name=self.name,
            timeout_min=self.timeout_min,
            nodes=self.nodes,
            tasks_per_node=self.tasks_per_node,
            cpus_per_task=cpus,
            stderr_to_stdout=True,
            slurm_signal_delay_s=self.signal_delay_s,
            slurm_array_parallelism=self.array_parallelism,
            slurm_setup=[
                f"export PYTHONPATH={shlex.quote(str(snapshot.code))}${{PYTHONPATH:+:$PYTHONPATH}}",
                *self.setup,
            ],
            # One dead rank ends all. srun does not take over the job's --cpus-per-task.
            slurm_srun_args=["--kill-on-bad-exit=1", f"--cpus-per-task={cpus}", *self.srun_args],
            slurm_additional_parameters={"requeue": True, **self.sbatch},
            **{
                name: value
                for name, value in {
                    "gpus_per_node": self.gpus_per_node,
                    "mem_gb": self.mem_gb,
                    "slurm_partition": self.partition,
                    "slurm_account": self.account,
                    "slurm_qos": self.qos,
                    "slurm_constraint": self.constraint,
                }.items()
                if value is not None
            },
        )
        return executor

    def submit(self, jobs: Sequence[Callable[[], Any]], folder: Path, snapshot: Snapshot) -> list[SubmittedJob]:
        """Submit callables; several as one job array.

        Raises:
            UserError: SLURM refuses.
        """
        executor = self.executor(folder, snapshot)
        try:
            with executor.batch():
                submitted = [executor.submit(job) for job in jobs]
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise UserError(f"SLURM does not take the job: {error}") from None
        return [SubmittedJob(job.job_id, folder) for job in submitted]


@dataclass(frozen=True)
class SubmittedJob:
    """A job, found again by its number and the folder it was submitted with."""

    id: str
    folder: Path

    @property
    def _tasks(self) -> list[int]:
        """Tasks that have left a log."""
        logs = self.paths(0).folder.glob(f"{self.id}_*_log.out")
        return sorted(int(path.name.removeprefix(f"{self.id}_").split("_")[0]) for path in logs)

    def paths(self, task: int) -> JobPaths:
        """Of a task's log and result; the first task's log also holds what srun says."""
        return JobPaths(self.folder / "%j", job_id=self.id, task_id=task)

    def _outcomes(self) -> list[tuple[float, int, str, Any]]:
        """Of each task that has left one, in the order of time: when, task, ``success`` or ``error``, value."""
        found = []
        for task in self._tasks:
            path = self.paths(task).result_pickle
            if path.exists():
                kind, value = pickle_load(path)
                found.append((path.stat().st_mtime, task, kind, value))
        return sorted(found, key=lambda outcome: outcome[:2])

    def result(self, state: str) -> Any:
        """What rank 0 returned.

        Args:
            state: of the job, which has ended.

        Raises:
            JobFailed: the job did not complete; with the traceback of the task that failed first.
        """
        outcomes = self._outcomes()
        returned = [value for _, task, kind, value in outcomes if (task, kind) == (0, "success")]
        if state in ("COMPLETED", "UNKNOWN") and returned:
            return returned[0]
        for _, task, kind, value in outcomes:
            if kind == "error":
                log = self.paths(task).stdout
                raise JobFailed(f"job {self.id} ({state}): task {task} failed first:\n{value}\nIts log: {log}")
        log = self.paths(0).stdout
        end = "".join(log.open(errors="replace").readlines()[-_LOG_LINES:]) if log.exists() else ""
        raise JobFailed(f"job {self.id} ended ({state}) without a result. The end of {log}:\n{end}")


class JobFailed(Exception):  # noqa: N818
    """A job has ended without a result; the message holds its error."""


@dataclass(frozen=True)
class JobState:
    """What SLURM says of a job.

    Attributes:
        name: of its state; UNKNOWN if it has forgotten the job, UNREACHABLE if it does not answer.
        reason: why it waits.
        nodes: where it runs or ran.
        restarts: how often it was started again.
    """

    name: str = "UNKNOWN"
    reason: str = ""
    nodes: str = ""
    restarts: str = ""

    @property
    def going(self) -> bool:
        """Whether the job waits or runs."""
        return self.name in _GOING

    def __str__(self) -> str:
        restarts = f"started again {self.restarts} times" if self.restarts not in ("", "0") else ""
        return "  ".join(part for part in (self.name, self.nodes, self.reason, restarts) if part)


def states(jobs: Iterable[str]) -> dict[str, JobState]:
    """The states of jobs. Without SLURM's accounting it forgets those that ended some minutes ago."""
    jobs = list(jobs)
    unknown = JobState()
    numbers = ",".join(sorted({job.split("_")[0] for job in jobs}))
    found: dict[str, JobState] = {}
    for command in (
        ["squeue", "--noheader", "--array", "--states=all", f"--jobs={numbers}", "--Format=" + _SQUEUE_FIELDS],
        ["sacct", "--noheader", "--allocations", "--parsable2", f"--jobs={numbers}", "--format=JobID,State,NodeList"],
    ):
        if any(job not in found for job in jobs):
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            except OSError as error:
                raise UserError(f"no SLURM here: {error}") from None
            if command[0] == "squeue" and done.returncode and "Invalid job id" not in done.stderr:
                unknown = JobState(_UNREACHABLE, done.stderr.strip())
            for line in done.stdout.splitlines():
                job, name, *rest = (part.strip() for part in line.split("|"))
                if command[0] == "sacct":
                    rest = ["", rest[0]]
                # "CANCELLED by 0"; "None" where there is no reason
                found.setdefault(job, JobState(name.split()[0], *(part.replace("None", "") for part in rest[:3])))
    return {job: found.get(job, unknown) for job in jobs}


def find_jobs(folder: Path) -> list[SubmittedJob]:
    """The jobs that were submitted for the folder of a run or of a sweep, in the order of their numbers.

    Raises:
        UserError: there are none.
    """
    found = {}
    for path in (folder / FOLDER).glob("*/*_submitted.pkl"):
        id = path.name.removesuffix("_submitted.pkl")
        found[tuple(map(int, id.split("_")))] = SubmittedJob(id, folder.absolute() / FOLDER)
    if not found:
        raise UserError(f"{folder}: no job was submitted for this folder; it holds no {FOLDER}/<job>")
    return [found[number] for number in sorted(found)]


def wait(jobs: Sequence[SubmittedJob], poll_s: float) -> list[Any]:
    """Wait until all jobs have ended, through all requeueings; what they returned. Interrupted, the jobs go on.

    Raises:
        JobFailed: some did not; with the errors of all of them.
    """
    ended: dict[str, str] = {}
    with tqdm(total=len(jobs), desc="jobs", unit="job") as bar:
        while len(ended) < len(jobs):
            time.sleep(poll_s)
            current = states([job.id for job in jobs if job.id not in ended])
            ended.update({job: state.name for job, state in current.items() if not state.going})
            bar.set_postfix_str(", ".join(f"{job} {state.name}" for job, state in list(current.items())[:4]))
            bar.update(len(ended) - bar.n)
    results, errors = [], []
    for job in jobs:
        try:
            results.append(job.result(ended[job.id]))
        except JobFailed as error:
            errors.append(str(error))
    if errors:
        raise JobFailed("\n\n".join(errors))
    return results
