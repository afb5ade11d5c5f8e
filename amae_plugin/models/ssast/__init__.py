"""SSAST: config, encoder, model with its joint objective, and the names of published and of ImageNet weights."""

from amae_plugin.models.ssast.config import SIZES, SSASTConfig
from amae_plugin.models.ssast.model import SSAST, joint_loss, patch_errors, patch_info_nce

__all__ = ["SIZES", "SSAST", "SSASTConfig", "joint_loss", "patch_errors", "patch_info_nce"]
