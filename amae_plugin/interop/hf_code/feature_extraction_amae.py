"""Feature extractor of this folder's model, whose code is the package amae_plugin."""

from .configuration_amae import hf_model  # which tells what to install if the package is missing


class AmaeFeatureExtractor(hf_model.AmaeFeatureExtractor):
    """See :class:`amae_plugin.interop.hf_model.AmaeFeatureExtractor`."""
