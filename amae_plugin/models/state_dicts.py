"""Names and sizes in the state dicts of published checkpoints."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from amae_plugin.models.settings import PretrainingConfig
from amae_plugin.modules.embedding import GridPositions, Size2d, grid_size

Sizes = dict[str, Any]
"""Fields of a config."""
HEAD_WIDTH = 64
"""Width of an attention head in every published encoder; a state dict does not show it."""
LARGEST = 100_000_000
"""Bound of every size in a model's settings, far beyond those of any model."""
_MOST_PREFIX_TOKENS = 8
_DECODER_WIDTH, _DECODER_HEADS = 512, 16  # width and attention heads of every published decoder of MAE's form


def count_blocks(state_dict: Mapping[str, Tensor], prefix: str) -> int:
    """Count the blocks whose parameters are called ``<prefix><number>.<rest>``."""
    return len({name[len(prefix) :].split(".")[0] for name in state_dict if name.startswith(prefix)})


def count_heads(width: int, num_heads: int | None = None) -> int:
    """Return the known number of attention heads, else the number of heads of width 64.

    Raises:
        ValueError: the number is unknown and 64 does not divide the width.
    """
    if num_heads:
        return num_heads
    if width % HEAD_WIDTH:
        raise ValueError(
            f"the weights do not show the number of attention heads, and a width of {width} is not a multiple of "
            f"{HEAD_WIDTH}, the usual width of a head: give --num-heads, or for a decoder --decoder-num-heads"
        )
    return width // HEAD_WIDTH


def mlp_ratio(hidden: int, width: int) -> float:
    """Return the ratio from which a block computes exactly this hidden width of its MLP.

    Raises:
        ValueError: the width is 0.
    """
    if not width:
        raise ValueError("its tensors show a width of 0")
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def transformer_sizes(state: Mapping[str, Tensor], prefix: str, num_heads: int | None) -> Sizes:
    """Read the fields of a config that describe the transformer of an encoder with timm's names."""
    hidden, width = state[f"{prefix}blocks.0.mlp.fc1.weight"].shape
    return {
        "embed_dim": width,
        "depth": count_blocks(state, f"{prefix}blocks."),
        "num_heads": count_heads(width, num_heads),
        "mlp_ratio": mlp_ratio(hidden, width),
    }


def square_side(table: Tensor, prefix: int) -> int:
    """Return the side of the square grid of an image's position table (1, prefix + side x side, D).

    Raises:
        ValueError: the positions are not those of a square image with that many class tokens.
    """
    side = math.isqrt(max(0, table.shape[1] - prefix))
    if side == 0 or side**2 + prefix != table.shape[1]:
        raise ValueError(f"{table.shape[1]} positions are not those of a square image and {prefix} class tokens")
    return side


def is_sincos(table: Tensor, grid: Size2d) -> bool:
    """Whether a position table (1, 1 + rows x columns, D) is MAE's of sines and cosines, row by row, CLS first."""
    try:
        positions = GridPositions(grid, table.shape[-1])
        positions.load_state_dict({"pos_embed": table})
    except (ValueError, RuntimeError):  # another width or another number of positions
        return False
    return positions.is_sincos


def has_rows_of_bands(state: Mapping[str, Tensor], num_mel_bins: int) -> bool:
    """Whether an encoder's positions are MAE's of a picture whose rows are the patches of so many bands."""
    kernel, table = state.get("patch_embed.proj.weight"), state.get("pos_embed")
    if kernel is None or table is None or kernel.dim() != 4 or table.dim() != 3:
        return False
    rows = num_mel_bins // max(1, kernel.shape[2])
    return rows > 0 and is_sincos(table, (rows, (table.shape[1] - 1) // rows))


def check_sizes(config: PretrainingConfig, state: Mapping[str, Tensor]) -> None:
    """Compare the sizes in a system's settings with weights under this package's names, of any model with its encoder.

    Raises:
        ValueError: a size is not that of the weights, or the heads do not divide a width.
    """
    for key, value in vars(config).items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, (int, float)) and number > LARGEST:
                raise ValueError(f"model.{key} is {value}, more than {LARGEST:,}")
    for part, prefix in (("encoder.", ""), ("decoder.", "decoder_")):
        layer = state.get(f"{part}blocks.0.mlp.fc1.weight")
        depth = count_blocks(state, f"{part}blocks.")
        if layer is None or layer.dim() != 2:
            if not prefix and config.depth:
                raise ValueError(f"Missing weights: {part}blocks.0.mlp.fc1.weight")
            continue
        hidden, width = layer.shape
        for key, found in ((f"{prefix}embed_dim", width), (f"{prefix}depth", depth)):
            if (value := getattr(config, key, found)) != found:
                raise ValueError(f"model.{key} is {value}, but the weights have {found}")
        ratio = getattr(config, f"{prefix}mlp_ratio", config.mlp_ratio)
        if int(width * ratio) != hidden:
            raise ValueError(f"model.mlp_ratio is {ratio}, but the weights of the {part[:-1]} have {hidden / width:g}")
        heads = getattr(config, f"{prefix}num_heads", 1)
        if heads < 1 or width % heads:
            raise ValueError(f"model.{prefix}num_heads is {heads}, which does not divide the width, {width}")
    kernel, table = state.get("encoder.patch_embed.proj.weight"), state.get("encoder.positions.pos_embed")
    patch, length = config.patch_size, getattr(config, "input_length", None)
    if kernel is not None and kernel[:1].numel() != math.prod(patch):
        raise ValueError(f"model.patch_size is {patch}, but the weights have patches of {kernel[:1].numel()} values")
    if table is not None and table.dim() == 3 and length is not None:
        patches = math.prod(grid_size(length, config.num_mel_bins, patch, getattr(config, "patch_stride", None)))
        if not 0 <= table.shape[1] - patches <= _MOST_PREFIX_TOKENS:
            raise ValueError(
                f"model.input_length is {length} and model.num_mel_bins {config.num_mel_bins}, which makes {patches:,} "
                f"patches, but the weights have {table.shape[1]:,} positions"
            )
    side, pixels = getattr(config, "image_size", None), getattr(config, "image_patch_size", 1)
    table = state.get("encoder.image.positions.pos_embed")
    if side is not None and table is not None and table.dim() == 3 and table.shape[1] != 1 + (side // pixels) ** 2:
        raise ValueError(
            f"model.image_size is {side} and model.image_patch_size {pixels}, which makes {(side // pixels) ** 2:,} "
            f"patches, but the weights have {table.shape[1] - 1:,} positions of the image"
        )


def turn_positions(table: Tensor, prefix: int, bands: int) -> Tensor:
    """Turn a table (1, prefix + bands x time, D) of positions that run band by band to time-major order."""
    first, tokens = table.tensor_split([prefix], dim=1)
    return torch.cat([first, tokens.unflatten(1, (bands, -1)).transpose(1, 2).flatten(1, 2)], dim=1)


def count_steps(table: Tensor, prefix: int, bands: int, patch_frequency: int) -> int:
    """Count the patches in time of a position table (1, prefix + L, D), in whatever order its patches come.

    Raises:
        ValueError: the table does not have whole time steps of so many bands.
    """
    positions, in_step = table.shape[1] - prefix, bands // patch_frequency
    if not in_step or positions % in_step:
        raise ValueError(
            f"{positions} positions are not those of {bands} bands in patches of {patch_frequency}, {in_step} to a "
            "time step; give --num-mel-bins"
        )
    return positions // in_step


def decoder_sizes(state: Mapping[str, Tensor], num_heads: int | None) -> Sizes:
    """Read the sizes of MAE's decoder under its published names; one of the published width has the published heads."""
    width = len(state["decoder_embed.weight"])
    if num_heads is None and width == _DECODER_WIDTH:
        num_heads = _DECODER_HEADS
    return {
        "decoder_embed_dim": width,
        "decoder_depth": count_blocks(state, "decoder_blocks."),
        "decoder_num_heads": count_heads(width, num_heads),
    }
