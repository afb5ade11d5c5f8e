"""How a task ends with the processes that it started."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from torch import distributed

from amae_plugin.cluster import signals
from amae_plugin.fairseq_plugin import launch
from amae_plugin.fairseq_plugin.launch import REQUEUED, exit_code


@pytest.fixture
def terminated() -> Iterator[None]:
    signals.install_handlers()
    os.kill(os.getpid(), signal.SIGTERM)
    yield
    signals.forget()


def test_a_task_ends_as_the_process_that_has_said_why() -> None:
    codes = (2, REQUEUED, 130, 143, 1, -signal.SIGKILL, -signal.SIGTERM)
    assert [exit_code(code) for code in codes] == [2, REQUEUED, 130, 143, None, None, None]


@pytest.mark.parametrize(("job", "expected"), [(None, 143), ("1", REQUEUED)])
def test_a_signal_may_find_a_process_that_does_not_listen(
    job: str | None, expected: int, terminated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if job is not None:
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_PROCID", "0")
    assert exit_code(-signal.SIGTERM) == expected


def stop_one_of_two(rank: int, folder: Path) -> None:
    """Stop a run in one of its processes, of which the first takes a second to write the checkpoint."""

    def save(*_: object) -> None:
        if rank == 0:
            time.sleep(1.0)
            (folder / "checkpoint").touch()

    launch.checkpoint_utils.save_checkpoint = save
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    signals.install_handlers()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    run = launch.Run(OmegaConf.create({"checkpoint": {"save_dir": str(folder)}}), requeues=0)
    try:
        run.stop_if_told(SimpleNamespace(get_num_updates=lambda: 3), None)
    finally:
        (folder / f"ended {rank}").write_text(str((folder / "checkpoint").exists()))


def test_no_process_of_a_run_that_a_signal_stops_ends_before_the_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=stop_one_of_two, args=(rank, tmp_path)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [143, 143]
    assert [(tmp_path / f"ended {rank}").read_text() for rank in (0, 1)] == ["True", "True"]
