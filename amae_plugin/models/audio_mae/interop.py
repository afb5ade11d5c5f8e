"""The published Audio-MAE's parameter names and this package's; and those of the image MAE that it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from amae_plugin.models import state_dicts
from amae_plugin.models.audio_mae.config import AudioMAEConfig
from amae_plugin.models.audio_mae.encoder import AudioMAEEncoder
from amae_plugin.models.audio_mae.model import AudioMAE
from amae_plugin.models.classifier import Classifier, ClassifierConfig
from amae_plugin.modules.positions import GridPositions

# Official name pattern -> ours; the first that matches counts.
RENAMES = (
    (r"^pos_embed$", r"encoder.positions.pos_embed"),
    (r"^decoder_pos_embed$", r"decoder.positions.pos_embed"),
    (r"^mask_token$", r"decoder.mask_token"),
    (r"^decoder_(embed|blocks|norm|pred)\.", r"decoder.\1."),
    (r"^(cls_token|patch_embed|blocks|norm)\b", r"encoder.\1"),
)
DECODER = ("decoder_", "mask_token")
"""How the official names of the decoder's parameters begin."""

_DECODER_WIDTH, _DECODER_HEADS = 512, 16  # of every published model


def from_official(
    state_dict: Mapping[str, Tensor],
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
    **config: Any,
) -> AudioMAE:
    """An :class:`AudioMAE` with the weights and sizes of a published state dict.

    Args:
        state_dict: pretraining weights under the official names.
        num_heads: see :func:`encoder_sizes`.
        decoder_num_heads: see :func:`decoder_sizes`.
        config: further fields of :class:`AudioMAEConfig`, for instance ``norm_pix_loss``, or an ``input_length`` that
            fits a position table of another length than that of 128 bands.

    Raises:
        KeyError: a tensor that tells a size is missing.
        ValueError: the sizes are not to be told.
        RuntimeError: a tensor is missing or has no place (PyTorch's own message names them).
    """
    bands = config.get("num_mel_bins", AudioMAEConfig.num_mel_bins)
    sizes = {**encoder_sizes(state_dict, bands, num_heads), **decoder_sizes(state_dict, decoder_num_heads)}
    model = AudioMAE(AudioMAEConfig(**{**sizes, **config}))
    model.load_state_dict(convert(state_dict))
    return model


def classifier_from_official(
    state_dict: Mapping[str, Tensor], num_heads: int | None = None, **config: Any
) -> Classifier:
    """A :class:`Classifier` with the weights and sizes of a published fine-tuned state dict.

    Args:
        state_dict: fine-tuned weights under the official names.
        num_heads: see :func:`encoder_sizes`.
        config: further fields of :class:`ClassifierConfig`, for instance ``drop_path``.

    Raises:
        KeyError: a tensor that tells a size is missing.
        ValueError: the sizes are not to be told.
        RuntimeError: a tensor is missing or has no place (PyTorch's own message names them).
    """
    sizes = classifier_sizes(state_dict, AudioMAEConfig.num_mel_bins, num_heads)
    model = Classifier(ClassifierConfig(**{**sizes, **config}))
    model.load_state_dict(convert(state_dict))
    return model


def convert(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """This package's state dict of an official one; names that nothing matches are kept as they are."""
    return {rename(name): tensor for name, tensor in state_dict.items()}


def rename(name: str) -> str:
    """This package's name of an official parameter; a name that nothing matches is returned as it is."""
    return state_dicts.rename(name, RENAMES)


def encoder_sizes(state_dict: Mapping[str, Tensor], num_mel_bins: int, num_heads: int | None = None) -> dict[str, Any]:
    """Fields of :class:`AudioMAEConfig` that describe the encoder of an official state dict.

    Args:
        state_dict: weights under the official names.
        num_mel_bins: bands of the input, which a state dict does not tell.
        num_heads: nor this; 64 wide a head if None, as in every published model.

    Raises:
        KeyError: a tensor that tells a size is missing.
        ValueError: the position table is not one of that many bands, or the heads are not to be told.
    """
    width, _, patch_time, patch_frequency = state_dict["patch_embed.proj.weight"].shape
    positions = state_dict["pos_embed"].shape[1] - 1
    columns = num_mel_bins // patch_frequency
    if not columns or positions % columns:
        raise ValueError(
            f"{positions} positions are not those of {num_mel_bins} bands in patches of {patch_frequency}, which come "
            f"in rows of {columns}"
        )
    return {
        **_transformer_sizes(state_dict, num_heads),
        "input_length": positions // columns * patch_time,
        "num_mel_bins": num_mel_bins,
        "patch_size": (patch_time, patch_frequency),
        "embed_dim": width,
    }


def decoder_sizes(state_dict: Mapping[str, Tensor], num_heads: int | None = None) -> dict[str, Any]:
    """Fields of :class:`AudioMAEConfig` that describe the decoder of an official state dict.

    Args:
        state_dict: pretraining weights under the official names.
        num_heads: of a global decoder; if None, 16 where it is 512 wide, as in every published model, else 64 wide a
            head. A local decoder's weights tell theirs.

    Raises:
        KeyError: a tensor that tells a size is missing.
        ValueError: the heads are not to be told, or are others than the weights tell.
    """
    width = state_dict["decoder_embed.weight"].shape[0]
    depth = state_dicts.count_blocks(state_dict, "decoder_blocks.")
    local_blocks = sum(f"decoder_blocks.{i}.attn.tau" in state_dict for i in range(depth))
    if local_blocks:
        heads = len(state_dict["decoder_blocks.0.attn.tau"])
        if num_heads not in (None, heads):
            raise ValueError(f"the weights of its decoder have {heads} heads, not {num_heads}")
        num_heads = heads
    elif num_heads is None and width == _DECODER_WIDTH:
        num_heads = _DECODER_HEADS
    return {
        "decoder": "global" if not local_blocks else "shifted" if local_blocks == depth else "hybrid",
        "decoder_embed_dim": width,
        "decoder_depth": depth,
        "decoder_num_heads": state_dicts.heads_of(width, num_heads),
        "decoder_global_blocks": depth - local_blocks,
    }


def classifier_sizes(
    state_dict: Mapping[str, Tensor], num_mel_bins: int, num_heads: int | None = None
) -> dict[str, Any]:
    """Fields of :class:`ClassifierConfig` that describe a fine-tuned state dict; ``fc_norm`` tells mean pooling.

    Arguments and errors are those of :func:`encoder_sizes`.
    """
    return {
        "encoder": {"_name": "amae_audio_mae", **encoder_sizes(state_dict, num_mel_bins, num_heads)},
        "num_classes": len(state_dict["head.weight"]),
        "pooling": "mean" if "fc_norm.weight" in state_dict else "cls",
    }


def image_sizes(state_dict: Mapping[str, Tensor], num_heads: int | None = None) -> dict[str, Any]:
    """Fields of :class:`AudioMAEConfig` that the encoder of an image MAE, or another ViT, gives to one of audio.

    Raises:
        KeyError: a tensor that tells a size is missing.
        ValueError: the heads are not to be told.
    """
    width, _, patch_time, patch_frequency = state_dict["patch_embed.proj.weight"].shape
    return {
        **_transformer_sizes(state_dict, num_heads),
        "patch_size": (patch_time, patch_frequency),
        "embed_dim": width,
    }


def convert_image(state_dict: Mapping[str, Tensor], encoder: AudioMAEEncoder) -> dict[str, Tensor]:
    """This package's state dict of the encoder of an image MAE (He et al. 2022), for spectrograms.

    The kernel's three colours are summed: it computes on a spectrogram what it computed on a grey image. A fixed
    sine-cosine table of positions is made anew for the grid of the spectrogram, any other is interpolated.

    Args:
        state_dict: of the encoder alone, under the official names.
        encoder: which the weights are meant for.

    Raises:
        ValueError: the positions are not of a square image with a class token.
    """
    state = dict(state_dict)
    if "pos_embed" in state:
        state["pos_embed"] = _image_positions(state["pos_embed"])(encoder.positions.grid)
    if "patch_embed.proj.weight" in state:
        state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].sum(dim=1, keepdim=True)
    return convert(state)


def has_fixed_positions(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether an image model has MAE's sine-cosine positions, not learned ones."""
    try:
        return _image_positions(state_dict["pos_embed"]).is_sincos
    except (KeyError, ValueError):
        return False


def _image_positions(table: Tensor) -> GridPositions:
    side = state_dicts.square_side(table, prefix=1)
    positions = GridPositions((side, side), table.shape[2])
    positions.load_state_dict({"pos_embed": table})
    return positions


def _transformer_sizes(state_dict: Mapping[str, Tensor], num_heads: int | None) -> dict[str, Any]:
    hidden, width = state_dict["blocks.0.mlp.fc1.weight"].shape
    return {
        "depth": state_dicts.count_blocks(state_dict, "blocks."),
        "num_heads": state_dicts.heads_of(width, num_heads),
        "mlp_ratio": state_dicts.mlp_ratio(hidden, width),
    }
