"""EAT: config, encoder, teacher, decoder, model, and published weights."""

from amae_plugin.models.eat import published
from amae_plugin.models.eat.config import EATConfig
from amae_plugin.models.eat.encoder import EATEncoder
from amae_plugin.models.eat.model import EAT
from amae_plugin.models.system import System

__all__ = ["EAT", "EATConfig"]

SYSTEM = System(
    "EAT",
    EATConfig,
    EAT,
    EATEncoder,
    paper='Chen et al., "EAT: '
    'Self-Supervised Pre-Training with Efficient Audio Transformer", IJCAI 2024, arXiv:2401.03497',
    published=(published.EATPretrained, published.EATFineTuned),
    as_timm=published.as_timm,
)
