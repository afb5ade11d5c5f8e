"""What the state dicts of published checkpoints have in common, whatever the system."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from torch import Tensor

HEAD_WIDTH = 64
"""Of one attention head in every published encoder; a state dict does not tell."""


def rename(name: str, renames: Sequence[tuple[str, str]]) -> str:
    """This package's name of an official parameter; the first pattern that matches counts, else it stays as it is."""
    for pattern, ours in renames:
        if re.search(pattern, name):
            return re.sub(pattern, ours, name)
    return name


def count_blocks(state_dict: Mapping[str, Tensor], prefix: str) -> int:
    """Blocks whose parameters are called ``<prefix><number>.<rest>``."""
    return len({name[len(prefix) :].split(".")[0] for name in state_dict if name.startswith(prefix)})


def heads_of(width: int, num_heads: int | None = None) -> int:
    """Attention heads: those that are known, else as many as are 64 wide.

    Raises:
        ValueError: none are known and 64 does not divide the width.
    """
    if num_heads:
        return num_heads
    if width % HEAD_WIDTH:
        raise ValueError(
            f"the attention is {width} wide, which heads of {HEAD_WIDTH} do not make up, and the weights do not tell "
            "how many heads there are: give --num-heads, or of a decoder --decoder-num-heads"
        )
    return width // HEAD_WIDTH


def mlp_ratio(hidden: int, width: int) -> float:
    """The ratio from which a block computes exactly that hidden width of its MLP."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def square_side(table: Tensor, prefix: int) -> int:
    """Rows and columns of an image's position table (1, prefix + side x side, D).

    Raises:
        ValueError: the positions are not of a square image with that many class tokens.
    """
    side = math.isqrt(max(0, table.shape[1] - prefix))
    if side == 0 or side**2 + prefix != table.shape[1]:
        raise ValueError(f"{table.shape[1]} positions are not those of a square image and {prefix} class tokens")
    return side
