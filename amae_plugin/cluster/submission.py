"""Training runs as SLURM jobs, through submitit: submitting them, finding them again, and their outcomes."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import submitit

from amae_plugin.cluster.commands import cancel, job_states
from amae_plugin.errors import UserError
from amae_plugin.files import reading, write_json
from amae_plugin.progress import tqdm

FOLDER = "slurm"
"""Subfolder of a run's or a sweep's folder; holds the snapshots, and a folder of submitit's files and logs a job."""


def take_snapshot(folder: Path, config_dir: Path | None) -> Path:
    """Copy the package and the recipes, so that a job that waits or starts again runs what was submitted.

    Returns:
        A new subfolder of *folder*, named after the time: ``code`` in it is for ``PYTHONPATH``, ``config`` for
        ``--config-dir``.
    """
    snapshot = folder / f"{datetime.now():%Y%m%d-%H%M%S-%f}"
    package = Path(__file__).parents[1]
    shutil.copytree(package, snapshot / "code" / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    if config_dir is not None:
        shutil.copytree(config_dir, snapshot / "config")
    return snapshot


def submit(
    jobs: Sequence[Callable[[], float | None]],
    folder: Path,
    code: Path,
    *,
    devices_per_node: int,
    tasks_per_node: int,
    cpus_per_device: int,
    setup: Sequence[str],
    srun_args: Sequence[str],
    sbatch: Mapping[str, str | int],
    **parameters: object,
) -> list[SubmittedJob]:
    """Submit jobs, several of them as one array.

    ``config/hydra/launcher/slurm.yaml`` explains the settings.

    Args:
        jobs: callables, each of which all tasks of its job run.
        folder: folder for submitit's files and the logs, each job's in a subfolder.
        code: folder of the package that the jobs import.
        parameters: other settings, which submitit knows by the same names.

    Raises:
        UserError: a setting is wrong, SLURM refuses or could never start a job of this size, or the folder's name holds
            what SLURM or Python take for something else.
    """
    if found := re.search(r"[%:\\\n]", str(folder)):
        reason = "replace '%' and '\\' in the names of logs, and Python divides its path at ':'"
        remedy = "choose another folder (hydra.run.dir=...)"
        raise UserError(f"{folder}: holds {found[0]!r}, but SLURM would {reason}; {remedy}")
    if tasks_per_node not in (1, devices_per_node):
        allowed = f"1 (a task a node) or hydra.launcher.devices_per_node={devices_per_node} (a task a process)"
        raise UserError(f"hydra.launcher.tasks_per_node={tasks_per_node}: must be {allowed}")
    cpus_per_task = cpus_per_device * devices_per_node // tasks_per_node
    parameters |= {
        "tasks_per_node": tasks_per_node,
        "cpus_per_task": cpus_per_task,
        "stderr_to_stdout": True,
        "setup": [f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}", *setup],
        # One dead task ends all. srun does not take over the job's --cpus-per-task.
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={cpus_per_task}", *srun_args],
        "additional_parameters": {"requeue": True, **sbatch},
    }
    try:
        executor = submitit.AutoExecutor(folder / "%j", cluster="slurm")
        executor.update_parameters(**{f"slurm_{name}": value for name, value in parameters.items()})
        with executor.batch():
            submitted = [executor.submit(run_task, job) for job in jobs]
    except (NameError, RuntimeError) as error:  # a setting that submitit does not know; no srun, or sbatch's refusal
        raise UserError(f"SLURM does not take the job: {error}") from error
    _refuse_impossible(submitted, f"{parameters.get('nodes', 1)} nodes of {tasks_per_node * cpus_per_task} CPUs")
    return [SubmittedJob(job.job_id, folder) for job in submitted]


def _refuse_impossible(jobs: Sequence[submitit.Job], size: str) -> None:
    """Cancel jobs that ask for more than their partition has: SLURM takes them, for it may grow, and lets them wait."""
    states = job_states([job.job_id for job in jobs])
    reasons = {state.reason for state in states.values() if state.impossible}
    if not reasons:
        return
    for number in {job.split("_")[0] for job in states}:
        cancel(number)
    for job in jobs:
        shutil.rmtree(job.paths.folder)
    told = f"the partition could never start a job of {size} (SLURM's {', '.join(sorted(reasons))}); it was cancelled"
    raise UserError(f"{told}; compare the settings of hydra.launcher with `scontrol show partition` and `sinfo`")


def run_task(job: Callable[[], float | None]) -> None:
    """Run a job in one of its tasks, and write the outcome as JSON beside the result that submitit pickles."""
    paths = submitit.JobEnvironment().paths
    path = paths.result_pickle.with_suffix(".json")
    path.unlink(missing_ok=True)  # an earlier start's
    try:
        result = job()
    except Exception:
        write_json(path, {"task": paths.task_id, "error": traceback.format_exc()})
        raise
    write_json(path, {"task": paths.task_id, "result": result})


class JobFailed(Exception):  # noqa: N818
    """A job ended without a result; the message holds its error."""


@dataclass(frozen=True)
class SubmittedJob:
    """A job, identified by its number and the folder that it was submitted with.

    Only text is read from that folder. submitit's pickles are not: opening one runs what its writer put there.
    """

    id: str
    folder: Path

    def log(self, task: int) -> Path:
        """Return the path of a task's log; the first task's log also holds what ``srun`` says."""
        return submitit.SlurmJob(self.folder / "%j", self.id, [task]).paths.stdout

    def outcome(self, state: str) -> tuple[float | None, str]:
        """Return rank 0's result and, of a job that did not complete, the error of the task that failed first.

        Args:
            state: name of the state in which the job ended.

        Raises:
            UserError: a file of an outcome is not one.
        """
        log = self.log(0)
        paths = sorted(log.parent.glob(f"{self.id}_*_result.json"), key=lambda path: path.stat().st_mtime)
        outcomes = [_read_outcome(path) for path in paths]
        results = [outcome["result"] for outcome in outcomes if outcome["task"] == 0 and "result" in outcome]
        if results and state in ("COMPLETED", "UNKNOWN"):
            return results[0], ""
        for outcome in outcomes:
            if "error" in outcome:
                task, error = outcome["task"], outcome["error"]
                return None, f"job {self.id} ({state}): task {task} failed first:\n{error}\nIts log: {self.log(task)}"
        end = "".join(log.open(errors="replace").readlines()[-40:]) if log.exists() else ""
        return None, f"job {self.id} ended ({state}) without a result. The end of {log}:\n{end}"


def _read_outcome(path: Path) -> dict[str, Any]:
    """Read what :func:`run_task` wrote, or what somebody else put there."""
    with reading(path, "the outcome of a task"):
        text = path.read_text(encoding="utf-8")
    try:
        outcome = json.loads(text)
        known = isinstance(outcome["task"], int)
        known &= isinstance(outcome.get("error", ""), str)
        known &= isinstance(outcome.get("result"), int | float | None)
    except (ValueError, TypeError, KeyError, AttributeError):
        known = False
    if not known:
        raise UserError(f"{path}: not the outcome of a task; remove it, and look at the log beside it")
    return outcome


def find_jobs(folder: Path) -> list[SubmittedJob]:
    """Return the jobs that were submitted for the folder of a run or a sweep, ordered by number.

    Raises:
        UserError: there are none.
    """
    names = (re.fullmatch(r"(\d+(?:_\d+)?)_submitted\.pkl", path.name) for path in (folder / FOLDER).glob("*/*.pkl"))
    ids = [name[1] for name in names if name]
    if not ids:
        raise UserError(f"{folder}: no job was submitted for this folder; it holds no {FOLDER}/<job>")
    ids.sort(key=lambda id: [int(number) for number in id.split("_")])
    return [SubmittedJob(id, folder.absolute() / FOLDER) for id in ids]


def wait(jobs: Sequence[SubmittedJob], poll_s: float) -> list[float | None]:
    """Wait until all jobs have ended, requeueings included, and return their results.

    An interruption leaves the jobs running.

    Raises:
        JobFailed: some jobs failed; with the errors of all of them.
    """
    ended: dict[str, str] = {}
    with tqdm(total=len(jobs), desc="jobs", unit="job") as bar:
        while len(ended) < len(jobs):
            time.sleep(poll_s)
            states = job_states([job.id for job in jobs if job.id not in ended])
            ended |= {job: state.name for job, state in states.items() if state.ended}
            bar.set_postfix_str(", ".join(f"{job} {state.name}" for job, state in list(states.items())[:4]))
            bar.update(len(ended) - bar.n)
    outcomes = [job.outcome(ended[job.id]) for job in jobs]
    if errors := [error for _, error in outcomes if error]:
        raise JobFailed("\n\n".join(errors))
    return [result for result, _ in outcomes]
