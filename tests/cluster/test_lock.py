from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from amae_plugin.cluster.lock import RunLock, is_in_use
from amae_plugin.errors import UserError

HOLD = """
import sys, time
from pathlib import Path
from amae_plugin.cluster.lock import RunLock
folder, job, restart = sys.argv[1:]
lock = RunLock(Path(folder), job or None, int(restart))
with lock.held():
    print("held", flush=True)
    while True:
        time.sleep(0.01)
        lock.check()
"""


def hold(folder: Path, job: str, restart: int) -> subprocess.Popen[str]:
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), job, str(restart)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize(("job", "holder"), [("7", "job 7, start 0, process "), ("", "a run outside SLURM, process ")])
def test_second_run_is_refused_until_the_first_is_gone_however(tmp_path: Path, job: str, holder: str) -> None:
    assert not is_in_use(tmp_path)
    first = hold(tmp_path, job, 0)
    assert is_in_use(tmp_path)
    with pytest.raises(UserError, match=f"is in use by {holder}{first.pid} on "), RunLock(tmp_path, "8", 0).held():
        pass
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not is_in_use(tmp_path)
    with RunLock(tmp_path, "8", 0).held():
        pass


def test_job_that_is_started_again_takes_over_from_its_former_self(tmp_path: Path) -> None:
    former = hold(tmp_path, "7", 0)
    with RunLock(tmp_path, "7", 1).held():
        assert former.wait() == 1
        assert former.stderr is not None
        assert "SLURM started job 7 again elsewhere; this start of it ends" in former.stderr.read()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_former_self_that_does_not_react_is_waited_for_only_so_long(tmp_path: Path) -> None:
    former = hold(tmp_path, "7", 0)
    former.send_signal(signal.SIGSTOP)
    with pytest.raises(UserError, match="is in use by job 7, start 0"), RunLock(tmp_path, "7", 1).held(patience_s=1):
        pass
    former.kill()
    former.wait()
