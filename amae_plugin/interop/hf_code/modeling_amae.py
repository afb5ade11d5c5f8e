"""Models of this folder, whose code is the package amae_plugin."""

from .configuration_amae import AmaeConfig, hf_model  # which tells what to install if the package is missing


class AmaeModel(hf_model.AmaeModel):
    """See :class:`amae_plugin.interop.hf_model.AmaeModel`."""

    config_class = AmaeConfig


class AmaeForAudioClassification(hf_model.AmaeForAudioClassification):
    """See :class:`amae_plugin.interop.hf_model.AmaeForAudioClassification`."""

    config_class = AmaeConfig
