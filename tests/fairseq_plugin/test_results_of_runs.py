"""What a sweeper gets of a run that ``fairseq-hydra-train`` made in its process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from amae_plugin.fairseq_plugin.hydra import RegisterPlugin


@pytest.mark.parametrize(("validated", "expected"), [({"best": 0.75, "val_loss": 0.5}, 0.75), ({}, None)])
def test_best_validation_result_is_returned_if_there_is_one(
    write_checkpoint: Callable[..., Path], tmp_path: Path, validated: dict[str, float], expected: float | None
) -> None:
    path = write_checkpoint(tmp_path / "checkpoint_last.pt", ["yes", "no"])
    content = torch.load(path)
    content["cfg"]["checkpoint"] = {"best_checkpoint_metric": "accuracy"}
    torch.save({**content, "extra_state": validated}, path)
    config = OmegaConf.create({"checkpoint": {"save_dir": str(tmp_path)}})
    run = JobReturn(cfg=config, status=JobStatus.COMPLETED)
    RegisterPlugin().on_job_end(config, run)
    assert run.return_value == RegisterPlugin.result == expected


def test_error_of_a_run_is_left_as_it_is() -> None:
    run = JobReturn(status=JobStatus.FAILED)
    run.return_value = ValueError("of the run")
    RegisterPlugin().on_job_end(OmegaConf.create({}), run)
    with pytest.raises(ValueError, match="of the run"):
        _ = run.return_value
