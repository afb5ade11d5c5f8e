"""Names and sizes in the state dicts of published checkpoints."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Sizes = dict[str, Any]
"""Fields of a config."""
HEAD_WIDTH = 64
"""Width of an attention head in every published encoder; a state dict does not show it."""


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


def turn_positions(table: Tensor, prefix: int, bands: int) -> Tensor:
    """Turn a table (1, prefix + bands x time, D) of positions that run band by band to time-major order."""
    first, tokens = table.tensor_split([prefix], dim=1)
    return torch.cat([first, tokens.unflatten(1, (bands, -1)).transpose(1, 2).flatten(1, 2)], dim=1)
