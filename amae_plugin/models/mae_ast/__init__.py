"""MAE-AST: config, input norm, encoder, decoder, model, and the published checkpoints' names."""

from amae_plugin.models.mae_ast.config import MAEASTConfig
from amae_plugin.models.mae_ast.model import MAEAST

__all__ = ["MAEAST", "MAEASTConfig"]
