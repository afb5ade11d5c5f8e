"""Registry of the downstream models, and the model of any model section."""

from amae_plugin.models.base import DownstreamModel, Model
from amae_plugin.models.classifier import Classifier
from amae_plugin.models.ctc import CTC
from amae_plugin.models.registry import find_system
from amae_plugin.models.settings import Settings

DOWNSTREAM: dict[str, type[DownstreamModel]] = {"amae_classifier": Classifier, "amae_ctc": CTC}
"""Downstream models by registered name."""


def build_model(settings: Settings) -> Model:
    """Build the pretraining or downstream model of a model section.

    Raises:
        UserError: the section names neither.
        ValueError: the settings make no model.
    """
    kind = DOWNSTREAM.get(str(settings.get("_name")))
    return find_system(settings).model(settings) if kind is None else kind.from_settings(settings)


def encoder_section(settings: Settings) -> Settings:
    """Return the section that describes the encoder: the model section itself or, for a downstream model, a part."""
    return settings.get("encoder", {}) if settings.get("_name") in DOWNSTREAM else settings
