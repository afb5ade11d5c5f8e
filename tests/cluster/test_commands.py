from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from amae_plugin.cluster.commands import JobState, job_states, requeue
from amae_plugin.errors import UserError

NO_ACCOUNTING = "echo 'Slurm accounting storage is disabled' >&2; exit 1"


def test_states_of_an_array_are_from_the_queue_and_then_from_accounting(command: Callable[[str, str], None]) -> None:
    queue = "12_0|PENDING||Resources|0       \n12_1|RUNNING|n[1-2]|None|2"
    command("squeue", f"""[ "$4" = --jobs=12,3 ] && printf '{queue}'""")
    command("sacct", "printf '3|CANCELLED by 0|None assigned\n4|FAILED|n1'")
    states = job_states(["3", "12_0", "12_1"])
    assert {job: str(state) for job, state in states.items()} == {
        "3": "CANCELLED",
        "12_0": "PENDING  Resources",
        "12_1": "RUNNING  n[1-2]  started again 2 times",
    }
    assert [state.ended for state in states.values()] == [True, False, False]


def test_job_that_slurm_has_forgotten_has_ended(command: Callable[[str, str], None]) -> None:
    command("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    command("sacct", NO_ACCOUNTING)
    assert job_states(["3"]) == {"3": JobState("UNKNOWN")}
    assert JobState("UNKNOWN").ended


def test_job_is_not_given_up_while_slurm_does_not_answer(command: Callable[[str, str], None]) -> None:
    command("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    command("sacct", NO_ACCOUNTING)
    (state,) = job_states(["3"]).values()
    assert not state.ended
    assert str(state).startswith("UNREACHABLE") and "Unable to contact slurm controller" in str(state)


@pytest.mark.parametrize(
    "state", ["PENDING", "CONFIGURING", "RUNNING", "SIGNALING", "COMPLETING", "REQUEUED", "STOPPED"]
)
def test_job_that_passes_through_a_state_has_not_ended(state: str) -> None:
    assert not JobState(state).ended


@pytest.mark.parametrize(
    ("state", "refused"), [("RUNNING", False), ("SIGNALING", False), ("COMPLETING", True), ("", True)]
)
def test_job_is_requeued_while_slurm_tells_it_to_end(
    command: Callable[[str, str], None], state: str, refused: bool
) -> None:
    command("squeue", f"echo {state}")
    command("scontrol", '[ "$*" = "requeue 3" ]')
    with pytest.raises(UserError, match=f"the job is {state or 'gone'}") if refused else contextlib.nullcontext():
        requeue({"SLURM_JOB_ID": "3"}, limit=1)


def test_machine_without_slurm(command: Callable[[str, str], None]) -> None:
    with pytest.raises(UserError, match=r"no SLURM here: .*'squeue'"):
        job_states(["3"])
