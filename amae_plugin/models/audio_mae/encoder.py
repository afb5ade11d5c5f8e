"""Encoder: a ViT that sees only the visible patches of a spectrogram."""

from amae_plugin.models.audio_mae.config import AudioMAEConfig
from amae_plugin.models.vit import ViTEncoder


class AudioMAEEncoder(ViTEncoder):
    """Pre-norm ViT over visible patches and a CLS token (Huang et al. 2022, section 3.1)."""

    def __init__(self, config: AudioMAEConfig):
        super().__init__(config, config.input_length)
