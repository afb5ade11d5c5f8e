"""Sizes and choices of a MAE-AST; the defaults are those of the patch model (Baade et al., Interspeech 2022)."""

# Annotations stay objects here, in the typing module's spelling: fairseq reads them when the fields become its options.
from dataclasses import dataclass, field
from typing import Tuple

from amae_plugin.models.settings import FromSettings


@dataclass
class MAEASTConfig(FromSettings):
    """Architecture, regularisation, masking and objective of MAE-AST.

    Pairs are (time, frequency). The fields carry their help in ``metadata`` so that fairseq shows it.
    """

    num_mel_bins: int = field(default=128, metadata={"help": "mel bands of the input"})
    patch_size: Tuple[int, int] = field(
        default=(16, 16), metadata={"help": "frames and bands of a token: (16, 16) patches or (2, 128) frames"}
    )

    embed_dim: int = field(default=768, metadata={"help": "width of the encoder"})
    depth: int = field(default=12, metadata={"help": "blocks of the encoder"})
    num_heads: int = field(default=12, metadata={"help": "attention heads of the encoder"})
    mlp_ratio: float = field(default=4.0, metadata={"help": "hidden width of an encoder block's MLP over its width"})

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
    feature_grad_mult: float = field(
        default=0.1,
        metadata={"help": "factor of the gradient that reaches the spectrogram; no weight of the model is behind it"},
    )

    masking: str = field(
        default="chunk",
        metadata={"help": "random, random_batched, chunk, span, time, frequency or time_frequency"},
    )
    mask_ratio: float = field(default=0.75, metadata={"help": "hidden share: all but time_frequency"})
    mask_ratio_time: float = field(default=0.6, metadata={"help": "hidden share of the time steps: time_frequency"})
    mask_ratio_frequency: float = field(default=0.5, metadata={"help": "hidden share of the bands: time_frequency"})
    mask_length: int = field(default=10, metadata={"help": "tokens of a span: span"})

    reconstruction_weight: float = field(
        default=10.0, metadata={"help": "weight of the squared error; 0: the model has no such head"}
    )
    info_nce_weight: float = field(default=1.0, metadata={"help": "weight of InfoNCE; 0: the model has no such head"})
    bf16: bool = field(
        default=False,
        metadata={
            "help": "matrix work in bfloat16; weights, optimizer, residual stream, norms and loss stay in float32"
        },
    )
