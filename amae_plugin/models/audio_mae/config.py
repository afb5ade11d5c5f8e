"""Sizes and choices of Audio-MAE; the defaults are the paper's ViT-B (Huang et al., NeurIPS 2022, section 4)."""

# Annotations stay objects here, in the typing module's spelling: fairseq reads them when the fields become its options.
from dataclasses import dataclass, field
from typing import Tuple

from amae_plugin.models.settings import PretrainingConfig


@dataclass
class AudioMAEConfig(PretrainingConfig):
    """Architecture of Audio-MAE. Pairs are (time, frequency)."""

    input_length: int = field(default=1024, metadata={"help": "frames that the position table covers"})

    decoder: str = field(
        default="shifted",
        metadata={"help": "attention of the decoder: shifted (local windows), hybrid (local, then global) or global"},
    )
    decoder_embed_dim: int = field(default=512, metadata={"help": "width of the decoder"})
    decoder_depth: int = field(default=16, metadata={"help": "blocks of the decoder (paper: 16 local or 8 global)"})
    decoder_num_heads: int = field(default=16, metadata={"help": "attention heads of the decoder"})
    decoder_global_blocks: int = field(
        default=4, metadata={"help": "hybrid decoder: number of global blocks, the last ones"}
    )
    decoder_window: Tuple[int, int] = field(default=(4, 4), metadata={"help": "local decoder: patches in a window"})
    decoder_shift: Tuple[int, int] = field(
        default=(2, 0),
        metadata={"help": "local decoder: shift of every second block, in patches (code (2, 0), paper (2, 2))"},
    )

    mask_ratio: float = field(default=0.8, metadata={"help": "hidden share (all masks but time_frequency)"})
    norm_pix_loss: bool = field(default=True, metadata={"help": "targets are normalised patch by patch"})
