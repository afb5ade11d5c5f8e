"""Local attention: windows of neighbouring patches, shifted or not, on any grid, and blocks that attend inside them.

Letters in shapes: B clips, L tokens, D width, H heads, C = D / H, W windows of one clip, S tokens in a window.

A local decoder computes on tokens in *window order*, in which the tokens of a window are adjacent. Only attention then
deals with windows, and one permutation leads from the windows of a block to those of the next.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._triton import has_triton_package

from amae_plugin.modules.blocks import Linear, Mlp, check_heads, split_heads
from amae_plugin.modules.embedding import Size2d

SEPARATION = -100.0
"""Score added to a pair of tokens that share a window but are not neighbours, as in the published code (Swin)."""

_LOWEST_TEMPERATURE = 0.01
_META_DROPOUT = 0.1  # dropout of the relative position bias
_PADDING = 2  # region of the padding along a side, the last


@dataclass(frozen=True)
class WindowPlan:
    """Division of a grid into the windows of a block.

    Attributes:
        order: (W * S,) token of the padded grid at each place of the window order.
        window_length: S.
        distances: (S * S, 2) log-spaced distances in time and frequency between the tokens of a window.
        separation: (W, S, S) scores to add: 0, -100 or, for padding, minus infinity; None if no tokens are separated.
    """

    order: Tensor
    window_length: int
    distances: Tensor
    separation: Tensor | None


class WindowAttention(nn.Module):
    """Scaled cosine attention inside windows with log-spaced continuous relative positions (Swin V2, section 3).

    As in Audio-MAE's code, scores are cosines divided by a learned temperature per head, ``max(tau, 0.01)``, plus a
    bias that a small MLP computes from sign(d) log(1 + |d|), d being the distance in time and frequency.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)
        self.tau = nn.Parameter(torch.ones(num_heads))
        self.meta_mlp = MetaMlp(num_heads)

    def forward(self, x: Tensor, plan: WindowPlan) -> Tensor:
        """Map tokens in window order (B, W * S, D) to the same shape."""
        batch, length, dim = x.shape
        bias = self.meta_mlp(plan.distances).T.reshape(-1, plan.window_length, plan.window_length)  # (H, S, S)
        windows = self.qkv(x).view(-1, plan.window_length, 3 * dim)
        if _has_kernels(windows, self.num_heads):
            scale = 1 / self.tau.clamp(min=_LOWEST_TEMPERATURE)
            x = attend_in_windows(windows, scale, bias.float(), plan.separation)
        else:
            query, key, value = split_heads(windows, self.num_heads)
            x = cosine_attention(query, key, value, self.tau, bias, plan.separation)
        return self.proj(x.reshape(batch, length, dim))


class MetaMlp(nn.Module):
    """Relative position bias of every head from a log-spaced distance in time and frequency."""

    def __init__(self, num_heads: int, hidden_dim: int = 384):
        super().__init__()
        self.fc1 = nn.Linear(2, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, num_heads)

    def forward(self, distances: Tensor) -> Tensor:
        """Map distances (N, 2) to biases (N, H)."""
        hidden = F.dropout(F.relu(self.fc1(distances)), _META_DROPOUT, self.training)
        return F.dropout(self.fc2(hidden), _META_DROPOUT, self.training)


class WindowBlock(nn.Module):
    """Block of the local decoder: window attention, then an MLP, each with its norm *after* the branch (Swin V2)."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0):
        super().__init__()
        self.attn = WindowAttention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor, plan: WindowPlan) -> Tensor:
        """Map tokens in window order (B, W * S, D) to the same shape."""
        x = x + self.norm1(self.attn(x, plan))
        return x + self.norm2(self.mlp(x))


def cosine_attention(
    query: Tensor, key: Tensor, value: Tensor, tau: Tensor, bias: Tensor, separation: Tensor | None
) -> Tensor:
    """Attend inside windows: query, key and value (B * W, H, S, C) each, to (B * W, S, H, C)."""
    norms = query.norm(dim=-1, keepdim=True) * key.norm(dim=-1).unsqueeze(-2)
    scores = query @ key.transpose(-2, -1) / norms.clamp(min=1e-6)
    scores = scores / tau.clamp(min=_LOWEST_TEMPERATURE)[:, None, None] + bias
    if separation is not None:
        by_clip = scores.unflatten(0, (-1, len(separation)))
        scores = (by_clip + separation[:, None]).flatten(0, 1)
    return (scores.softmax(-1) @ value).transpose(1, 2)


def _has_kernels(windows: Tensor, num_heads: int) -> bool:
    """Whether Triton's kernels take windows (N, S, 3 D): their matrices have powers of two from 16 on as sides."""
    if not windows.is_cuda or windows.dtype == torch.float64 or not has_triton_package():
        return False
    return all(side in (16, 32, 64, 128) for side in (windows.shape[1], windows.shape[2] // 3 // num_heads))


# Opaque to the compiler, as a kernel of PyTorch's own is.
@torch.library.custom_op("amae::attend_in_windows", mutates_args=(), device_types="cuda")
def attend_in_windows(qkv: Tensor, scale: Tensor, bias: Tensor, separation: Tensor | None) -> Tensor:
    """Do what :func:`cosine_attention` does, on a GPU, in one kernel.

    Args:
        qkv: (B * W, S, 3 D), queries, keys and values.
        scale: (H,) float32, inverse temperatures.
        bias: (H, S, S) float32.
        separation: (W, S, S).

    Returns:
        (B * W, S, D).
    """
    from amae_plugin.modules import window_kernels

    return window_kernels.forward(qkv, scale, bias.contiguous(), separation)


@attend_in_windows.register_fake
def _(qkv: Tensor, scale: Tensor, bias: Tensor, separation: Tensor | None) -> Tensor:
    return qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3)


@torch.library.custom_op("amae::attend_in_windows_backward", mutates_args=(), device_types="cuda")
def _gradients(
    gradient: Tensor, qkv: Tensor, scale: Tensor, bias: Tensor, separation: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    from amae_plugin.modules import window_kernels

    return window_kernels.backward(gradient.contiguous(), qkv, scale, bias.contiguous(), separation)


@_gradients.register_fake
def _(
    gradient: Tensor, qkv: Tensor, scale: Tensor, bias: Tensor, separation: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(qkv), torch.empty_like(scale), bias.new_empty(bias.shape)


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return *_gradients(gradient, *ctx.saved_tensors), None  # type: ignore[attr-defined]


attend_in_windows.register_autograd(_backward, setup_context=_save)


def padded_grid(grid: Size2d, window: Size2d) -> Size2d:
    """Enlarge a grid until windows divide it; a window never exceeds the grid."""
    window = _fit(window, grid)
    return -(-grid[0] // window[0]) * window[0], -(-grid[1] // window[1]) * window[1]


def plan_windows(grid: Size2d, window: Size2d, shift: Size2d, device: torch.device) -> WindowPlan:
    """Cut a grid into windows that are cyclically shifted by ``shift`` tokens in time and frequency.

    Tokens that only the cyclic shift brought together are separated from each other, and padding is separated from
    tokens. A side that one window covers is not shifted.
    """
    window = _fit(window, grid)
    shift = (
        0 if window[0] >= grid[0] else shift[0] % window[0],
        0 if window[1] >= grid[1] else shift[1] % window[1],
    )
    rows, columns = padded_grid(grid, window)
    tokens = torch.arange(rows * columns, device=device).view(rows, columns)
    # Tokens see each other inside regions: the parts of the rolled grid that were contiguous before, and the padding.
    row_region = _regions(rows, grid[0], window[0], shift[0], device)
    column_region = _regions(columns, grid[1], window[1], shift[1], device)
    region = row_region[:, None] * (_PADDING + 1) + column_region
    order = _partition(tokens.roll((-shift[0], -shift[1]), (0, 1)), window)
    region = _partition(region, window)
    separated = region[:, :, None] != region[:, None, :]
    # At the lowest temperature, scores differ by more than SEPARATION, so it would let tokens see padding.
    padding = _partition((row_region == _PADDING)[:, None] | (column_region == _PADDING), window)
    at_edge = padding[:, :, None] != padding[:, None, :]
    whole = shift == (0, 0) and (rows, columns) == grid  # so no window holds two regions
    separation = None if whole else (separated * SEPARATION).masked_fill(at_edge, float("-inf"))

    places = torch.arange(window[0] * window[1], device=device)
    coordinates = torch.stack([places // window[1], places % window[1]], dim=1).float()
    distance = (coordinates[:, None] - coordinates[None, :]).flatten(0, 1)
    return WindowPlan(order.flatten(), len(places), distance.sign() * distance.abs().log1p(), separation)


class _Permute(torch.autograd.Function):
    """Reorder tokens; the gradient is gathered too, which is much faster than autograd's scatter."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return x.index_select(1, order)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        (order,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient.index_select(1, order.argsort()), None


def permute_tokens(x: Tensor, order: Tensor) -> Tensor:
    """Reorder tokens (B, L, D): place i takes token ``order[i]``; ``order`` (L,) is a permutation."""
    return _Permute.apply(x, order)


def _fit(window: Size2d, grid: Size2d) -> Size2d:
    return min(window[0], grid[0]), min(window[1], grid[1])


def _partition(values: Tensor, window: Size2d) -> Tensor:
    """(rows, columns) to (W, S)."""
    rows, columns = values.shape
    tiles = values.view(rows // window[0], window[0], columns // window[1], window[1])
    return tiles.transpose(1, 2).reshape(-1, window[0] * window[1])


def _regions(padded: int, length: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Number the contiguous regions of the rolled positions along one side."""
    position = torch.arange(padded, device=device).roll(-shift)
    wrapped = position < shift if shift else torch.zeros_like(position, dtype=torch.bool)
    return torch.where(position >= length, _PADDING, wrapped.long())
