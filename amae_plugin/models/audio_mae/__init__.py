"""Audio-MAE: config, encoder, decoders, model, and published weights."""

from amae_plugin.models.audio_mae import published
from amae_plugin.models.audio_mae.config import AudioMAEConfig
from amae_plugin.models.audio_mae.encoder import AudioMAEEncoder
from amae_plugin.models.audio_mae.model import AudioMAE
from amae_plugin.models.system import System
from amae_plugin.models.vit import as_timm

__all__ = ["AudioMAE", "AudioMAEConfig"]

SYSTEM = System(
    "Audio-MAE",
    AudioMAEConfig,
    AudioMAE,
    AudioMAEEncoder,
    paper='Huang et al., "Masked Autoencoders that Listen", NeurIPS 2022, arXiv:2207.06405',
    published=(published.AudioMAEPretrained, published.AudioMAEFineTuned, published.ImageMAE),
    as_timm=as_timm,
)
