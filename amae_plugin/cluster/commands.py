"""SLURM's own commands: the states of jobs, requeueing, cancelling, and the addresses of nodes."""

import contextlib
import re
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from amae_plugin.errors import UserError

# All other states pass: a job is SIGNALING, say, while SLURM tells it that it is preempted.
_ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT", "UNKNOWN"),
}
_IMPOSSIBLE = re.compile(r"Partition(Config|NodeLimit|TimeLimit)\b|BadConstraints\b|\w+PerJob(Limit)?\b")
"""Reasons that no waiting mends; a node or a partition that is down or drained has others."""


class CommandFailed(UserError):  # noqa: N818
    """A command of SLURM failed or did not answer."""


@dataclass(frozen=True)
class JobState:
    """State of a job as SLURM reports it.

    Attributes:
        name: SLURM's name of the state; UNKNOWN if SLURM has forgotten the job, UNREACHABLE if SLURM does not answer.
        nodes: nodes that the job has or had.
        reason: why the job waits.
        restarts: how often SLURM has started the job again.
    """

    name: str = "UNKNOWN"
    nodes: str = ""
    reason: str = ""
    restarts: str = "0"

    @property
    def impossible(self) -> bool:
        """Whether the job waits for what its partition does not have or does not allow."""
        return self.name == "PENDING" and bool(_IMPOSSIBLE.match(self.reason))

    @property
    def ended(self) -> bool:
        """Whether the job neither waits nor runs."""
        return self.name in _ENDED

    def __str__(self) -> str:
        restarts = "" if self.restarts == "0" else f"started again {self.restarts} times"
        return "  ".join(part for part in (self.name, self.nodes, self.reason, restarts) if part)


def job_states(jobs: Collection[str]) -> dict[str, JobState]:
    """Return the states of jobs. Without accounting, SLURM forgets a job some minutes after its end."""
    numbers = f"--jobs={','.join(sorted({job.split('_')[0] for job in jobs}))}"
    columns = "--Format=JobArrayID:|,State:|,NodeList:|,Reason:|,RestartCnt"
    found, missing = {}, JobState()
    try:
        found = _parse_states(_run("squeue", "--noheader", "--array", "--states=all", numbers, columns))
    except CommandFailed as error:
        if "Invalid job id" not in str(error):
            missing = JobState("UNREACHABLE", reason=str(error))
    if not found.keys() >= set(jobs):
        columns = "--format=JobID,State,NodeList"
        with contextlib.suppress(CommandFailed):  # a cluster without accounting
            found = _parse_states(_run("sacct", "--noheader", "--allocations", "--parsable2", numbers, columns)) | found
    return {job: found.get(job, missing) for job in jobs}


def _parse_states(table: str) -> dict[str, JobState]:
    """Read lines of a job, its state ("CANCELLED by 0" is one), and as many of the other columns as there are."""
    lines = re.sub("None( assigned)?", "", table).splitlines()
    rows = ([column.strip() for column in line.split("|")] for line in lines)
    return {job: JobState(state.split()[0], *others) for job, state, *others in rows}


def cancel(job: str) -> None:
    """Have SLURM end a job for good."""
    _run("scancel", job)


def requeue(environment: Mapping[str, str], limit: int) -> None:
    """Have SLURM end the job of this process and start it again later.

    Args:
        environment: environment variables of the process.
        limit: how often the job may be started again.

    Raises:
        UserError: the limit is reached, the job is being cancelled, or SLURM refuses. The message completes
            "not requeued: ".
    """
    job, restarts = environment["SLURM_JOB_ID"], int(environment.get("SLURM_RESTART_COUNT", 0))
    if restarts >= limit:
        raise UserError(f"it was started again {restarts} times already (hydra.launcher.requeues={limit})")
    state = _run("squeue", "--noheader", "--job", job, "--format=%T")
    if state not in ("RUNNING", "SIGNALING"):
        raise UserError(f"the job is {state or 'gone'}")
    _run("scontrol", "requeue", job)


def node_address(node: str) -> str:
    """Return the address at which SLURM reaches a node, or the node's name where ``scontrol`` is not available."""
    with contextlib.suppress(UserError):
        if found := re.search(r"\bNodeAddr=(\S+)", _run("scontrol", "--oneliner", "show", "node", node)):
            return found[1]
    return node


def _run(*command: str) -> str:
    """Return what a command prints.

    Raises:
        CommandFailed: it failed or did not answer.
        UserError: it does not exist.
    """
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    except OSError as error:
        raise UserError(f"no SLURM here: {error}") from None
    except subprocess.CalledProcessError as error:
        raise CommandFailed(f"{' '.join(command)}: {error.stderr.strip()}") from None
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(str(error)) from None
