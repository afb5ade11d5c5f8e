"""Sizes and choices of EAT; the defaults are the published base model's (Chen et al., IJCAI 2024)."""

# Annotations stay objects here, in the typing module's spelling: fairseq reads them when the fields become its options.
from dataclasses import dataclass
from typing import Tuple

from amae_plugin.models.settings import PretrainingConfig, setting


@dataclass
class EATConfig(PretrainingConfig):
    """Architecture, objectives and teacher of EAT.

    Raises:
        ValueError: a number of clones, blocks or groups or a kernel is below 1, or the kernel is even.
    """

    input_length: int = setting(1024, "frames that the position table covers")

    masking: str = setting("inverse_block", "inverse_block (square blocks stay visible), random, chunk, ...")
    mask_ratio: float = setting(0.8, "hidden share (all masks but time_frequency)")
    clones: int = setting(16, "masks under which an update encodes every clip")

    decoder_depth: int = setting(6, "convolutional blocks of the decoder (large: 3)")
    decoder_kernel: int = setting(3, "side of the decoder's kernels in patches, odd (large: 5)")
    decoder_groups: int = setting(16, "groups of the decoder's convolutions, or as many as divide the width")
    decoder_noise_std: float = setting(0.01, "standard deviation of the noise in place of hidden patches, in training")

    mixtures: bool = setting(
        False, "SSLAM's second stage: of each clip, encode also a mixture with the one before it in a device's batch"
    )

    utterance_weight: float = setting(
        192.0,
        "weight of the utterance loss, a mean (published: a sum over the clones of a GPU's clips, so 16 x 12 times it)",
    )

    teacher_decay: Tuple[float, float] = setting((0.9998, 0.99999), "decay of the teacher, from the start to the end")
    teacher_decay_updates: int = setting(100_000, "updates from the one to the other (large: 150,000)")

    def __post_init__(self) -> None:
        for name in ("clones", "decoder_depth", "decoder_kernel", "decoder_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} must be at least 1, not {getattr(self, name)}")
        if self.decoder_kernel % 2 == 0:
            raise ValueError(f"model.decoder_kernel must be odd, not {self.decoder_kernel}")
