"""The systems, by the registered name of their pretraining model: how to build one from the settings of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable

from amae_plugin.errors import UserError
from amae_plugin.models.audio_mae import AudioMAE, AudioMAEConfig
from amae_plugin.models.audio_mae.encoder import AudioMAEEncoder
from amae_plugin.models.encoder import Encoder
from amae_plugin.models.mae_ast import MAEAST, MAEASTConfig
from amae_plugin.models.mae_ast.encoder import MAEASTEncoder
from amae_plugin.models.pretraining import PretrainingModel
from amae_plugin.models.ssast import SSAST, SSASTConfig
from amae_plugin.models.ssast.encoder import SSASTEncoder

Settings = Mapping[str, Any]
"""The model section of a recipe or a checkpoint, with the ``_name`` that the model is registered under."""


@dataclass(frozen=True)
class System:
    """How to build the parts of a system from its settings.

    Attributes:
        model: the pretraining model, which holds its encoder as ``encoder``.
        encoder: the encoder alone.
    """

    model: Callable[[Settings], PretrainingModel]
    encoder: Callable[[Settings], Encoder]


SYSTEMS: dict[str, System] = {
    "amae_audio_mae": System(
        model=lambda settings: AudioMAE(AudioMAEConfig.from_settings(settings)),
        encoder=lambda settings: AudioMAEEncoder(AudioMAEConfig.from_settings(settings)),
    ),
    "amae_mae_ast": System(
        model=lambda settings: MAEAST(MAEASTConfig.from_settings(settings)),
        encoder=lambda settings: MAEASTEncoder(MAEASTConfig.from_settings(settings)),
    ),
    "amae_ssast": System(
        model=lambda settings: SSAST(SSASTConfig.from_settings(settings)),
        encoder=lambda settings: SSASTEncoder(SSASTConfig.from_settings(settings)),
    ),
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
