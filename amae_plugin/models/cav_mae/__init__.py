"""CAV-MAE: config, encoder, decoder, model, and published weights."""

from amae_plugin.data.images import ImageInput
from amae_plugin.data.log_mel import ModelInput
from amae_plugin.models.cav_mae import published
from amae_plugin.models.cav_mae.config import CAVMAEConfig
from amae_plugin.models.cav_mae.encoder import CAVMAEEncoder
from amae_plugin.models.cav_mae.model import CAVMAE
from amae_plugin.models.system import System

__all__ = ["CAVMAE", "CAVMAEConfig"]

SYSTEM = System(
    "CAV-MAE",
    CAVMAEConfig,
    CAVMAE,
    CAVMAEEncoder,
    paper='Gong et al., "Contrastive Audio-Visual Masked Autoencoder", ICLR 2023, arXiv:2210.07839',
    default_input=ModelInput(mean=-5.081, std=4.4849, normalization="one_std", image=ImageInput()),
    published=(published.CAVMAEPretrained, published.CAVMAEFineTuned),
    load_image_weights=published.load_image_weights,
)
