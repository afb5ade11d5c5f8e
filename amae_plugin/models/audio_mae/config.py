"""Sizes and choices of Audio-MAE; the defaults are the paper's ViT-B (Huang et al., NeurIPS 2022, section 4)."""

# Annotations stay objects here, in the typing module's spelling: fairseq reads them when the fields become its options.
from dataclasses import dataclass
from typing import Tuple

from amae_plugin.models.settings import PretrainingConfig, setting


@dataclass
class AudioMAEConfig(PretrainingConfig):
    """Architecture of Audio-MAE."""

    input_length: int = setting(1024, "frames that the position table covers")

    decoder: str = setting(
        "shifted",
        "attention of the decoder: shifted (local windows), hybrid (local, then global), global, or multi_window "
        "(MW-MAE's, windows of a length for each head; its paper has 4 blocks, 384 wide, of 8 heads)",
    )
    decoder_embed_dim: int = setting(512, "width of the decoder")
    decoder_depth: int = setting(16, "blocks of the decoder (paper: 16 local or 8 global)")
    decoder_num_heads: int = setting(16, "attention heads of the decoder")
    decoder_global_blocks: int = setting(4, "hybrid decoder: number of global blocks, the last ones")
    decoder_window: Tuple[int, int] = setting((4, 4), "local decoder: patches in a window")
    decoder_shift: Tuple[int, int] = setting(
        (2, 0), "local decoder: shift of every second block, in patches (code (2, 0), paper (2, 2))"
    )

    mask_ratio: float = setting(0.8, "hidden share (all masks but time_frequency)")
    norm_pix_loss: bool = setting(True, "targets are normalised patch by patch")
