"""Settings that would end a run are found before it starts."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from fairseq.dataclass.configs import FairseqConfig
from omegaconf import OmegaConf

import amae_plugin.fairseq_plugin  # noqa: F401 - registers the schedule
from amae_plugin.errors import UserError
from amae_plugin.fairseq_plugin.checks import check_settings

COSINE = {"_name": "cosine", "warmup_updates": 10, "lr": [1e-3], "max_update": 100}
LINEAR = {"_name": "polynomial_decay", "warmup_updates": 10, "lr": [1e-3]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, ""),
        ({"optimization": {"max_update": 10}, "lr_scheduler": {"max_update": 10}}, "update 10 .*warmup_updates=10"),
        ({"optimization": {"max_update": 5}, "lr_scheduler": {"max_update": 5}}, ""),  # a trial within the warm-up
        ({"lr_scheduler": {"lr": [float("nan")]}}, "lr_scheduler=cosine has no learning rate"),
        ({"dataset": {"batch_size": None}}, "dataset.batch_size and dataset.max_tokens are both null"),
        ({"dataset": {"batch_size": 0}}, "dataset.batch_size=0: must be 1 or more"),
        ({"dataset": {"num_workers": -1}}, "dataset.num_workers=-1: must be 0 or more"),
        ({"optimization": {"update_freq": [2, 0]}}, r"optimization.update_freq=\[2, 0\]: must be 1 or more"),
        ({"optimization": {"lr": [-1.0]}}, r"optimization.lr=\[-1.0\]: must be 0 or more"),
        ({"lr_scheduler": {**LINEAR, "total_num_update": 100}}, ""),
    ],
)
def test_numbers_that_contradict_each_other(changes: dict, message: str) -> None:
    base = OmegaConf.structured(FairseqConfig())
    plain = {"dataset": {"batch_size": 4}, "optimization": {"max_update": 100}}
    cfg = OmegaConf.merge(base, plain, {key: value for key, value in changes.items() if key != "lr_scheduler"})
    schedule = changes.get("lr_scheduler", {})
    cfg.lr_scheduler = schedule if "_name" in schedule else {**COSINE, **schedule}
    with pytest.raises(UserError, match=message) if message else nullcontext():
        check_settings(cfg)
