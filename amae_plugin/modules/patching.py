"""Spectrogram to patch tokens and back.

Letters in shapes: B clips, T frames, F mel bands, L tokens, P values in a patch, D width.
Tokens are *time-major*: token ``t * (F / patch_f) + f`` covers the patch in row ``t`` (time), column ``f`` (frequency).
Inside a patch the values run frame by frame, each frame from low to high frequency.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

Size2d = tuple[int, int]
"""A pair (time, frequency)."""


def grid_size(frames: int, bands: int, patch_size: Size2d) -> Size2d:
    """Number of patches in time and in frequency.

    Raises:
        ValueError: the patch does not divide the spectrogram.
    """
    if frames % patch_size[0] or bands % patch_size[1] or not frames or not bands:
        raise ValueError(
            f"a spectrogram of {frames} frames x {bands} bands cannot be cut into patches of {patch_size[0]} frames x "
            f"{patch_size[1]} bands: both lengths must be positive multiples of the patch"
        )
    return frames // patch_size[0], bands // patch_size[1]


def overlapping_grid_size(frames: int, bands: int, patch_size: Size2d, stride: Size2d) -> Size2d:
    """Number of patches in time and in frequency that start ``stride`` apart; what is left at the end is dropped.

    Raises:
        ValueError: the spectrogram is smaller than one patch, or the stride is not positive.
    """
    if frames < patch_size[0] or bands < patch_size[1] or min(stride) < 1:
        raise ValueError(
            f"a spectrogram of {frames} frames x {bands} bands has no patches of {patch_size[0]} frames x "
            f"{patch_size[1]} bands that start {stride[0]} frames and {stride[1]} bands apart"
        )
    return (frames - patch_size[0]) // stride[0] + 1, (bands - patch_size[1]) // stride[1] + 1


def overlapping_patches(spectrogram: Tensor, patch_size: Size2d, stride: Size2d) -> Tensor:
    """Patches (B, L, P) of (B, T, F) that start ``stride`` apart, in the order of :func:`patchify`."""
    patches = spectrogram.unfold(1, patch_size[0], stride[0]).unfold(2, patch_size[1], stride[1])
    return patches.flatten(3).flatten(1, 2)


def patchify(spectrogram: Tensor, patch_size: Size2d) -> Tensor:
    """Cut (B, T, F) into time-major patches (B, L, P), P = patch frames x patch bands.

    Raises:
        ValueError: the spectrogram is of another shape, or the patch does not divide it.
    """
    if spectrogram.dim() != 3:
        raise ValueError(f"a batch of spectrograms is (clips, frames, bands), not {tuple(spectrogram.shape)}")
    batch, frames, bands = spectrogram.shape
    rows, columns = grid_size(frames, bands, patch_size)
    patches = spectrogram.reshape(batch, rows, patch_size[0], columns, patch_size[1])
    return patches.transpose(2, 3).reshape(batch, rows * columns, -1)


def unpatchify(patches: Tensor, grid: Size2d, patch_size: Size2d) -> Tensor:
    """Inverse of :func:`patchify`: (B, L, P) to (B, T, F)."""
    batch = len(patches)
    tiles = patches.reshape(batch, grid[0], grid[1], patch_size[0], patch_size[1])
    return tiles.transpose(2, 3).reshape(batch, grid[0] * patch_size[0], grid[1] * patch_size[1])


class PatchEmbed(nn.Module):
    """Linear embedding of patches; its weight has the shape of the convolution that published checkpoints store."""

    def __init__(self, patch_size: Size2d, embed_dim: int):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(1, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, patches: Tensor) -> Tensor:
        """Embed patches (B, L, P) as (B, L, D).

        Patches instead of a spectrogram, so that hidden ones are never embedded: a masked autoencoder gathers the
        visible patches first.
        """
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)
