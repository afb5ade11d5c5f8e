"""What a system is to everything that handles systems alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from amae_plugin.models.encoder import Encoder
from amae_plugin.models.pretraining import PretrainingModel
from amae_plugin.models.settings import FromSettings

Settings = Mapping[str, Any]
"""The model section of a recipe or a checkpoint, with the ``_name`` that the model is registered under."""


@dataclass(frozen=True)
class System:
    """The parts of a system, and what a spectrogram is to it.

    Attributes:
        config: class of its settings.
        model_class: of the pretraining model, which is made of a config and holds its encoder as ``encoder``.
        encoder_class: of the encoder alone, made of the same config.
        front_end: settings of :class:`amae_plugin.data.log_mel.LogMel`.
        normalizes_input: whether the encoder normalises the log-mel values itself.
        fits_positions: whether pretrained positions are cut or interpolated to the input that the encoder is built for.
    """

    config: type[FromSettings]
    model_class: Callable[[Any], PretrainingModel]
    encoder_class: Callable[[Any], Encoder]
    front_end: Mapping[str, Any] = field(default_factory=lambda: {"window_type": "hanning", "remove_mean": True})
    normalizes_input: bool = False
    fits_positions: bool = False

    def model(self, settings: Settings) -> PretrainingModel:
        """The pretraining model of a model section."""
        return self.model_class(self.config.from_settings(settings))

    def encoder(self, settings: Settings) -> Encoder:
        """The encoder of a model section."""
        return self.encoder_class(self.config.from_settings(settings))
