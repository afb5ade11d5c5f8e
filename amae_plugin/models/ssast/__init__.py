"""SSAST: config, encoder, model with its joint objective, and the names of published and of ImageNet weights."""

from amae_plugin.models.ssast.config import SIZES, SSASTConfig
from amae_plugin.models.ssast.encoder import SSASTEncoder
from amae_plugin.models.ssast.model import SSAST, found_patches
from amae_plugin.models.system import System

__all__ = ["SIZES", "SSAST", "SSASTConfig", "found_patches"]

SYSTEM = System(SSASTConfig, SSAST, SSASTEncoder, fits_positions=True)
