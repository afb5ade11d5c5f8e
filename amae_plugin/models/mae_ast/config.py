"""Sizes and choices of MAE-AST; the defaults are the paper's patch model (Baade et al., Interspeech 2022)."""

# Annotations stay objects here, in the typing module's spelling: fairseq reads them when the fields become its options.
from dataclasses import dataclass

from amae_plugin.models.settings import PretrainingConfig, setting


@dataclass
class MAEASTConfig(PretrainingConfig):
    """Architecture, regularisation and objective of MAE-AST.

    The paper's frame models have ``patch_size=(2, 128)`` and ``masking="random"`` or ``"span"``.
    """

    decoder_embed_dim: int = setting(768, "width of the decoder; a projection leads to it if it is not the encoder's")
    decoder_depth: int = setting(2, "blocks of the decoder")
    decoder_num_heads: int = setting(12, "attention heads of the decoder")
    decoder_mlp_ratio: float = setting(4.0, "hidden width of a decoder block's MLP over its width")

    dropout: float = setting(0.1, "dropout of the blocks' inputs and branches")
    attention_dropout: float = setting(0.1, "dropout of the attention weights")
    dropout_input: float = setting(0.1, "dropout of the embedded tokens")
    layerdrop: float = setting(0.05, "probability that a block of the encoder is skipped")

    masking: str = setting("chunk", "chunk or random (patches), random or span (frames), ...")

    reconstruction_weight: float = setting(10.0, "weight of the squared error; 0: the model has no such head")
    info_nce_weight: float = setting(1.0, "weight of InfoNCE; 0: the model has no such head")
