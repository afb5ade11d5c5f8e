from __future__ import annotations

import math
import os
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import amae_plugin
from amae_plugin.cli.main import main
from amae_plugin.cluster.submission import find_jobs, run_task, submit, take_snapshot
from amae_plugin.errors import UserError


def test_snapshot_holds_the_package_and_the_recipes_as_they_were(tmp_path: Path) -> None:
    recipes = tmp_path / "config"
    recipes.mkdir()
    (recipes / "recipe.yaml").write_text("as submitted")
    first = take_snapshot(tmp_path / "run", recipes)
    (recipes / "recipe.yaml").write_text("changed since")
    second = take_snapshot(tmp_path / "run", recipes)
    assert (first / "config" / "recipe.yaml").read_text() == "as submitted"
    assert (second / "config" / "recipe.yaml").read_text() == "changed since"
    package = Path(amae_plugin.__file__).parent
    copied = first / "code" / "amae_plugin"
    files = (path for path in package.rglob("*") if path.is_file() and path.parent.name != "__pycache__")
    sources = sorted(path.relative_to(package) for path in files)
    assert sorted(path.relative_to(copied) for path in copied.rglob("*") if path.is_file()) == sources
    assert all((copied / path).read_bytes() == (package / path).read_bytes() for path in sources)


def submit_one(folder: Path, **settings: object) -> None:
    ours = {
        "devices_per_node": 8,
        "tasks_per_node": 8,
        "cpus_per_device": 1,
        "setup": [],
        "srun_args": [],
        "sbatch": {},
    }
    submit([partial(float, 1)], folder, folder, **{**ours, **settings})


def test_layout_that_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tasks_per_node=4: must be 1 .* or hydra\.launcher\.devices_per_node=8"):
        submit_one(tmp_path, tasks_per_node=4)


def test_submitting_without_slurm(tmp_path: Path, command: Callable[[str, str], None]) -> None:
    with pytest.raises(UserError, match='Could not detect "srun"'):
        submit_one(tmp_path)


def test_misspelt_setting_is_refused_with_those_that_exist(tmp_path: Path, command: Callable[[str, str], None]) -> None:
    command("srun", "")
    with pytest.raises(UserError, match=r"Unknown argument 'partiton' .* Valid arguments: .*\bpartition\b"):
        submit_one(tmp_path, partiton="gpu")


def test_refusal_of_slurm_is_passed_on(tmp_path: Path, command: Callable[[str, str], None]) -> None:
    command("srun", "")
    command("sbatch", "echo 'sbatch: error: invalid partition specified: gpus' >&2; exit 1")
    with pytest.raises(UserError, match=r"SLURM does not take the job: .*invalid partition specified: gpus"):
        submit_one(tmp_path, partition="gpus")


@pytest.mark.parametrize("reason", ["PartitionConfig", "PartitionNodeLimit", "PartitionTimeLimit", "QOSMaxNodePerJob"])
def test_size_that_the_partition_never_has_is_refused(
    tmp_path: Path, command: Callable[[str, str], None], reason: str
) -> None:
    command("srun", "")
    command("sbatch", "echo 'Submitted batch job 12'")
    command("squeue", f"echo '12|PENDING||{reason}|0'")
    command("scancel", f"echo $* >> '{tmp_path}/cancelled'")
    with pytest.raises(UserError, match=rf"never start a job of 3 nodes of 8 CPUs \(SLURM's {reason}\)"):
        submit_one(tmp_path, nodes=3)
    assert (tmp_path / "cancelled").read_text() == "12\n"
    assert not (tmp_path / "12").exists()


@pytest.mark.parametrize("reason", ["Resources", "ReqNodeNotAvail, UnavailableNodes:n2", "PartitionDown", "BeginTime"])
def test_job_that_has_to_wait_waits(tmp_path: Path, command: Callable[[str, str], None], reason: str) -> None:
    command("srun", "")
    command("sbatch", "echo 'Submitted batch job 12'")
    command("squeue", f"echo '12|PENDING||{reason}|0'")
    submit_one(tmp_path)
    assert [job.name for job in tmp_path.glob("12")] == ["12"]


@pytest.mark.parametrize("name", ["50%", "a:b", "a\\b"])
def test_folder_whose_name_slurm_would_change_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="choose another folder"):
        submit_one(tmp_path / name)


def test_job_is_not_taken_for_cancelled_while_slurm_does_not_answer(
    tmp_path: Path, command: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "slurm" / "12").mkdir(parents=True)
    (tmp_path / "slurm" / "12" / "12_submitted.pkl").touch()
    command("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    command("sacct", "exit 1")
    assert main(["slurm", "cancel", str(tmp_path)]) == 2
    assert "SLURM does not answer, so job 12 is not cancelled" in capsys.readouterr().err
    command("squeue", "echo '12|COMPLETED|n1||0'")
    assert main(["slurm", "cancel", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "nothing to cancel: 12 COMPLETED\n"


class Tasks:
    """A submitted job of a run in a folder, whose tasks this process plays."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.patch = monkeypatch
        self.folder = folder / "slurm" / "12"
        self.folder.mkdir(parents=True)
        (self.folder / "12_submitted.pkl").touch()
        for name, value in {"SUBMITIT_EXECUTOR": "slurm", "SUBMITIT_FOLDER": self.folder, "SLURM_JOB_ID": 12}.items():
            monkeypatch.setenv(name, str(value))

    def succeed(self, task: int, result: float | None) -> None:
        self.patch.setenv("SLURM_PROCID", str(task))
        run_task(lambda: result)

    def fail(self, task: int, error: BaseException) -> None:
        def job() -> None:
            raise error

        self.patch.setenv("SLURM_PROCID", str(task))
        with pytest.raises(type(error)):
            run_task(job)


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tasks:
    return Tasks(tmp_path, monkeypatch)


@pytest.mark.parametrize("result", [0.25, math.inf, None])
def test_result_is_that_of_rank_0(tmp_path: Path, tasks: Tasks, result: float | None) -> None:
    tasks.succeed(1, 2.0)
    tasks.succeed(0, result)
    (job,) = find_jobs(tmp_path)
    assert job.outcome("COMPLETED") == (result, "")


def test_error_is_that_of_the_task_that_failed_first(tmp_path: Path, tasks: Tasks) -> None:
    tasks.succeed(0, 1.0)
    tasks.fail(1, ValueError("broken pipe"))
    tasks.fail(2, ValueError("broken clip"))
    for task, seconds in ((1, 200), (2, 100)):
        os.utime(tasks.folder / f"12_{task}_result.json", (seconds, seconds))
    result, error = find_jobs(tmp_path)[0].outcome("FAILED")
    assert result is None
    assert error.startswith("job 12 (FAILED): task 2 failed first:\nTraceback (most recent call last)")
    assert "broken clip" in error and error.endswith(f"Its log: {tasks.folder / '12_2_log.out'}")


def test_job_that_ended_without_a_word_is_told_by_the_end_of_its_log(tmp_path: Path, tasks: Tasks) -> None:
    (tasks.folder / "12_0_log.out").write_text("".join(f"line {line}\n" for line in range(100)))
    _, error = find_jobs(tmp_path)[0].outcome("TIMEOUT")
    assert "job 12 ended (TIMEOUT) without a result" in error
    assert error.endswith("line 98\nline 99\n") and "line 59" not in error and "line 60" in error


def test_job_that_starts_again_forgets_how_its_earlier_start_ended(tmp_path: Path, tasks: Tasks) -> None:
    tasks.fail(0, ConnectionError("the other node is lost"))
    tasks.fail(0, SystemExit(75))
    _, error = find_jobs(tmp_path)[0].outcome("CANCELLED")
    assert "ended (CANCELLED) without a result" in error


class Attack:
    """Unpickled, leaves a file."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


def test_status_and_logs_open_no_pickle(
    tmp_path: Path, tasks: Tasks, command: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    command("squeue", "echo '12|COMPLETED|n1|None|0'")
    (tasks.folder / "12_0_log.out").write_text("trained\n")
    trace = tmp_path / "unpickled"
    for name in ("12_submitted.pkl", "12_0_result.pkl"):
        (tasks.folder / name).write_bytes(pickle.dumps(Attack(trace)))
    assert main(["slurm", "status", str(tmp_path)]) == 1
    assert "12  COMPLETED  n1\njob 12 ended (COMPLETED) without a result" in capsys.readouterr().out
    tasks.succeed(0, 0.5)
    assert main(["slurm", "status", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "12  COMPLETED  n1  result 0.5\n"
    assert main(["slurm", "logs", "--follow", str(tmp_path)]) == 0
    assert not trace.exists()
    pickle.loads((tasks.folder / "12_0_result.pkl").read_bytes())
    assert trace.exists()


@pytest.mark.parametrize(
    "content", ["", "[]", "7", '{"task": "x"}', '{"task": 0, "error": 1}', '{"task": 0, "result": "x"}']
)
def test_outcome_that_is_none_is_a_message(
    tmp_path: Path,
    command: Callable[[str, str], None],
    tasks: Tasks,
    content: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command("squeue", "echo '12|COMPLETED|n1|None|0'")
    (tasks.folder / "--all_submitted.pkl").touch()  # not the number of a job, and an option of scancel
    (tasks.folder / "12_0_result.json").write_text(content)
    assert main(["slurm", "status", str(tmp_path)]) == 2
    assert "12_0_result.json: not the outcome of a task" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["status", "logs", "cancel"])
def test_folder_without_jobs(tmp_path: Path, action: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slurm", action, str(tmp_path)]) == 2
    assert f"{tmp_path}: no job was submitted for this folder" in capsys.readouterr().err


def test_submitting_without_saying_what_to_ask_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slurm", "submit", "--config-name", "pretrain_audio_mae_tiny", "task.data=data"]) == 2
    assert "run_config=slurm_1x8" in capsys.readouterr().err
