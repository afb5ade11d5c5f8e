"""MAE-AST: config, input norm, encoder, decoder, model, and the published checkpoints' names."""

from amae_plugin.models.mae_ast.config import MAEASTConfig
from amae_plugin.models.mae_ast.encoder import MAEASTEncoder
from amae_plugin.models.mae_ast.model import MAEAST
from amae_plugin.models.system import System

__all__ = ["MAEAST", "MAEASTConfig"]

SYSTEM = System(
    MAEASTConfig,
    MAEAST,
    MAEASTEncoder,
    front_end={"window_type": "povey"},  # Kaldi's default
    normalizes_input=True,
)
