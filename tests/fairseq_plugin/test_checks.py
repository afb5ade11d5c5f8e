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
TWO = {"distributed_world_size": 2}
BY_GLOO = {"distributed_backend": "gloo", "ddp_backend": "legacy_ddp"}
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
        ({"dataset": {"num_workers": 1_000_000}}, "dataset.num_workers=1000000: must be 1024 or less"),
        ({"dataset": {"batch_size_valid": 0}}, "dataset.batch_size_valid=0: must be 1 or more"),
        ({"dataset": {"required_batch_size_multiple": 0}}, "required_batch_size_multiple=0: must be 1 or more"),
        ({"common": {"seed": -1}}, "common.seed=-1: must be 0 or more"),
        ({"common": {"seed": 2**32}}, "common.seed=4294967296: must be 2147483647 or less"),
        ({"common": {"amp": True}}, "common.amp=true computes in float16, on GPUs alone, .* set model.bf16=true"),
        ({"common": {"cpu": True}, "distributed_training": TWO}, "world_size=2 on CPUs: .*backend=gloo .*=legacy_ddp"),
        ({"common": {"cpu": True}, "distributed_training": {**TWO, "distributed_backend": "gloo"}}, "ddp_backend=leg"),
        ({"common": {"cpu": True}, "distributed_training": {**TWO, **BY_GLOO}}, ""),
        ({"optimizer": {"weight_decay": float("nan")}}, "optimizer.weight_decay=nan: must be 0 or more"),
        ({"optimizer": {"_name": "amae_adam"}}, "optimizer._name=amae_adam: .*; the nearest are amae_adamw"),
        ({"criterion": {"_name": "amae"}}, "criterion._name=amae: there is none of that name"),
        ({"task": {"_name": "amae_classifier"}}, "task._name=amae_classifier: .* the nearest are amae_classification"),
        ({"lr_scheduler": {"_name": "cosin"}}, "lr_scheduler._name=cosin: .* the nearest are cosine"),
        ({"task": {"pictures": 0}}, "task.pictures=0: must be 1 or more"),
        ({"ema": {"ema_decay": 1.5}}, "ema.ema_decay=1.5: must be 1 or less"),
        ({"ema": {"ema_update_freq": 0}}, "ema.ema_update_freq=0: must be 1 or more"),
        ({"optimization": {"lr": []}}, r"optimization.lr=\[\]: must hold a value"),
        ({"optimization": {"update_freq": []}}, r"optimization.update_freq=\[\]: must hold a value"),
        ({"optimization": {"update_freq": [2, 0]}}, r"optimization.update_freq=\[2, 0\]: must be 1 or more"),
        ({"optimization": {"lr": [-1.0]}}, r"optimization.lr=\[-1.0\]: must be 0 or more"),
        ({"lr_scheduler": {**LINEAR, "total_num_update": 100}}, ""),
    ],
)
def test_numbers_that_contradict_each_other(changes: dict, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = OmegaConf.structured(FairseqConfig())
    plain = {"dataset": {"batch_size": 4}, "optimization": {"max_update": 100}}
    cfg = OmegaConf.merge(base, plain, {key: value for key, value in changes.items() if key != "lr_scheduler"})
    schedule = changes.get("lr_scheduler", {})
    cfg.lr_scheduler = schedule if "_name" in schedule else {**COSINE, **schedule}
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=message) if message else nullcontext():
        check_settings(cfg)


@pytest.mark.parametrize(
    "schedule",
    [
        {"_name": "fixed", "lr": [1e-3], "warmup_updates": 10},
        {"_name": "inverse_sqrt", "lr": [1e-3], "warmup_updates": 10},
        {"_name": "amae_plateau", "lr": [1e-3], "warmup_updates": 10, "maximize_best_checkpoint_metric": True},
        {"_name": "tri_stage", "lr": [1e-3], "phase_ratio": [0.1, 0.4, 0.5], "max_update": 100},
        {"_name": "amae_cosine_by_time", "lr": [1e-3], "warmup_updates": 10, "max_update": 100, "stop_time_hours": 1.0},
    ],
    ids=lambda schedule: schedule["_name"],
)
def test_schedules_of_every_kind_are_tried(schedule: dict) -> None:
    plain = {"dataset": {"batch_size": 4}, "optimization": {"max_update": 100}}
    cfg = OmegaConf.merge(OmegaConf.structured(FairseqConfig()), plain)
    cfg.lr_scheduler = schedule
    check_settings(cfg)
