"""Cosine attention inside windows on a GPU: one Triton kernel each way, for ``cosine_attention`` on many small windows.

As separate operations, the scores and weights of 4 x 4 patches are matrices too small for a GPU, which spends its time
on starting and storing them. A kernel keeps those of a window and a head in registers.

Letters in shapes: N windows of all clips, W of one clip, S tokens in a window, H heads, C width of a head, D = H C.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_SMALLEST_NORMS = tl.constexpr(1e-6)
_BACKWARD_PROGRAMS = 512  # for each head; each adds up the gradients of its windows' biases


@triton.jit
def _scores(query, key, scale, bias, separation, precision: tl.constexpr):
    """Return cosines, norms of the products (S, S), squared norms of queries (S, 1) and keys (1, S), and weights."""
    squared_query = tl.sum(query.to(tl.float32) * query.to(tl.float32), axis=1)[:, None]
    squared_key = tl.sum(key.to(tl.float32) * key.to(tl.float32), axis=1)[None, :]
    norms = tl.sqrt(squared_query) * tl.sqrt(squared_key)
    cosines = tl.dot(query, tl.trans(key), input_precision=precision) / tl.maximum(norms, _SMALLEST_NORMS)
    scores = cosines * scale + bias + separation
    weights = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    return cosines, norms, squared_query, squared_key, weights / tl.sum(weights, axis=1)[:, None]


@triton.jit
def _forward(
    qkv, scale, bias, separation, output, windows,
    heads: tl.constexpr, length: tl.constexpr, width: tl.constexpr, separated: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    window, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    token, value = tl.arange(0, length), tl.arange(0, width)
    pair = token[:, None] * length + token[None, :]
    rows = (window * length + token[:, None]).to(tl.int64)  # products of rows may exceed 32 bits
    place = rows * (3 * heads * width) + head * width + value[None, :]
    apart = tl.load(separation + (window % windows) * length * length + pair) if separated else 0.0
    scale_here, bias_here = tl.load(scale + head), tl.load(bias + head * length * length + pair)
    query, key = tl.load(qkv + place), tl.load(qkv + place + heads * width)
    values = tl.load(qkv + place + 2 * heads * width)
    weights = _scores(query, key, scale_here, bias_here, apart, precision)[4]
    mixed = tl.dot(weights.to(values.dtype), values, input_precision=precision)
    tl.store(output + rows * (heads * width) + head * width + value[None, :], mixed.to(values.dtype))


@triton.jit
def _backward(
    qkv, scale, bias, separation, gradient, of_qkv, of_scale, of_bias, windows, total,
    heads: tl.constexpr, length: tl.constexpr, width: tl.constexpr, separated: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    program, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    token, value = tl.arange(0, length), tl.arange(0, width)
    pair = token[:, None] * length + token[None, :]
    scale_here, bias_here = tl.load(scale + head), tl.load(bias + head * length * length + pair)
    bias_sum = tl.zeros((length, length), tl.float32)
    scale_sum = tl.zeros((length, length), tl.float32)
    for window in range(program, total, tl.num_programs(0) // heads):
        rows = (window * length + token[:, None]).to(tl.int64)
        place = rows * (3 * heads * width) + head * width + value[None, :]
        query, key = tl.load(qkv + place), tl.load(qkv + place + heads * width)
        values = tl.load(qkv + place + 2 * heads * width)
        apart = tl.load(separation + (window % windows) * length * length + pair) if separated else 0.0
        cosines, norms, squared_query, squared_key, weights = _scores(
            query, key, scale_here, bias_here, apart, precision
        )
        mixed = tl.load(gradient + rows * (heads * width) + head * width + value[None, :])
        of_values = tl.dot(tl.trans(weights).to(mixed.dtype), mixed, input_precision=precision)
        of_weights = tl.dot(mixed, tl.trans(values), input_precision=precision)
        of_scores = weights * (of_weights - tl.sum(weights * of_weights, axis=1)[:, None])
        bias_sum += of_scores
        scale_sum += of_scores * cosines
        of_products = of_scores * scale_here / tl.maximum(norms, _SMALLEST_NORMS)
        of_norms = tl.where(norms > _SMALLEST_NORMS, of_scores * scale_here * cosines, 0.0)
        along_query = tl.sum(of_norms, axis=1)[:, None] / tl.maximum(squared_query, _SMALLEST_NORMS * _SMALLEST_NORMS)
        along_key = tl.sum(of_norms, axis=0)[None, :] / tl.maximum(squared_key, _SMALLEST_NORMS * _SMALLEST_NORMS)
        of_products = of_products.to(query.dtype)
        of_query = tl.dot(of_products, key, input_precision=precision) - along_query * query.to(tl.float32)
        of_key = tl.dot(tl.trans(of_products), query, input_precision=precision)
        of_key -= tl.trans(along_key) * key.to(tl.float32)
        tl.store(of_qkv + place, of_query.to(query.dtype))
        tl.store(of_qkv + place + heads * width, of_key.to(query.dtype))
        tl.store(of_qkv + place + 2 * heads * width, of_values.to(query.dtype))
    partial = program * heads + head
    tl.store(of_bias + partial * length * length + pair, bias_sum)
    tl.store(of_scale + partial, tl.sum(tl.sum(scale_sum, axis=1), axis=0))


def forward(qkv: Tensor, scale: Tensor, bias: Tensor, separation: Tensor | None) -> Tensor:
    """Attend inside windows.

    Args:
        qkv: (N, S, 3 D), contiguous.
        scale: (H,) float32, inverse temperatures.
        bias: (H, S, S) float32, to add to the scores.
        separation: (W, S, S) float32, to add as well; N is a multiple of W.

    Returns:
        (N, S, D).
    """
    output = qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3)
    sizes, windows = _sizes(qkv, scale, separation)
    _forward[(len(qkv) * len(scale),)](qkv, scale, bias, separation, output, windows, **sizes, num_warps=1)
    return output


def backward(
    gradient: Tensor, qkv: Tensor, scale: Tensor, bias: Tensor, separation: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of ``qkv``, ``scale`` and ``bias`` from that of the result (N, S, D), contiguous."""
    programs, heads, length = min(len(qkv), _BACKWARD_PROGRAMS), len(scale), qkv.shape[1]
    of_qkv = torch.empty_like(qkv)
    of_scale, of_bias = scale.new_empty(programs, heads), bias.new_empty(programs, heads, length, length)
    sizes, windows = _sizes(qkv, scale, separation)
    arguments = (qkv, scale, bias, separation, gradient, of_qkv, of_scale, of_bias, windows, len(qkv))
    _backward[(programs * heads,)](*arguments, **sizes, num_warps=1)
    return of_qkv, of_scale.sum(dim=0), of_bias.sum(dim=0)


def _sizes(qkv: Tensor, scale: Tensor, separation: Tensor | None) -> tuple[dict[str, object], int]:
    """Return the kernels' constants and W."""
    heads = len(scale)
    sizes: dict[str, object] = {"heads": heads, "length": qkv.shape[1], "width": qkv.shape[2] // 3 // heads}
    sizes["separated"] = separation is not None
    sizes["precision"] = "ieee" if qkv.dtype == torch.float32 else "tf32"  # which is of float32 alone
    return sizes, 1 if separation is None else len(separation)
