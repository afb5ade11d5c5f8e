"""MAE-AST: config, input norm, encoder, decoder, model, and published weights."""

from amae_plugin.data.log_mel import LogMel, ModelInput
from amae_plugin.models.mae_ast import published
from amae_plugin.models.mae_ast.config import MAEASTConfig
from amae_plugin.models.mae_ast.encoder import MAEASTEncoder
from amae_plugin.models.mae_ast.model import MAEAST
from amae_plugin.models.system import System

__all__ = ["MAEAST", "MAEASTConfig"]

SYSTEM = System(
    "MAE-AST",
    MAEASTConfig,
    MAEAST,
    MAEASTEncoder,
    paper='Baade et al., "MAE-AST: '
    'Masked Autoencoding Audio Spectrogram Transformer", Interspeech 2022, arXiv:2203.16691',
    default_input=ModelInput(front_end=LogMel(window_type="povey"), normalization="model"),
    # A classifier has stochastic depth instead.
    downstream={"layerdrop": 0.0},
    published=(published.MAEASTPretrained,),
    as_timm=published.as_timm,
)
