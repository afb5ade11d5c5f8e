"""Sizes and choices of MAE-AST; the defaults are the paper's patch model (Baade et al., Interspeech 2022)."""

# Annotations stay objects here, in the typing module's spelling: fairseq reads them when the fields become its options.
from dataclasses import dataclass, field

from amae_plugin.models.settings import PretrainingConfig


@dataclass
class MAEASTConfig(PretrainingConfig):
    """Architecture, regularisation and objective of MAE-AST.

    The paper's frame models have ``patch_size=(2, 128)`` and ``masking="random"`` or ``"span"``.
    """

    decoder_embed_dim: int = field(
        default=768, metadata={"help": "width of the decoder; a projection leads to it if it is not the encoder's"}
    )
    decoder_depth: int = field(default=2, metadata={"help": "blocks of the decoder"})
    decoder_num_heads: int = field(default=12, metadata={"help": "attention heads of the decoder"})
    decoder_mlp_ratio: float = field(
        default=4.0, metadata={"help": "hidden width of a decoder block's MLP over its width"}
    )

    dropout: float = field(default=0.1, metadata={"help": "dropout of the blocks' inputs and branches"})
    attention_dropout: float = field(default=0.1, metadata={"help": "dropout of the attention weights"})
    dropout_input: float = field(default=0.1, metadata={"help": "dropout of the embedded tokens"})
    layerdrop: float = field(default=0.05, metadata={"help": "probability that a block of the encoder is skipped"})

    masking: str = field(default="chunk", metadata={"help": "chunk or random (patches), random or span (frames), ..."})

    reconstruction_weight: float = field(
        default=10.0, metadata={"help": "weight of the squared error; 0: the model has no such head"}
    )
    info_nce_weight: float = field(default=1.0, metadata={"help": "weight of InfoNCE; 0: the model has no such head"})
