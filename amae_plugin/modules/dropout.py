"""Dropout, as a layer and inside attention, in a form that is fast on a CPU; on other devices it is PyTorch's.

On a CPU, PyTorch's dropout draws the random numbers of the elements one after the other in compiled code. This takes a
quarter of a training step of MAE-AST.

Letters in shapes: B clips, H heads, L tokens, C width of a head.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_BITS = 16
_CHUNK = 2**18  # elements whose random numbers stay in the cache until they are compared


class Dropout(nn.Module):
    """PyTorch's dropout; on a CPU, its probability is rounded to a multiple of 2^-16."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Map a tensor of any shape to the same shape."""
        if not self.training or not self.p or x.device.type != "cpu":
            return F.dropout(x, self.p, self.training)
        return x * random_kept(x.shape, self.p) * _scale(self.p)


def attention(query: Tensor, key: Tensor, value: Tensor, padding_mask: Tensor | None, dropout: float) -> Tensor:
    """Scaled dot-product attention with dropout of the attention weights.

    Args:
        query: (B, H, L, C).
        key: (B, H, L, C).
        value: (B, H, L, C).
        padding_mask: (B, L), True = not attended to.
        dropout: probability in [0, 1); on a CPU it is rounded to a multiple of 2^-16.

    Returns:
        (B, H, L, C).
    """
    if not dropout or query.device.type != "cpu":
        allowed = None if padding_mask is None else ~padding_mask[:, None, None, :]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=dropout)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if padding_mask is not None:
        scores = scores.masked_fill(padding_mask[:, None, None, :], -torch.inf)
    weights = scores.softmax(dim=-1, dtype=torch.float32) * random_kept(scores.shape, dropout) * _scale(dropout)
    return weights.to(value.dtype) @ value


# Opaque to the compiler, whose code would draw the numbers one by one.
@torch.library.custom_op("amae::random_kept", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def random_kept(shape: Sequence[int], p: float) -> Tensor:
    """Draw the elements that dropout keeps, each with probability 1 - p: bool of that shape, on the CPU.

    PyTorch's generator seeds a faster one. Each of its 64-bit numbers serves four elements.
    """
    kept = np.empty(math.prod(shape), dtype=bool)
    generator = np.random.SFC64(int(torch.empty((), dtype=torch.int64).random_()))
    for start in range(0, len(kept), _CHUNK):
        part = kept[start : start + _CHUNK]
        numbers = generator.random_raw(-(-len(part) * _BITS // 64)).view(np.int16)
        np.greater_equal(numbers[: len(part)], np.int16(_dropped(p) - 2 ** (_BITS - 1)), out=part)
    return torch.from_numpy(kept).view(shape)


@random_kept.register_fake
def _(shape: Sequence[int], p: float) -> Tensor:
    return torch.empty(shape, dtype=torch.bool)


def _dropped(p: float) -> int:
    return min(round(p * 2**_BITS), 2**_BITS - 1)


def _scale(p: float) -> float:
    return 2**_BITS / (2**_BITS - _dropped(p))
