"""Encoder: a ViT that sees only some of the patches of a spectrogram."""

from amae_plugin.models.m2d.config import M2DConfig
from amae_plugin.models.vit import ViTEncoder


class M2DEncoder(ViTEncoder):
    """Pre-norm ViT over visible patches and a CLS token (Niizumi et al. 2024, section III).

    A time step is the tokens of its bands, side by side.
    """

    joins_bands = True

    def __init__(self, config: M2DConfig):
        super().__init__(config, config.input_length, time_first=True)
