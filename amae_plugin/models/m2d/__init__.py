"""M2D: config, encoder, model, and published weights."""

from amae_plugin.data.log_mel import ModelInput, SlaneyLogMel
from amae_plugin.models.m2d import published
from amae_plugin.models.m2d.config import M2DConfig
from amae_plugin.models.m2d.encoder import M2DEncoder
from amae_plugin.models.m2d.model import M2D
from amae_plugin.models.system import System
from amae_plugin.models.vit import as_timm

__all__ = ["M2D", "M2DConfig"]

SYSTEM = System(
    "M2D",
    M2DConfig,
    M2D,
    M2DEncoder,
    paper='Niizumi et al., "Masked Modeling Duo: '
    'Towards a Universal Audio Pre-training Framework", TASLP 2024, arXiv:2404.06095',
    default_input=ModelInput(SlaneyLogMel(), target_length=608, mean=-7.1, std=4.2, normalization="one_std"),
    published=(published.M2DPretrained, published.M2DFineTuned),
    as_timm=as_timm,
)
