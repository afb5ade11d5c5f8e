"""Windows of neighbouring patches, shifted or not, on any grid.

A local decoder computes on tokens in *window order*: the tokens of a window stand together, so everything but
attention need not know about windows at all, and going from one block's windows to the next block's is one permutation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amae_plugin.modules.patching import Size2d

SEPARATION = -100.0
"""Added to the score of two tokens that are in a window but not neighbours, as in the published code (Swin)."""

_PADDING = 2  # number of the region that padding forms along a side


@dataclass(frozen=True)
class WindowPlan:
    """How one block cuts a grid into windows.

    Attributes:
        order: (W * S,) the padded grid's token at each place of the window order.
        window_length: S.
        distances: (S * S, 2) log-spaced distance in time and frequency between the tokens of a window.
        separation: (W, S, S) 0, -100 or, from padding, minus infinity; None where nothing is separated.
    """

    order: Tensor
    window_length: int
    distances: Tensor
    separation: Tensor | None


def padded_grid(grid: Size2d, window: Size2d) -> Size2d:
    """The grid enlarged until windows divide it; a window never exceeds the grid."""
    window = _fit(window, grid)
    return -(-grid[0] // window[0]) * window[0], -(-grid[1] // window[1]) * window[1]


def plan_windows(grid: Size2d, window: Size2d, shift: Size2d, device: torch.device) -> WindowPlan:
    """Cut a grid into windows that are cyclically shifted by ``shift`` tokens in time and frequency.

    Tokens that only the cyclic shift brought together, and the padding of a grid that the windows do not divide, are
    separated from the others. Along a side that one window covers there is nothing to shift.
    """
    window = _fit(window, grid)
    shift = (
        0 if window[0] >= grid[0] else shift[0] % window[0],
        0 if window[1] >= grid[1] else shift[1] % window[1],
    )
    rows, columns = padded_grid(grid, window)
    tokens = torch.arange(rows * columns, device=device).view(rows, columns)
    # Regions whose tokens may see each other: the parts of the rolled grid that were contiguous before, the padding.
    row_region = _regions(rows, grid[0], window[0], shift[0], device)
    column_region = _regions(columns, grid[1], window[1], shift[1], device)
    region = row_region[:, None] * (int(column_region.max()) + 1) + column_region
    order = _partition(tokens.roll((-shift[0], -shift[1]), (0, 1)), window)
    region = _partition(region, window)
    separated = region[:, :, None] != region[:, None, :]
    # At the lowest temperature scores differ by more than SEPARATION, which must not let real tokens see padding.
    padding = _partition((row_region == _PADDING)[:, None] | (column_region == _PADDING), window)
    at_edge = padding[:, :, None] != padding[:, None, :]
    separation = (separated * SEPARATION).masked_fill(at_edge, float("-inf")) if bool(separated.any()) else None

    places = torch.arange(window[0] * window[1], device=device)
    coordinates = torch.stack([places // window[1], places % window[1]], dim=1).float()
    distance = (coordinates[:, None] - coordinates[None, :]).flatten(0, 1)
    return WindowPlan(order.flatten(), len(places), distance.sign() * distance.abs().log1p(), separation)


class _Permute(torch.autograd.Function):
    """Reorder tokens; the gradient is gathered too, which is much faster than the scatter that autograd would use."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return x.index_select(1, order)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        (order,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient.index_select(1, order.argsort()), None


def permute_tokens(x: Tensor, order: Tensor) -> Tensor:
    """Tokens (B, L, D) in another order: place i takes token ``order[i]``; ``order`` (L,) is a permutation."""
    return _Permute.apply(x, order)


def _fit(window: Size2d, grid: Size2d) -> Size2d:
    return min(window[0], grid[0]), min(window[1], grid[1])


def _partition(values: Tensor, window: Size2d) -> Tensor:
    """(rows, columns) to (W, S)."""
    rows, columns = values.shape
    tiles = values.view(rows // window[0], window[0], columns // window[1], window[1])
    return tiles.transpose(1, 2).reshape(-1, window[0] * window[1])


def _regions(padded: int, length: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Number of the contiguous region of every rolled position along one side."""
    position = torch.arange(padded, device=device).roll(-shift)
    wrapped = position < shift if shift else torch.zeros_like(position, dtype=torch.bool)
    return torch.where(position >= length, _PADDING, wrapped.long())
