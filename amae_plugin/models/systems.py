"""The systems, by the registered name of their pretraining model: how to build one, and what input it expects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
    """How to build the parts of a system from its settings, and what a spectrogram is to it.

    Attributes:
        model: the pretraining model, which holds its encoder as ``encoder``.
        encoder: the encoder alone.
        front_end: settings of :class:`amae_plugin.data.features.LogMel`.
        normalizes_input: whether the encoder normalises the log-mel values itself.
        fits_positions: whether pretrained positions are cut or interpolated to the input that the encoder is built for.
    """

    model: Callable[[Settings], PretrainingModel]
    encoder: Callable[[Settings], Encoder]
    front_end: Mapping[str, Any] = field(default_factory=lambda: {"window_type": "hanning", "remove_mean": True})
    normalizes_input: bool = False
    fits_positions: bool = False


SYSTEMS: dict[str, System] = {
    "amae_audio_mae": System(
        model=lambda settings: AudioMAE(AudioMAEConfig.from_settings(settings)),
        encoder=lambda settings: AudioMAEEncoder(AudioMAEConfig.from_settings(settings)),
    ),
    "amae_mae_ast": System(
        model=lambda settings: MAEAST(MAEASTConfig.from_settings(settings)),
        encoder=lambda settings: MAEASTEncoder(MAEASTConfig.from_settings(settings)),
        front_end={"window_type": "povey", "remove_mean": False},
        normalizes_input=True,
    ),
    "amae_ssast": System(
        model=lambda settings: SSAST(SSASTConfig.from_settings(settings)),
        encoder=lambda settings: SSASTEncoder(SSASTConfig.from_settings(settings)),
        fits_positions=True,
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
