"""Sizes and choices of CAV-MAE; the defaults are the paper's (Gong et al., ICLR 2023)."""

# Annotations stay objects here, in the typing module's spelling: fairseq reads them when the fields become its options.
from dataclasses import dataclass
from typing import Tuple

from amae_plugin.models.settings import MODALITIES, PretrainingConfig, setting

DIRECTIONS = ("image_to_sound", "sound_to_image", "both")


@dataclass
class CAVMAEConfig(PretrainingConfig):
    """Architecture and objectives of CAV-MAE.

    Raises:
        ValueError: a name is unknown, or a number is out of range.
    """

    input_length: int = setting(1024, "frames that the position table covers")
    modalities: Tuple[str, ...] = setting(MODALITIES, "what the model takes of a clip: audio, image or both")
    image_size: int = setting(224, "pixels of either side of the image that the position table covers")
    image_patch_size: int = setting(16, "pixels of either side of a patch of the image")
    shared_depth: int = setting(1, "blocks, the last of depth, that both modalities share; the others are doubled")

    decoder_embed_dim: int = setting(512, "width of the decoder")
    decoder_depth: int = setting(8, "blocks of the decoder")
    decoder_num_heads: int = setting(16, "attention heads of the decoder")

    image_mask_ratio: float = setting(0.75, "hidden share of the image")
    norm_pix_loss: bool = setting(True, "targets are normalised patch by patch")
    contrastive_weight: float = setting(0.01, "weight of the contrastive objective")
    contrastive_temperature: float = setting(0.05, "temperature of its softmax over clips")
    contrastive_direction: str = setting(
        "image_to_sound", "image_to_sound (each image finds its sound, as published), sound_to_image or both (mean)"
    )
    contrastive_all_ranks: bool = setting(False, "it runs over the clips of all devices, not of each (as published)")

    def __post_init__(self) -> None:
        chosen = tuple(name for name in MODALITIES if name in self.modalities)
        if not chosen or len(chosen) != len(self.modalities):
            raise ValueError(
                f"model.modalities is {', '.join(self.modalities) or 'empty'}, must be one or both of "
                f"{', '.join(MODALITIES)}"
            )
        self.modalities = chosen
        for name in ("image_size", "image_patch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} must be at least 1, not {getattr(self, name)}")
        if not 1 <= self.shared_depth <= self.depth:
            raise ValueError(f"model.shared_depth must be 1 to model.depth, {self.depth}, not {self.shared_depth}")
        if not 0 <= self.image_mask_ratio < 1:
            raise ValueError(f"model.image_mask_ratio must be at least 0 and below 1, not {self.image_mask_ratio}")
        if self.contrastive_weight < 0:
            raise ValueError(f"model.contrastive_weight must be at least 0, not {self.contrastive_weight}")
        if self.contrastive_temperature <= 0:
            raise ValueError(f"model.contrastive_temperature must be above 0, not {self.contrastive_temperature}")
        if self.contrastive_direction not in DIRECTIONS:
            raise ValueError(
                f"model.contrastive_direction is {self.contrastive_direction!r}, must be one of {', '.join(DIRECTIONS)}"
            )
