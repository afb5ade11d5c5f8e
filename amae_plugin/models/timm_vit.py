"""Encoders as timm's Vision Transformers: entry point, arguments and weights under timm's names."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from amae_plugin.errors import UserError
from amae_plugin.models.base import Encoder
from amae_plugin.models.settings import Settings
from amae_plugin.models.state_dicts import Sizes, mlp_ratio
from amae_plugin.modules.embedding import Size2d

# Entry points of timm, which take every size as an argument.
VIT = "vit_base_patch16_224"
DEIT = "deit_base_distilled_patch16_224"
# timm's global_pool and fc_norm by a classifier's pooling; all else averages the normalised patches.
_POOLINGS = {"mean": ("avg", True), "cls": ("token", False), "avgcls": ("token", False)}
_MEAN_OF_NORMALISED = ("avg", False)


@dataclass(frozen=True)
class TimmVit:
    """Vision Transformer of timm. Its image is the spectrogram: rows are frames, columns are bands.

    Attributes:
        architecture: timm's entry point.
        arguments: keyword arguments of the entry point.
        state: weights.
        stride: rows and columns from one patch to the next if patches overlap, which they never do in timm.
        head: weights of a ``Sequential(LayerNorm, Linear)`` that classifies the features. AST's poolings need it, since
            timm has no norm after the pooling in addition to the one before it.
    """

    architecture: str
    arguments: Settings
    state: Mapping[str, Tensor]
    stride: Size2d | None = None
    head: Mapping[str, Tensor] = field(default_factory=dict)


def encoder_weights(encoder: Encoder) -> dict[str, Tensor]:
    """Return the weights of an encoder without its positions; their names are timm's."""
    return {name: value for name, value in encoder.state_dict().items() if not name.startswith("positions.")}


def vit_arguments(encoder: Encoder, image: Size2d, pooling: str | None) -> Sizes:
    """Return the arguments of timm's Vision Transformer for an image of (frames, bands) and a classifier's pooling.

    Raises:
        UserError: timm has no such pooling.
    """
    if pooling == "time_concat" and encoder.num_bands > 1:
        raise UserError("timm has no pooling that keeps the bands of a time step side by side; export it as ONNX")
    hidden, width = encoder.get_parameter("blocks.0.mlp.fc1.weight").shape
    global_pool, fc_norm = _POOLINGS.get(pooling or "", _MEAN_OF_NORMALISED)
    return {
        "img_size": list(image),
        "patch_size": list(encoder.patch_size),
        "in_chans": 1,
        "num_classes": 0,
        "embed_dim": width,
        "depth": len(encoder.blocks),
        "num_heads": encoder.num_heads,
        "mlp_ratio": mlp_ratio(hidden, width),
        "global_pool": global_pool,
        "fc_norm": fc_norm,
    }
