"""Checks of a run's settings before it starts: numbers that would end it, some of them only at its end."""

import math
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from fairseq.models import ARCH_MODEL_NAME_REGISTRY, MODEL_DATACLASS_REGISTRY
from fairseq.optim import FairseqOptimizer
from fairseq.optim.lr_scheduler import build_lr_scheduler
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_DATACLASS_REGISTRY, TASK_REGISTRY
from omegaconf import DictConfig, ListConfig, OmegaConf

from amae_plugin.errors import UserError
from amae_plugin.models.registry import SYSTEMS
from amae_plugin.recipes import nearest, unknown_key

ON_CPUS = "common.cpu=true distributed_training.distributed_backend=gloo distributed_training.ddp_backend=legacy_ddp"
"""Settings of a run of several processes without GPUs."""
_LEAST = {
    "dataset.batch_size": 1,
    "dataset.max_tokens": 1,
    "dataset.batch_size_valid": 1,
    "dataset.max_tokens_valid": 1,
    "dataset.required_batch_size_multiple": 1,
    "dataset.num_workers": 0,
    "optimization.update_freq": 1,
    "optimization.max_update": 0,
    "optimization.max_epoch": 0,
    "optimization.lr": 0,
    "optimizer.weight_decay": 0,
    "common.seed": 0,
    "common.log_interval": 1,
    "checkpoint.save_interval": 1,
    "dataset.validate_interval": 1,
    "distributed_training.distributed_world_size": 1,
    "ema.ema_decay": 0,
    "ema.ema_start_update": 0,
    "ema.ema_update_freq": 1,
    "task.max_bad_audio": 0,
    "task.picture_interval": 0,
    "task.pictures": 1,
    "task.probe_interval": 0,
    "task.probe_minutes": 0,
    "task.probe_train_clips": 1,
    "task.probe_valid_clips": 1,
}
_MOST = {
    "ema.ema_decay": 1,
    "common.seed": 2**31 - 1,  # NumPy's are below 2**32, and fairseq adds the epoch
    "dataset.num_workers": 1024,  # more would take all memory, of this machine and of whoever else works on it
}
_POINTS = 2000


def check_keys(cfg: DictConfig) -> None:
    """Check that the sections of a run have no settings but those of what they name by ``_name``.

    Raises:
        UserError: one has another; the message names the nearest.
    """
    for section, settings in _fields_of_sections(cfg).items():
        for name in OmegaConf.select(cfg, section):
            if name not in {"_name", *settings}:
                raise UserError(unknown_key(f"{section}.{name}", addable_keys(cfg)))


def addable_keys(cfg: DictConfig) -> Iterator[str]:
    """Yield the keys of all settings of what the sections of a run name by ``_name``."""
    for section, settings in _fields_of_sections(cfg).items():
        yield from (f"{section}.{name}" for name, default in settings.items() if not str(default).startswith("${"))


def _fields_of_sections(cfg: DictConfig) -> dict[str, dict[str, Any]]:
    """Return the defaults of the settings by name, by section."""
    registries = {section: registry["dataclass_registry"] for section, registry in REGISTRIES.items()}
    registries |= {"task": TASK_DATACLASS_REGISTRY, "model": MODEL_DATACLASS_REGISTRY}
    found = {}
    for section, registry in registries.items():
        name = OmegaConf.select(cfg, f"{section}._name")
        if kind := registry.get(ARCH_MODEL_NAME_REGISTRY.get(name, name) if section == "model" else name):
            found[section] = {each.name: each.default for each in fields(kind)}
    if "encoder" in found.get("model", ()) and OmegaConf.select(cfg, "model.encoder") is not None:
        name = cfg.model.encoder.get("_name")  # else that of the pretrained encoder, which may be any system's
        kinds = [MODEL_DATACLASS_REGISTRY[system] for system in SYSTEMS if name in (system, None)]
        found["model.encoder"] = {each.name: each.default for kind in kinds for each in fields(kind)}
    return found


def check_settings(cfg: DictConfig) -> None:
    """Check settings of fairseq's that any recipe has.

    Raises:
        UserError: a number is out of range, or numbers contradict each other; the message names their keys.
    """
    for key, least in _LEAST.items():
        value = OmegaConf.select(cfg, key)
        if isinstance(value, ListConfig) and not value:
            raise UserError(f"{key}=[]: must hold a value for each epoch, of which the last one stays")
        for number in value if isinstance(value, ListConfig) else [value]:
            if number is not None and not number >= least:
                raise UserError(f"{key}={value}: must be {least} or more")
    for key, most in _MOST.items():
        if (value := OmegaConf.select(cfg, key)) > most:
            raise UserError(f"{key}={value}: must be {most} or less")
    if cfg.common.amp and not torch.cuda.is_available():
        raise UserError("common.amp=true computes in float16, on GPUs alone, and there is none: set model.bf16=true")
    settings = cfg.distributed_training
    if cfg.common.cpu and settings.distributed_world_size > 1 and not _fits_cpus(settings):
        wanted = f"distributed_training.distributed_world_size={settings.distributed_world_size}"
        raise UserError(f"{wanted} on CPUs: set {ON_CPUS}")
    if cfg.dataset.batch_size is None and cfg.dataset.max_tokens is None:
        raise UserError("dataset.batch_size and dataset.max_tokens are both null: set one of them")
    registries = {section: REGISTRIES[section]["registry"] for section in ("optimizer", "lr_scheduler", "criterion")}
    for section, registry in {"task": TASK_REGISTRY, **registries}.items():
        name = OmegaConf.select(cfg, f"{section}._name")
        if name is not None and name not in registry:
            near = ", ".join(nearest(name, registry, 3))
            raise UserError(f"{section}._name={name}: there is none of that name; the nearest are {near}")
    composite = OmegaConf.select(cfg, "optimizer._name") == "composite"  # whose parts have schedules of their own
    if cfg.lr_scheduler is not None and not composite:
        _check_schedule(cfg)


def _fits_cpus(settings: DictConfig) -> bool:
    """Tell whether several processes without GPUs can train together; PyTorch's DDP would get a device number."""
    return settings.distributed_backend != "nccl" and settings.ddp_backend not in ("c10d", "pytorch_ddp")


class _Rate(FairseqOptimizer):
    """A learning rate, of an optimizer of one number."""

    def __init__(self) -> None:
        self._optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.0)


def _check_schedule(cfg: DictConfig) -> None:
    settings, last = cfg.lr_scheduler, cfg.optimization.max_update
    keys = {f"lr_scheduler.{key}": value for key, value in settings.items() if str(key).endswith(("updates", "update"))}
    given = ", ".join(f"{key}={value}" for key, value in {"optimization.max_update": last, **keys}.items())
    update = 0
    try:
        schedule = build_lr_scheduler(OmegaConf.create(OmegaConf.to_container(settings)), _Rate())
        for update in _points(last or _POINTS, settings.get("warmup_updates") or 0):
            rate = schedule.step_update(update)
            if rate is not None and not (math.isfinite(rate) and rate >= 0):
                raise ValueError(f"it would be {rate}")
    except (ArithmeticError, ValueError, AssertionError) as error:
        raise UserError(
            f"lr_scheduler={settings._name} has no learning rate for update {update} ({error}): {given}"
        ) from None


def _points(last: int, warmup: int) -> Iterator[int]:
    """Yield updates all over a run, with those at the end of its warm-up."""
    turns = [warmup - 1, warmup, warmup + 1]
    points = np.unique(np.concatenate([np.linspace(0, last, min(last, _POINTS) + 1).round(), turns])).astype(int)
    yield from (int(point) for point in points if 0 <= point <= last)
