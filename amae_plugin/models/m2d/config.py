"""Sizes and choices of M2D; the defaults are the paper's ViT-B (Niizumi et al., TASLP 2024, section IV)."""

# Annotations stay objects here, in the typing module's spelling: fairseq reads them when the fields become its options.
from dataclasses import dataclass
from typing import Optional, Tuple

from amae_plugin.models.settings import PretrainingConfig, setting


@dataclass
class M2DConfig(PretrainingConfig):
    """Architecture and teacher of M2D.

    The model for speech has ``patch_size=(2, 80)`` and ``masking="span"`` of 10 tokens with ``mask_ratio=0.6``.
    """

    input_length: int = setting(608, "frames that the position table covers")
    num_mel_bins: int = setting(80, "mel bands of the input")

    decoder_embed_dim: int = setting(512, "width of the decoder")
    decoder_depth: int = setting(8, "blocks of the decoder")
    decoder_num_heads: int = setting(16, "attention heads of the decoder")

    mask_ratio: float = setting(0.7, "hidden share (all masks but time_frequency)")
    teacher_decay: Tuple[float, float] = setting((0.99995, 0.99999), "decay of the teacher, at first and at last")
    teacher_decay_updates: Optional[int] = setting(None, "update from which the last decay holds; null: the run's last")
