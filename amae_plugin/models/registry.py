"""The systems, by the registered name of their pretraining model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amae_plugin.errors import UserError
from amae_plugin.models import audio_mae, mae_ast, ssast
from amae_plugin.models.system import Settings, System

SYSTEMS: dict[str, System] = {
    "amae_audio_mae": audio_mae.SYSTEM,
    "amae_mae_ast": mae_ast.SYSTEM,
    "amae_ssast": ssast.SYSTEM,
}


def system_of(settings: Settings) -> System:
    """The system that a model section names.

    Raises:
        UserError: it names none.
    """
    name = settings.get("_name")
    if name not in SYSTEMS:
        raise UserError(f"_name={name} is no pretraining system; there are: {', '.join(SYSTEMS)}")
    return SYSTEMS[name]


def input_settings(task: Mapping[str, Any], encoder: Settings) -> dict[str, Any]:
    """The input that an encoder was or will be trained with.

    Args:
        task: the task section of a recipe or a checkpoint. What it leaves open (null) of the front end, and the
            statistics of a system that normalises its input, are the system's.
        encoder: the model section of the encoder's system.

    Returns:
        ``num_mel_bins``, ``window_type``, ``remove_mean``, ``mean`` and ``std``.

    Raises:
        UserError: no system has that name.
    """
    system = system_of(encoder)
    given = {name: task[name] for name in system.front_end if task.get(name) is not None}
    mean, std = (0.0, 0.5) if system.normalizes_input else (task["mean"], task["std"])
    return {"num_mel_bins": task["num_mel_bins"], **system.front_end, **given, "mean": mean, "std": std}
