"""Sizes and choices of SSAST; the defaults are the paper's base model on patches (Gong et al., AAAI 2022)."""

# Annotations stay objects here, in the typing module's spelling: fairseq reads them when the fields become its options.
from dataclasses import dataclass
from typing import Optional, Tuple

from amae_plugin.models.settings import PretrainingConfig, setting


@dataclass
class SSASTConfig(PretrainingConfig):
    """Architecture of SSAST and of AST.

    The paper's frame model has ``patch_size=(2, 128)`` and ``masking="random"``. Its smaller models are 192 wide with 3
    heads (tiny) and 384 wide with 6 heads (small).
    """

    input_length: int = setting(1024, "frames that the position table covers")
    patch_stride: Optional[Tuple[int, int]] = setting(
        None, "frames and bands from patch to patch; null: the patch; AST fine-tunes patches with 10, 10"
    )

    masking: str = setting("cluster", "cluster (patches), random (frames), ...")
    mask_ratio: float = setting(0.78125, "hidden share (400 of 512; not time_frequency)")
