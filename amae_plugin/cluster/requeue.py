"""Putting a job back into the queue."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping

from amae_plugin.errors import UserError


def requeue(environment: Mapping[str, str], limit: int) -> None:
    """Have SLURM end the job of this process and start it again later.

    Args:
        environment: of the process.
        limit: how often the job may be started again.

    Raises:
        UserError: that was done before, the job is being cancelled, or SLURM refuses; the message completes
            "not requeued: ".
    """
    job, restarts = environment["SLURM_JOB_ID"], int(environment.get("SLURM_RESTART_COUNT", 0))
    if restarts >= limit:
        raise UserError(f"it was started again {restarts} times already (hydra.launcher.requeues={limit})")
    state = _run("squeue", "--noheader", "--job", job, "--format=%T")
    if state != "RUNNING":
        raise UserError(f"the job is {state or 'gone'}")
    _run("scontrol", "requeue", job)


def _run(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    except subprocess.CalledProcessError as error:
        raise UserError(f"{' '.join(command)}: {error.stderr.strip()}") from None
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"{' '.join(command)}: {error}") from None
