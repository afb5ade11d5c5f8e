"""Multi-window attention: every head attends inside windows of its own length along the sequence of tokens.

Letters in shapes: B clips, L tokens, D width, H heads.
"""

from __future__ import annotations

import functools
import operator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from amae_plugin.modules.blocks import Attention, Block, split_heads


class MultiWindowAttention(Attention):
    """Self-attention with a window length for each head and learned relative positions inside windows.

    As in MW-MAE (Yadav et al. 2024, section 3), windows follow each other without shift. Heads that see all tokens have
    no relative positions. The last window of a head may be cut by the end of the sequence.

    Args:
        dim: D.
        windows: length in tokens of each head's windows; 0: all tokens.
    """

    def __init__(self, dim: int, windows: tuple[int, ...]):
        super().__init__(dim, len(windows))
        self.windows = windows
        self.relative = nn.Parameter(torch.empty(sum(max(0, 2 * window - 1) for window in windows)))
        nn.init.trunc_normal_(self.relative, std=0.02)
        # The compiler ignores the cache, and would compute the entries in every pass. It is told here, where they are
        # needed, since its import takes a second.
        torch.compiler.assume_constant_result(_entries)

    @override
    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        batch, length, dim = x.shape
        query, key, value = split_heads(self.qkv(x), self.num_heads)
        # Filled there: numbers that come from the CPU would make it wait for a GPU in every block.
        table = torch.cat([self.relative, *(self.relative.new_full((1,), value) for value in (0.0, -torch.inf))])
        # The index is a number in compiled code too, which is compiled for each length.
        bias = table[_entries(self.windows, operator.index(length), x.device)].to(query.dtype)
        if padding_mask is not None:
            # Not minus infinity, so that windows of nothing but padding give no NaN.
            bias = bias.masked_fill(padding_mask[:, None, None, :], torch.finfo(bias.dtype).min)
        x = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.proj(x.transpose(1, 2).reshape(batch, length, dim))


class MultiWindowBlock(Block):
    """ViT's block with multi-window attention, whose windows suit a number of tokens."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, num_tokens: int):
        super().__init__(dim, num_heads, mlp_ratio)
        self.attn = MultiWindowAttention(dim, windows_of_heads(num_heads, num_tokens))


def windows_of_heads(num_heads: int, length: int) -> tuple[int, ...]:
    """Choose the windows of the heads for a number of tokens.

    A quarter of the heads see all tokens. The others have windows that divide the tokens, from the smallest divisor to
    the largest. For 8 heads and 250 tokens these are MW-MAE's: 2, 5, 10, 25, 50, 125 and twice all.
    """
    divisors = [size for size in range(2, length) if length % size == 0]
    windowed = num_heads - max(1, num_heads // 4) if divisors else 0
    chosen = torch.linspace(0, len(divisors) - 1, windowed).round().int().tolist()
    return tuple(divisors[index] for index in chosen) + (0,) * (num_heads - windowed)


def _entries(windows: tuple[int, ...], length: int, device: torch.device) -> Tensor:
    """Return the entry (H, L, L) of every pair of tokens in a table of relative positions.

    The table holds the 2 window - 1 distances of each windowed head, then 0, then minus infinity.
    """
    return _cached_entries(windows, length, device)


@functools.lru_cache(maxsize=32)
def _cached_entries(windows: tuple[int, ...], length: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # training must be able to use entries made during inference
        sizes = torch.tensor(windows)[:, None, None]
        distances = (2 * sizes - 1).clamp(min=0)
        total = sum(max(0, 2 * window - 1) for window in windows)
        places = torch.arange(length)
        distance = places[:, None] - places
        first = distances.cumsum(0) - distances
        inside = (places[:, None] // sizes.clamp(min=1)) == (places // sizes.clamp(min=1))
        entries = torch.where(inside, first + sizes - 1 + distance, total + 1)
        return entries.masked_fill(sizes == 0, total).to(device)
