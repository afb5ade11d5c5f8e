"""Audio-MAE: config, encoder, decoders, model, and the published checkpoints' names."""

from amae_plugin.models.audio_mae.config import AudioMAEConfig
from amae_plugin.models.audio_mae.model import AudioMAE

__all__ = ["AudioMAE", "AudioMAEConfig"]
