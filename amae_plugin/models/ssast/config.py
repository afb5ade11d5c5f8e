"""Sizes and choices of an SSAST; the defaults are the paper's base model on patches (Gong et al., AAAI 2022)."""

# Annotations stay objects here, in the typing module's spelling: fairseq reads them when the fields become its options.
from dataclasses import dataclass, field
from typing import Dict, Optional, Tuple

from amae_plugin.models.settings import FromSettings

SIZES: Dict[str, Dict[str, int]] = {
    "tiny": {"embed_dim": 192, "num_heads": 3},
    "small": {"embed_dim": 384, "num_heads": 6},
    "base": {"embed_dim": 768, "num_heads": 12},
}
"""The paper's sizes, all of 12 blocks, as fields of :class:`SSASTConfig`."""


@dataclass
class SSASTConfig(FromSettings):
    """Architecture and masking of SSAST and of an AST.

    Pairs are (time, frequency). The paper's frame model has ``patch_size=(2, 128)`` and ``masking="random"``. The
    fields carry their help in ``metadata`` so that fairseq shows it.
    """

    input_length: int = field(default=1024, metadata={"help": "frames that the position table is built for"})
    num_mel_bins: int = field(default=128, metadata={"help": "mel bands of the input"})
    patch_size: Tuple[int, int] = field(
        default=(16, 16), metadata={"help": "frames and bands of a patch (frame model: 2 and all bands)"}
    )
    patch_stride: Optional[Tuple[int, int]] = field(
        default=None,
        metadata={"help": "frames and bands from patch to patch; null: the patch; AST fine-tunes patches with 10, 10"},
    )

    embed_dim: int = field(default=768, metadata={"help": "width of the encoder (tiny 192, small 384, base 768)"})
    depth: int = field(default=12, metadata={"help": "blocks of the encoder"})
    num_heads: int = field(default=12, metadata={"help": "attention heads (tiny 3, small 6, base 12)"})
    mlp_ratio: float = field(default=4.0, metadata={"help": "hidden width of a block's MLP over its width"})

    masking: str = field(default="cluster", metadata={"help": "cluster (patches), random (frames), time or frequency"})
    mask_ratio: float = field(default=0.78125, metadata={"help": "hidden share of the tokens (400 of 512)"})
    bf16: bool = field(
        default=False,
        metadata={
            "help": "matrix work in bfloat16; weights, optimizer, residual stream, norms and loss stay in float32"
        },
    )
