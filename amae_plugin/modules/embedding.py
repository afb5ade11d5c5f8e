"""From a spectrogram or a picture to tokens with positions, and back.

Letters in shapes: B clips, T frames, F mel bands, L tokens, P values in a patch, D width.
Tokens are *time-major*: token ``t * (F / patch_f) + f`` covers the patch in row ``t`` (time), column ``f`` (frequency).
Inside a patch the values run frame by frame, each frame from low to high frequency.
Positions are fixed sines and cosines or learned, on a grid of patches or along a sequence of tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from amae_plugin.modules.blocks import Dropout

Size2d = tuple[int, int]
"""Pair (time, frequency)."""


def grid_size(frames: int, bands: int, patch_size: Size2d, stride: Size2d | None = None) -> Size2d:
    """Count the patches in time and in frequency.

    Args:
        frames: T.
        bands: F.
        patch_size: frames and bands of a patch.
        stride: frames and bands from one patch to the next; the patch if None. With any other stride, the patches drop
            the rest at the end.

    Raises:
        ValueError: the patch does not divide the spectrogram; with another stride: the spectrogram is smaller than a
            patch, or the stride is not positive.
    """
    stride = stride or patch_size
    if stride == patch_size:
        if min(frames, bands, *patch_size) < 1 or frames % patch_size[0] or bands % patch_size[1]:
            raise ValueError(
                f"a spectrogram of {frames} frames x {bands} bands cannot be cut into patches of {patch_size[0]} "
                f"frames x {patch_size[1]} bands: both lengths must be positive multiples of the patch"
            )
        return frames // patch_size[0], bands // patch_size[1]
    if frames < patch_size[0] or bands < patch_size[1] or min(stride) < 1:
        raise ValueError(
            f"a spectrogram of {frames} frames x {bands} bands has no patches of {patch_size[0]} frames x "
            f"{patch_size[1]} bands that start {stride[0]} frames and {stride[1]} bands apart"
        )
    return (frames - patch_size[0]) // stride[0] + 1, (bands - patch_size[1]) // stride[1] + 1


def patchify(spectrogram: Tensor, patch_size: Size2d, stride: Size2d | None = None) -> Tensor:
    """Cut (B, T, F) into time-major patches (B, L, P), P = patch frames x patch bands; see :func:`grid_size`.

    Raises:
        ValueError: the spectrogram has another number of dimensions or, see :func:`grid_size`, another size.
    """
    if spectrogram.dim() != 3:
        raise ValueError(f"a batch of spectrograms is (clips, frames, bands), not {tuple(spectrogram.shape)}")
    batch, frames, bands = spectrogram.shape
    stride = stride or patch_size
    rows, columns = grid_size(frames, bands, patch_size, stride)
    if stride == patch_size:
        patches = spectrogram.reshape(batch, rows, patch_size[0], columns, patch_size[1]).transpose(2, 3)
    else:
        patches = spectrogram.unfold(1, patch_size[0], stride[0]).unfold(2, patch_size[1], stride[1])
    return patches.reshape(batch, rows * columns, -1)


def unpatchify(patches: Tensor, grid: Size2d, patch_size: Size2d) -> Tensor:
    """Inverse of :func:`patchify`: (B, L, P) to (B, T, F)."""
    batch = len(patches)
    tiles = patches.reshape(batch, grid[0], grid[1], patch_size[0], patch_size[1])
    return tiles.transpose(2, 3).reshape(batch, grid[0] * patch_size[0], grid[1] * patch_size[1])


def patchify_image(image: Tensor, patch_size: int) -> tuple[Tensor, Size2d]:
    """Cut pictures (B, C, height, width) into patches (B, L, P), row by row, and return them and their grid.

    Inside a patch the values run row by row and pixel by pixel, each pixel with its C colours.

    Raises:
        ValueError: the pictures have another number of dimensions, or the patch does not divide them.
    """
    if image.dim() != 4:
        raise ValueError(f"a batch of pictures is (clips, colours, height, width), not {tuple(image.shape)}")
    _, colours, height, width = image.shape
    if min(image.shape) < 1 or height % patch_size or width % patch_size:
        raise ValueError(
            f"pictures of {height} x {width} pixels cannot be cut into patches of {patch_size} x {patch_size}: both "
            "sides must be positive multiples of the patch"
        )
    patches = patchify(image.movedim(1, -1).flatten(2), (patch_size, patch_size * colours))
    return patches, (height // patch_size, width // patch_size)


def unpatchify_image(patches: Tensor, grid: Size2d, patch_size: int) -> Tensor:
    """Inverse of :func:`patchify_image`: (B, L, P) to (B, C, height, width)."""
    colours = patches.shape[-1] // patch_size**2
    rows = unpatchify(patches, grid, (patch_size, patch_size * colours))
    return rows.unflatten(2, (-1, colours)).movedim(-1, 1)


class PatchEmbed(nn.Module):
    """Linear embedding of patches, stored as a convolution as in published checkpoints, with dropout of the result.

    Args:
        patch_size: frames and bands, or rows and columns, of a patch.
        embed_dim: D.
        dropout: probability.
        channels: values of a place in the patch: 1 in spectrograms, 3 in pictures.
    """

    def __init__(self, patch_size: Size2d, embed_dim: int, dropout: float = 0.0, channels: int = 1):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(channels, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.dropout = Dropout(dropout)

    def forward(self, patches: Tensor) -> Tensor:
        """Embed patches (B, L, P) as (B, L, D).

        The input is patches, not a spectrogram, since a masked autoencoder embeds only the visible ones.
        """
        kernel = self.proj.weight
        if kernel.shape[1] > 1:
            kernel = kernel.movedim(1, -1)
        return self.dropout(F.linear(patches, kernel.flatten(1), self.proj.bias))


def sincos_1d(positions: Tensor, dim: int) -> Tensor:
    """Return the sine-cosine table (N, dim) of positions (N,): sines in the first half, cosines in the second.

    Frequencies fall from 1 to 1/10000 (Vaswani et al. 2017, section 3.5).
    """
    frequencies = 10000.0 ** -(torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angles = positions.to(torch.float64)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_2d(grid: Size2d, dim: int, time_first: bool = False) -> Tensor:
    """Return the sine-cosine table (L, dim) of a time-major grid (rows in time, columns in frequency).

    The first half of the width encodes the column, the second the row, as in MAE (He et al. 2022). With *time_first* it
    is the other way around.
    """
    if dim % 4:
        raise ValueError(f"2-D sine-cosine positions need a width that is a multiple of 4, not {dim}")
    rows = torch.arange(grid[0]).repeat_interleave(grid[1])
    columns = torch.arange(grid[1]).repeat(grid[0])
    first, second = (rows, columns) if time_first else (columns, rows)
    return torch.cat([sincos_1d(first, dim // 2), sincos_1d(second, dim // 2)], dim=1).float()


class Positions(nn.Module):
    """Base of the position tables.

    Attributes:
        kind: description for people.
        grid: grid that the table covers; None for positions along a sequence.
    """

    kind: str
    grid: Size2d | None = None

    @property
    def extends(self) -> bool:
        """Whether positions beyond the table exist, and leave those of the table as they are."""
        return self.grid is None


class LearnedPositions(Positions):
    """Learned positions of a grid and of the prefix tokens in front of it, cut or interpolated for any other grid.

    Loading a state dict cuts or interpolates a table of another grid, so pretrained weights fit fine-tuning at another
    length or with overlapping patches. Training then continues on the resized table.

    Args:
        grid: number of patches in time and frequency.
        dim: D.
        num_prefix_tokens: N, number of tokens in front of the grid.
    """

    kind = "learned"
    grid: Size2d
    table_grid: Tensor

    def __init__(self, grid: Size2d, dim: int, num_prefix_tokens: int):
        super().__init__()
        self.grid = grid
        self.num_prefix_tokens = num_prefix_tokens
        self.pos_embed = nn.Parameter(torch.empty(1, num_prefix_tokens + grid[0] * grid[1], dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.register_buffer("table_grid", torch.tensor(grid))  # the length of a table does not determine its grid

    def forward(self, grid: Size2d) -> Tensor:
        """Return the table (1, N + L, D) for a grid, prefix first."""
        return self.resize(self.pos_embed, self.grid, grid)

    def resize(self, table: Tensor, source: Size2d, target: Size2d) -> Tensor:
        """Resize a table (1, N + time x frequency, D) from one grid to another."""
        if source == target:
            return table
        prefix, tokens = table.split([self.num_prefix_tokens, source[0] * source[1]], dim=1)
        resized = resize_grid(tokens.unflatten(1, source).permute(0, 3, 1, 2), target)
        return torch.cat([prefix, resized.flatten(2).transpose(1, 2)], dim=1)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        table, shape = state_dict.get(f"{prefix}pos_embed"), state_dict.get(f"{prefix}table_grid")
        if table is not None and shape is not None:
            rows, columns = shape.tolist()
            if table.dim() == 3 and table.shape[1] == self.num_prefix_tokens + rows * columns:
                state_dict[f"{prefix}pos_embed"] = self.resize(table, (rows, columns), self.grid)
                state_dict[f"{prefix}table_grid"] = self.table_grid
        super()._load_from_state_dict(state_dict, prefix, *args)


def resize_grid(table: Tensor, size: Size2d) -> Tensor:
    """Resize positions (1, D, time, frequency) to another grid (AST, Gong et al. 2021, section 2.2).

    A side that becomes shorter keeps its middle. A side that becomes longer is interpolated linearly.
    """
    for dim, length in ((2, size[0]), (3, size[1])):
        if length < table.shape[dim]:
            table = table.narrow(dim, table.shape[dim] // 2 - length // 2, length)
    if table.shape[2:] == size:
        return table
    return F.interpolate(table, size=size, mode="bilinear", align_corners=False)


class GridPositions(Positions):
    """Fixed positions of a grid and of the CLS token in front of it, and of any other grid.

    The table (1, 1 + L, D), zero for CLS, is stored as ``pos_embed``, so a published checkpoint brings its own. For
    another grid, a sine-cosine table is recomputed and any other table is interpolated. The published table of
    Audio-MAE, which is laid out for a transposed grid, counts as another table.

    Args:
        grid: number of patches in time and frequency.
        dim: D.
        time_first: whether the first half of the sine-cosine table's width encodes time, see :func:`sincos_2d`.
    """

    grid: Size2d
    pos_embed: Tensor

    def __init__(self, grid: Size2d, dim: int, time_first: bool = False):
        super().__init__()
        self.grid = grid
        self.dim = dim
        self.time_first = time_first
        self.register_buffer("pos_embed", self._sincos(grid))
        self._other_grids: dict[tuple[Size2d, torch.device], Tensor] = {}

    def forward(self, grid: Size2d) -> Tensor:
        """Return the table (1, 1 + L, D) for a grid, CLS first."""
        if grid == self.grid:
            return self.pos_embed
        # The first batch of a grid waits for a GPU, which tells what the table is; no other does.
        key = (grid, self.pos_embed.device)
        if key not in self._other_grids:
            with torch.inference_mode(False):  # training must be able to use a table made during inference
                self._other_grids[key] = self._table(grid)
        return self._other_grids[key]

    @property
    def kind(self) -> str:  # type: ignore[override]
        """Description for people."""
        return "fixed 2-D sine-cosine" if self.is_sincos else "fixed, a table that is not the 2-D sine-cosine one"

    @property
    @override
    def extends(self) -> bool:
        return self.is_sincos

    @property
    def is_sincos(self) -> bool:
        """Whether the table is the sine-cosine one, to the precision of checkpoints stored in half precision."""
        return torch.allclose(self.pos_embed, self._sincos(self.grid).to(self.pos_embed), atol=5e-3)

    def _sincos(self, grid: Size2d) -> Tensor:
        table = sincos_2d(grid, self.dim, self.time_first)
        return torch.cat([table.new_zeros(1, self.dim), table])[None]

    def _table(self, grid: Size2d) -> Tensor:
        if self.is_sincos:
            return self._sincos(grid).to(self.pos_embed)
        table = self.pos_embed[0, 1:].T.reshape(1, self.dim, *self.grid)
        resized = F.interpolate(table, size=grid, mode="bicubic", align_corners=False)
        return torch.cat([self.pos_embed[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)

    def _load_from_state_dict(self, *args: object) -> None:
        self._other_grids.clear()
        super()._load_from_state_dict(*args)


class SequencePositions(Positions):
    """Fixed positions along a sequence of any length: alternating sines and cosines (Vaswani et al. 2017, section 3.5).

    Raises:
        ValueError: the width is odd.
    """

    kind = "fixed 1-D sine-cosine along the tokens"

    def __init__(self, dim: int):
        super().__init__()
        if dim % 2:
            raise ValueError(f"sine-cosine positions need an even width, not {dim}")
        self.dim = dim
        self._tables: dict[torch.device, Tensor] = {}

    def forward(self, length: int, device: torch.device) -> Tensor:
        """Return the table (1, L, D) of the first ``length`` positions, float32."""
        table = self._tables.get(device)
        if table is None or table.shape[1] < length:
            with torch.inference_mode(False):  # training must be able to use a table made during inference
                sines, cosines = sincos_1d(torch.arange(length), self.dim).chunk(2, dim=1)
                table = torch.stack([sines, cosines], dim=2).flatten(1).float()[None].to(device)
            self._tables[device] = table
        return table[:, :length]
