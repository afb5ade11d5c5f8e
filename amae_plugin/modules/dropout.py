"""Dropout, on its own and inside attention, in a form that costs little on a CPU; elsewhere it is PyTorch's own.

On a CPU, PyTorch's dropout draws a number of its generator for every element, one after the other in compiled code,
and its attention has no fused form with dropout, so all attention weights of a batch are written to memory several
times and kept. In a training step of MAE-AST that is a quarter of the time.

Letters in shapes: B clips, H heads, L tokens, C width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_BITS = 16
_SCORES_AT_A_TIME = 2**18
"""Scores that a thread works on at a time: one MiB, which stays in its cache."""


class Dropout(nn.Module):
    """The function of PyTorch's dropout; on a CPU, the probability is rounded to a multiple of 2^-16."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
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
    heads, _, width = query.shape[1:]
    bias = None
    if padding_mask is not None:
        bias = torch.zeros(padding_mask.shape).masked_fill(padding_mask, -torch.inf).repeat_interleave(heads, dim=0)
    query, key, value = (x.flatten(0, 1) for x in (query * width**-0.5, key, value))
    kept = random_kept((*query.shape[:2], key.shape[1]), dropout)
    return dropout_attention(query, key, value, bias, kept, _scale(dropout))[0].unflatten(0, (-1, heads))


# The operators below are opaque to the compiler, which would draw numbers one by one and unroll the loops.
@torch.library.custom_op("amae::random_kept", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def random_kept(shape: Sequence[int], p: float) -> Tensor:
    """Which elements stay, each with probability 1 - p: bool of that shape, on the CPU.

    Four elements share one 64-bit draw of PyTorch's generator.
    """
    count = math.prod(shape)
    words = torch.empty(-(-count * _BITS // 64), dtype=torch.int64).random_(-(2**63), None)
    return (words.view(torch.int16)[:count] >= _dropped(p) - 2 ** (_BITS - 1)).view(shape)


@random_kept.register_fake
def _(shape: Sequence[int], p: float) -> Tensor:
    return torch.empty(shape, dtype=torch.bool)


@torch.library.custom_op("amae::dropout_attention", mutates_args=())
def dropout_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Optional[Tensor], kept: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention in N heads of any clips, a few heads at a time, so that scores stay in the cache.

    Args:
        query: (N, L, C), already divided by the square root of C.
        key: (N, L, C).
        value: (N, L, C).
        bias: (N, L) added to the scores of every query; none if None.
        kept: (N, L, L) bool, False = attention weights that become 0.
        scale: factor of the others.

    Returns:
        (N, L, C), and the logarithm of each query's sum of exponential scores (N, L, 1), float32.
    """
    output = torch.empty_like(query)
    log_sums = query.new_empty((*query.shape[:2], 1), dtype=torch.float32)
    for part in _parts(kept):
        scores = _scores(query[part], key[part], None if bias is None else bias[part])
        largest = scores.amax(dim=-1, keepdim=True)
        weights = scores.sub_(largest).exp_()
        sums = weights.sum(dim=-1, keepdim=True)
        weights.mul_(kept[part])
        torch.mul(weights.to(value.dtype) @ value[part], scale / sums, out=output[part])
        torch.add(largest, sums.log(), out=log_sums[part])
    return output, log_sums


@dropout_attention.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, bias: Optional[Tensor], kept: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query), query.new_empty((*query.shape[:2], 1), dtype=torch.float32)


@torch.library.custom_op("amae::dropout_attention_backward", mutates_args=())
def dropout_attention_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Optional[Tensor],
    kept: Tensor,
    scale: float,
    output: Tensor,
    log_sums: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values. The attention weights are computed again, as in FlashAttention (2022)."""
    gradients = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    centres = (gradient * output).sum(dim=-1, keepdim=True, dtype=torch.float32)
    for part in _parts(kept):
        of_query, of_key, of_value = (x[part] for x in gradients)
        factors = kept[part].float()
        weights = _scores(query[part], key[part], None if bias is None else bias[part]).sub_(log_sums[part]).exp_()
        scaled = gradient[part] * scale
        torch.bmm((weights * factors).to(value.dtype).transpose(1, 2), scaled, out=of_value)
        of_scores = (scaled @ value[part].transpose(1, 2)).float().mul_(factors).sub_(centres[part]).mul_(weights)
        of_scores = of_scores.to(query.dtype)
        torch.bmm(of_scores, key[part], out=of_query)
        torch.bmm(of_scores.transpose(1, 2), query[part], out=of_key)
    return gradients


@dropout_attention_backward.register_fake
def _(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Optional[Tensor],
    kept: Tensor,
    scale: float,
    output: Tensor,
    log_sums: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, bias, kept, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, bias, kept, *output)


def _differentiate(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, bias, kept, output, log_sums = ctx.saved_tensors
    gradients = dropout_attention_backward(gradient, query, key, value, bias, kept, ctx.scale, output, log_sums)
    return (*gradients, None, None, None)


dropout_attention.register_autograd(_differentiate, setup_context=_save)


def _parts(kept: Tensor) -> Iterator[slice]:
    heads = max(1, _SCORES_AT_A_TIME * torch.get_num_threads() // (kept.shape[1] * kept.shape[2]))
    return (slice(first, first + heads) for first in range(0, len(kept), heads))


def _scores(query: Tensor, key: Tensor, bias: Optional[Tensor]) -> Tensor:
    scores = (query @ key.transpose(1, 2)).float()
    return scores if bias is None else scores.add_(bias[:, None])


def _dropped(p: float) -> int:
    return min(round(p * 2**_BITS), 2**_BITS - 1)


def _scale(p: float) -> float:
    return 2**_BITS / (2**_BITS - _dropped(p))
