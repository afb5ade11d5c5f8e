"""Positions, fixed sine-cosine or learned ones: on a grid of patches or along a sequence of tokens."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amae_plugin.modules.patching import Size2d


def sincos_1d(positions: Tensor, dim: int) -> Tensor:
    """Sine-cosine table (N, dim) of the positions (N,): sines in the first half, cosines in the second.

    Frequencies fall from 1 to 1/10000 (Vaswani et al. 2017, section 3.5).
    """
    frequencies = 10000.0 ** -(torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angles = positions.to(torch.float64)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_2d(grid: Size2d, dim: int) -> Tensor:
    """Table (L, dim) for a time-major grid (rows in time, columns in frequency).

    The first half of the width tells the column, the second the row, as in MAE (He et al. 2022).
    """
    if dim % 4:
        raise ValueError(f"2-D sine-cosine positions need a width that is a multiple of 4, not {dim}")
    rows = torch.arange(grid[0]).repeat_interleave(grid[1])
    columns = torch.arange(grid[1]).repeat(grid[0])
    return torch.cat([sincos_1d(columns, dim // 2), sincos_1d(rows, dim // 2)], dim=1).float()


class LearnedPositions(nn.Module):
    """Learned positions of a grid and of the tokens in front of it, cut or interpolated for any other grid.

    A table of another grid that a state dict holds is cut or interpolated when it is loaded: so the weights of a
    pretraining fit fine-tuning at another length or with overlapping patches, where the table is then learned on.

    Args:
        grid: rows and columns; the tokens are numbered row by row.
        dim: D.
        num_prefix_tokens: N, how many tokens stand in front.
    """

    grid_shape: Tensor

    def __init__(self, grid: tuple[int, int], dim: int, num_prefix_tokens: int):
        super().__init__()
        self.grid = grid
        self.num_prefix_tokens = num_prefix_tokens
        self.pos_embed = nn.Parameter(torch.empty(1, num_prefix_tokens + grid[0] * grid[1], dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.register_buffer("grid_shape", torch.tensor(grid))  # a table alone does not tell its rows

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """Table (1, N + L, D) for the grid (rows, columns), the tokens in front first."""
        return self._table(self.pos_embed, self.grid, grid)

    def fit(self, table: Tensor, grid: tuple[int, int]) -> Tensor:
        """A table (1, N + rows x columns, D) of another grid (rows, columns), for this one."""
        return self._table(table, grid, self.grid)

    def _table(self, table: Tensor, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
        if source == target:
            return table
        prefix, tokens = table.split([self.num_prefix_tokens, source[0] * source[1]], dim=1)
        resized = resize_grid(tokens.unflatten(1, source).permute(0, 3, 1, 2), target)
        return torch.cat([prefix, resized.flatten(2).transpose(1, 2)], dim=1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        table, shape = state_dict.get(f"{prefix}pos_embed"), state_dict.get(f"{prefix}grid_shape")
        if table is not None and shape is not None:
            rows, columns = shape.tolist()
            if table.dim() == 3 and table.shape[1] == self.num_prefix_tokens + rows * columns:
                state_dict[f"{prefix}pos_embed"] = self.fit(table, (rows, columns))
                state_dict[f"{prefix}grid_shape"] = self.grid_shape
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def resize_grid(table: Tensor, size: tuple[int, int]) -> Tensor:
    """Positions (1, D, rows, columns) for a grid of another size (AST, Gong et al. 2021, section 2.2).

    A side that becomes shorter keeps its middle, one that becomes longer is interpolated linearly.
    """
    for dim, length in ((2, size[0]), (3, size[1])):
        if length < table.shape[dim]:
            table = table.narrow(dim, table.shape[dim] // 2 - length // 2, length)
    if table.shape[2:] == size:
        return table
    return F.interpolate(table, size=size, mode="bilinear", align_corners=False)


class GridPositions(nn.Module):
    """Fixed positions of a grid and of the CLS token in front of it, for the built grid and any other.

    The table (1, 1 + L, D) is stored under ``pos_embed``, zero for CLS, so that a published checkpoint brings its own.
    For another grid the sine-cosine table is generated anew; a table that is not the sine-cosine one (the published
    Audio-MAE table is laid out for a transposed grid) is interpolated instead, since nothing else is known about it.
    """

    pos_embed: Tensor

    def __init__(self, grid: Size2d, dim: int):
        super().__init__()
        self.grid = grid
        self.dim = dim
        self.register_buffer("pos_embed", _with_cls(sincos_2d(grid, dim)))
        self._other_grids: dict[tuple[Size2d, torch.device], Tensor] = {}

    def forward(self, grid: Size2d) -> Tensor:
        """Table (1, 1 + L, D) for the grid (time, frequency), CLS first."""
        if grid == self.grid:
            return self.pos_embed
        key = (grid, self.pos_embed.device)
        if key not in self._other_grids:
            with torch.inference_mode(False):  # a table first asked for in inference must serve training as well
                self._other_grids[key] = self._table(grid)
        return self._other_grids[key]

    @property
    def is_sincos(self) -> bool:
        """Whether the table is the sine-cosine one, to the precision of checkpoints stored in half precision."""
        own = _with_cls(sincos_2d(self.grid, self.dim)).to(self.pos_embed)
        return torch.allclose(self.pos_embed, own, atol=5e-3)

    def _table(self, grid: Size2d) -> Tensor:
        if self.is_sincos:
            return _with_cls(sincos_2d(grid, self.dim)).to(self.pos_embed)
        table = self.pos_embed[0, 1:].T.reshape(1, self.dim, *self.grid)
        resized = F.interpolate(table, size=grid, mode="bicubic", align_corners=False)
        return torch.cat([self.pos_embed[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        self._other_grids.clear()
        super()._load_from_state_dict(*args, **kwargs)


class SequencePositions(nn.Module):
    """Fixed positions along a sequence of any length: sines and cosines in turn (Vaswani et al. 2017, section 3.5).

    Raises:
        ValueError: the width is odd.
    """

    def __init__(self, dim: int):
        super().__init__()
        if dim % 2:
            raise ValueError(f"sine-cosine positions need an even width, not {dim}")
        self.dim = dim
        self._tables: dict[torch.device, Tensor] = {}

    def forward(self, length: int, device: torch.device) -> Tensor:
        """Table (1, L, D) of the first ``length`` positions, float32."""
        table = self._tables.get(device)
        if table is None or table.shape[1] < length:
            with torch.inference_mode(False):  # a table first asked for in inference must serve training as well
                sines, cosines = sincos_1d(torch.arange(length), self.dim).chunk(2, dim=1)
                table = torch.stack([sines, cosines], dim=2).flatten(1).float()[None].to(device)
            self._tables[device] = table
        return table[:, :length]


def _with_cls(table: Tensor) -> Tensor:
    return torch.cat([table.new_zeros(1, table.shape[1]), table])[None]
