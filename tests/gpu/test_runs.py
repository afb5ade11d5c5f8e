"""Runs of ``fairseq-hydra-train`` on the GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import DEVICE, ON_GPU, end_to_end

SETTINGS = [
    *("model.bf16=true", "model.compile=true", "task.clips_per_update=16", "optimization.max_update=12"),
    *("checkpoint.save_interval_updates=4", "dataset.num_workers=2"),
]
# Kernels add up in an order that changes from run to run, so two runs of the same command differ in their last digits.
SAME = 1e-3


def losses(run: end_to_end.Run) -> dict[int, float]:
    assert run.returncode == 0, run.output
    return {update: float(loss) for update, loss in run.losses().items()}


def settings(corpus: Path, processes: int) -> list[str]:
    return [f"task.data={corpus}", *SETTINGS, f"distributed_training.distributed_world_size={processes}"]


def test_a_killed_run_goes_on_as_if_nothing_had_been(corpus: Path, tmp_path: Path) -> None:
    whole = losses(end_to_end.train(tmp_path / "whole", *settings(corpus, 1)))
    assert list(whole) == list(range(1, 13))
    end_to_end.train_and_kill(tmp_path / "killed", 6, *settings(corpus, 1))
    resumed = losses(end_to_end.train(tmp_path / "killed", *settings(corpus, 1)))
    assert min(resumed) == 5  # after the checkpoint of update 4
    assert resumed == pytest.approx({update: whole[update] for update in resumed}, rel=SAME)


def test_two_processes_train_as_one(corpus: Path, tmp_path: Path) -> None:
    if ON_GPU and torch.cuda.device_count() < 2:
        pytest.skip("NCCL needs two GPUs, and there is one")
    gloo = ["distributed_backend=gloo", "ddp_backend=legacy_ddp"]
    backend = [] if ON_GPU else ["common.cpu=true", *(f"distributed_training.{setting}" for setting in gloo)]
    one = losses(end_to_end.train(tmp_path / "one", *settings(corpus, 1)))
    two = losses(end_to_end.train(tmp_path / "two", *settings(corpus, 2), *backend))
    assert two == pytest.approx(one, rel=SAME)


def test_the_benchmark_measures_the_device(corpus: Path, tmp_path: Path) -> None:
    figures, trace = tmp_path / "figures.json", tmp_path / "trace.json"
    recipe = ["--recipe", "pretrain_audio_mae_tiny", "--config-dir", str(end_to_end.CONFIG_DIR), "--steps", "3"]
    files = ["--feed", str(corpus / "train.tsv"), "--workers", "1", "--json", str(figures), "--profile", str(trace)]
    done = end_to_end.amae("benchmark", *recipe, *files, "--device", str(DEVICE), "--precision", "bf16", "--batch", "8")
    assert done.returncode == 0, done.stderr
    assert figures.is_file() and trace.is_file()
