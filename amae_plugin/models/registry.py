"""The systems, by the registered name of their pretraining model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amae_plugin.data.log_mel import LogMel, ModelInput
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


def read_input(task: Mapping[str, Any], encoder: Settings) -> ModelInput:
    """Read the input that an encoder was or will be trained with.

    Args:
        task: task section of a recipe or a checkpoint; the system's input replaces what is null in it.
        encoder: model section of the encoder's system.

    Raises:
        UserError: no system has that name.
        ValueError: a setting is missing or cannot be used.
    """
    system = system_of(encoder)
    front_end = LogMel(window_type=system.front_end["window_type"])
    default = ModelInput(front_end, normalization="model" if system.normalizes_input else "two_std")
    return ModelInput.from_settings(task, default)
