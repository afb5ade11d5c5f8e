"""SSAST: config, encoder, model with a joint objective, and published weights."""

from amae_plugin.models.ssast import published
from amae_plugin.models.ssast.config import SSASTConfig
from amae_plugin.models.ssast.encoder import SSASTEncoder
from amae_plugin.models.ssast.model import SSAST
from amae_plugin.models.system import System

__all__ = ["SSAST", "SSASTConfig"]

SYSTEM = System(
    "SSAST",
    SSASTConfig,
    SSAST,
    SSASTEncoder,
    paper='Gong et al., "SSAST: Self-Supervised Audio Spectrogram Transformer", AAAI 2022, arXiv:2110.09784',
    fits_positions=True,
    published=(published.SSASTPretrained, published.ASTFineTuned, published.ImageNetViT),
    load_image_weights=published.load_image_weights,
    as_timm=published.as_timm,
)
