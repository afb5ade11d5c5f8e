"""How jobs end: nothing fails silently, nothing hangs, nothing is lost."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import PRETRAINING, ROOT, Slurm, losses, on_cpus, read

from amae_plugin.recipes import override

RECIPE = ["--config-dir", str(ROOT / "config"), "--config-name", "pretrain_audio_mae_tiny"]
AT_ONCE = 12
"""Starts of a training that a job may live on after one of its processes."""


def assert_same_losses(log: str, reference: dict[int, float]) -> None:
    """Check that all updates were made, and each time with the loss of a run that nothing happened to."""
    trained = losses(log)
    assert sorted(trained) == sorted(reference)
    for update, values in trained.items():
        assert values == pytest.approx([reference[update]] * len(values), rel=1e-5)


def test_second_run_in_the_folder_killed_rank_and_lost_node(
    slurm: Slurm, labelled: Path, reference: dict[int, float]
) -> None:
    run = [*on_cpus(2, 1), f"task.data={labelled}", override("hydra.run.dir", slurm.folder / "run")]
    two_tasks = ["--nodes=2", "--ntasks-per-node=1"]
    job, log = slurm.sbatch("task_per_gpu.sbatch", "first", two_tasks, *run)
    slurm.wait_for_update(1, job, log)
    paused = slurm.processes(job)
    for pid in paused:
        os.kill(pid, signal.SIGSTOP)
    # The same run once more, while the first holds its folder.
    one_process = [*run, "hydra.launcher.nodes=1", "dataset.batch_size=8"]
    second, second_log = slurm.sbatch(
        "task_per_gpu.sbatch", "second", ["--nodes=1", "--ntasks-per-node=1"], *one_process
    )
    assert slurm.wait_for_end(second, second_log)["JobState"] == "FAILED"
    assert f"{slurm.folder / 'run' / 'checkpoints'} is in use by job {job}, start 0" in read(second_log)
    assert slurm.job(job)["JobState"] == "RUNNING"

    # The first goes on, and one of its processes dies.
    for pid in paused:
        os.kill(pid, signal.SIGCONT)
    slurm.wait_for_update(7, job, log)
    victim = min(pid for pid, rank in slurm.processes(job).items() if rank == "1")
    os.kill(victim, signal.SIGKILL)
    state = slurm.wait_for_end(job, log, AT_ONCE)
    assert state["JobState"] == "FAILED" and state["ExitCode"] != "0:0"
    last = max(losses(read(log)))
    assert last < 40

    # The same command goes on, and one of its nodes is lost.
    again, log_again = slurm.sbatch("task_per_gpu.sbatch", "again", two_tasks, *run)
    slurm.wait_for_update(last + 1, again, log_again)
    # From the last checkpoint: three updates apart, and at the end of each epoch of five.
    assert 4 <= min(losses(read(log_again))) <= last + 1
    rank_1 = [pid for pid, rank in slurm.processes(again).items() if rank == "1"]
    for pid in rank_1:
        os.kill(pid, signal.SIGSTOP)  # the node hangs: its tasks end neither well nor badly
    slurm.cluster.lose_node("n2")
    assert slurm.cluster.node_states()["n2"].startswith("down")
    assert max(losses(read(log_again))) < 40
    for pid in rank_1:
        os.kill(pid, signal.SIGKILL)
    slurm.cluster.start_node("n2")
    assert slurm.wait_for_end(again, log_again)["JobState"] == "COMPLETED", read(log_again)
    assert slurm.job(again)["Restarts"] == "1"
    assert_same_losses(read(log) + read(log_again), reference)


def test_signal_and_preemption_requeue_and_lose_nothing(
    slurm: Slurm, labelled: Path, reference: dict[int, float]
) -> None:
    run = [*on_cpus(1, 2), f"task.data={labelled}", override("hydra.run.dir", slurm.folder / "run")]
    job, log = slurm.sbatch("task_per_node.sbatch", "job", ["--nodes=1", "--ntasks-per-node=1", "--exclusive"], *run)
    slurm.wait_for_update(4, job, log)
    # As before a time-out, but to one process of the two: both must stop after the same update.
    _, rank_1 = slurm.trainers(job)
    os.kill(rank_1, signal.SIGUSR2)
    reason = "at SIGUSR2; a checkpoint was written; requeueing the job"
    slurm.wait_for(reason, job, log)
    stopped = max(losses(read(log)))
    assert 4 <= stopped < 40
    assert f"stopped after update {stopped}, {reason}" in read(log)

    slurm.wait_for_update(stopped + 3, job, log)
    assert slurm.job(job)["Restarts"] == "1"
    urgent = slurm.command(
        *("sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null"),
        *("--wrap", "true"),
    ).stdout.strip()
    reason = "at SIGTERM; a checkpoint was written; requeueing the job"
    slurm.wait_for(reason, job, log)
    state = slurm.wait_for_end(job, log)
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "2"), read(log)
    assert slurm.job(urgent)["JobState"] == "COMPLETED"
    assert_same_losses(read(log), reference)
    # Not one update was made twice.
    assert all(len(values) == 1 for values in losses(read(log)).values())


def test_job_that_is_cancelled(slurm: Slurm, labelled: Path) -> None:
    done = slurm.command(
        *("amae", "slurm", "submit", *RECIPE, *PRETRAINING, *on_cpus(1, 1), f"task.data={labelled}"),
        *("hydra.run.dir=run", "+hydra.launcher.sbatch.begin=now+1hour"),
    )
    assert done.returncode == 0, done.stdout
    done = slurm.command("amae", "slurm", "status", "run")
    assert done.returncode == 0 and "PENDING" in done.stdout, done.stdout
    done = slurm.command("amae", "slurm", "cancel", "run")
    assert done.returncode == 0 and "cancelled" in done.stdout, done.stdout
    done = slurm.command("amae", "slurm", "status", "run")
    assert done.returncode == 1 and "CANCELLED" in done.stdout, done.stdout


def test_job_that_is_not_what_the_recipe_needs_ends_before_training(slurm: Slurm, labelled: Path) -> None:
    one = ["--nodes=1", "--ntasks-per-node=1"]
    data = [f"task.data={labelled}", override("hydra.run.dir", slurm.folder / "run")]
    gpus, gpus_log = slurm.sbatch(
        "task_per_gpu.sbatch", "gpus", one, "run_config=slurm_1x4", "dataset.batch_size=2", *data
    )
    nodes, nodes_log = slurm.sbatch("task_per_gpu.sbatch", "nodes", one, *on_cpus(2, 2), *data)
    assert slurm.wait_for_end(gpus, gpus_log)["JobState"] == "FAILED"
    assert "sees 0; ask for --gpus-per-node=4, or train on CPUs: run_config=slurm_cpu" in read(gpus_log)
    assert slurm.wait_for_end(nodes, nodes_log)["JobState"] == "FAILED"
    assert "hydra.launcher.nodes=2, but the step of job" in read(nodes_log)
    assert not (slurm.folder / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([*on_cpus(3, 1), "dataset.batch_size=3"], "never start a job of 3 nodes of 1 CPUs (SLURM's Partition"),
        (
            [*on_cpus(1, 3), "dataset.batch_size=3", "hydra.launcher.cpus_per_device=3"],
            "SLURM does not take the job: sbatch: error: CPU count per node can not be satisfied",
        ),
        ([*on_cpus(1, 3), "dataset.batch_size=4"], "is not a multiple of dataset.batch_size=4 times 3 devices"),
        (
            [*on_cpus(1, 1), "distributed_training.distributed_world_size=2"],
            "world_size=2 is not hydra.launcher.nodes=1",
        ),
    ],
)
def test_size_that_can_never_run_is_refused_at_submission(
    slurm: Slurm, labelled: Path, settings: list[str], message: str
) -> None:
    done = slurm.command(
        *(
            "amae",
            "slurm",
            "submit",
            *RECIPE,
            *PRETRAINING,
            "task.clips_per_update=9",
            *settings,
            f"task.data={labelled}",
        ),
        "hydra.run.dir=run",
    )
    assert done.returncode == 2 and message in done.stdout, done.stdout
    assert "Traceback" not in done.stdout
    assert slurm.command("squeue", "--noheader").stdout == ""
    assert not [path for path in (slurm.folder / "run" / "slurm").iterdir() if path.is_dir()]


def test_full_disk_says_so_and_leaves_the_checkpoint_before(slurm: Slurm, labelled: Path) -> None:
    # A disk of its own, in a name space of its own, that takes the first checkpoint and half of the next.
    script = (
        "set -e; mount -t tmpfs -o size=4800k tmpfs disk; "
        'set +e; "$@"; echo "exit code $?"; cp -r disk/checkpoints kept; df disk'
    )
    (slurm.folder / "disk").mkdir()
    done = slurm.command(
        *("unshare", "--map-root-user", "--mount", "bash", "-c", script, "bash", "fairseq-hydra-train", *RECIPE),
        *(*PRETRAINING, f"task.data={labelled}", "hydra.run.dir=run", "checkpoint.save_dir=disk/checkpoints"),
    )
    assert "exit code 2" in done.stdout, done.stdout
    assert "cannot write the checkpoint (No space left on device); the one before is whole" in done.stdout
    checkpoint = torch.load(slurm.folder / "kept" / "checkpoint_last.pt", weights_only=False)
    assert checkpoint["optimizer_history"][-1]["num_updates"] >= 3
