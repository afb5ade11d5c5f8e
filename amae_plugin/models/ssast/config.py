"""Sizes and choices of SSAST; the defaults are the paper's base model on patches (Gong et al., AAAI 2022)."""

# Annotations stay objects here, in the typing module's spelling: fairseq reads them when the fields become its options.
from dataclasses import dataclass
from typing import Optional, Tuple

from amae_plugin.models.settings import PretrainingConfig, setting


@dataclass
class SSASTConfig(PretrainingConfig):
    """Architecture of SSAST and of AST. Pairs are (time, frequency).

    The paper's frame model has ``patch_size=(2, 128)`` and ``masking="random"``.
    """

    input_length: int = setting(1024, "frames that the position table covers")
    patch_size: Tuple[int, int] = setting((16, 16), "frames and bands of a patch (frame model: 2 and all bands)")
    patch_stride: Optional[Tuple[int, int]] = setting(
        None, "frames and bands from patch to patch; null: the patch; AST fine-tunes patches with 10, 10"
    )

    embed_dim: int = setting(768, "width of the encoder (tiny 192, small 384, base 768)")
    depth: int = setting(12, "blocks of the encoder")
    num_heads: int = setting(12, "attention heads (tiny 3, small 6, base 12)")
    mlp_ratio: float = setting(4.0, "hidden width of a block's MLP over its width")

    masking: str = setting("cluster", "cluster (patches), random (frames), ...")
    mask_ratio: float = setting(0.78125, "hidden share (400 of 512; not time_frequency)")
