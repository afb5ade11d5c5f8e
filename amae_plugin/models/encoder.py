"""What every system's encoder offers, so that one classifier fits them all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from amae_plugin.modules.patching import Size2d, grid_size, overlapping_grid_size


class Encoder(nn.Module, ABC):
    """A transformer over the patch tokens of a spectrogram.

    A subclass brings its own ``forward`` and ``patches``.
    Letters in shapes: B clips, T frames, F mel bands, L patches, P values in a patch, D width.

    Attributes:
        embed_dim: D.
        num_prefix_tokens: class tokens in front of the patch tokens; there may be none.
        masks_padding: whether the system was made for clips of several lengths in a batch, so that tokens beyond a
            clip's end are never attended to; else padding is a part of the clip to it.
        num_mel_bins: F.
        patch_size: frames and bands of a patch.
        patch_stride: frames and bands from one patch to the next; the patch where patches do not overlap.
        blocks: the transformer blocks; what stands before them has the smallest learning rate of a layer-wise decay.
        norm: after the last block; nothing where the blocks themselves end with a norm.
    """

    embed_dim: int
    num_prefix_tokens: int
    masks_padding: bool
    num_mel_bins: int
    patch_size: Size2d
    patch_stride: Size2d
    blocks: nn.ModuleList
    norm: nn.Module

    @abstractmethod
    def patches(self, source: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Size2d]:
        """Patches (B, L, P) of a spectrogram (B, T, F), and their grid.

        Args:
            source: log-mel as the system expects it.
            padding_mask: (B, T) bool, True = beyond the clip's end; matters only to a system that normalises its input
                by the clips of the batch.
        """

    @abstractmethod
    def forward(
        self,
        patches: Tensor,
        grid: Size2d,
        visible: Tensor | None = None,
        padding_mask: Tensor | None = None,
        branch_scales: Tensor | None = None,
    ) -> Tensor:
        """Encode the visible patches.

        Args:
            patches: (B, L, P), all patches of the grid.
            grid: patches in time and frequency, L together.
            visible: (B, K) positions to keep, all if None.
            padding_mask: (B, K) of the kept patches, True = not attended to.
            branch_scales: (B, depth, 2) factors of the blocks' branches, for stochastic depth.

        Returns:
            (B, prefix tokens + K, D) after the final norm, the prefix first.
        """

    def run_blocks(
        self,
        x: Tensor,
        padding_mask: Tensor | None,
        branch_scales: Tensor | None,
        indices: Iterable[int] | None = None,
    ) -> Tensor:
        """Tokens (B, N, D), prefix included, through the blocks and the final norm.

        Args:
            x: the tokens.
            padding_mask: (B, N), True = not attended to.
            branch_scales: (B, depth, 2), see :meth:`forward`.
            indices: of the blocks to run; all if None.
        """
        for index in range(len(self.blocks)) if indices is None else indices:
            x = self.blocks[index](x, padding_mask, None if branch_scales is None else branch_scales[:, index])
        return self.norm(x)

    def with_prefix(self, padding_mask: Tensor | None) -> Tensor | None:
        """A padding mask (B, K) of patch tokens as one of all tokens (B, prefix + K); class tokens are no padding."""
        if padding_mask is None:
            return None
        return torch.cat([padding_mask.new_zeros(len(padding_mask), self.num_prefix_tokens), padding_mask], dim=1)

    def mean_of_patches(self, tokens: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Mean (B, D) of the patch tokens among (B, prefix + K, D), without those of a mask (B, K)."""
        patches = tokens[:, self.num_prefix_tokens :]
        if padding_mask is None:
            return patches.mean(dim=1)
        used = ~padding_mask[..., None]
        return (patches * used).sum(dim=1) / used.sum(dim=1).clamp(min=1)

    def grid(self, frames: int, bands: int) -> Size2d:
        """Patches in time and in frequency.

        Raises:
            ValueError: the patch does not divide the spectrogram, or, if patches overlap, exceeds it.
        """
        if self.patch_stride == self.patch_size:
            return grid_size(frames, bands, self.patch_size)
        return overlapping_grid_size(frames, bands, self.patch_size, self.patch_stride)

    def grid_padding(self, padding_mask: Tensor) -> Tensor:
        """Patches (B, L) of the time-major grid all of whose frames (B, T) are padding; True = padding.

        Raises:
            ValueError: see :meth:`grid`.
        """
        grid = self.grid(padding_mask.shape[1], self.num_mel_bins)
        columns = padding_mask.unfold(1, self.patch_size[0], self.patch_stride[0]).all(dim=-1)
        return columns.repeat_interleave(grid[1], dim=1)

    def patch_padding(self, padding_mask: Tensor) -> Tensor:
        """As :meth:`grid_padding`, in the order of this encoder's tokens."""
        grid = self.grid(padding_mask.shape[1], self.num_mel_bins)
        return self.in_token_order(self.grid_padding(padding_mask), grid)

    def heeded(self, padding_mask: Tensor | None) -> Tensor | None:
        """The padding mask (B, T) if this system takes note of padding and there is any, else None."""
        if padding_mask is None or not self.masks_padding or not padding_mask.any():
            return None  # attention without a mask is faster
        return padding_mask

    def in_token_order(self, mask: Tensor, grid: Size2d) -> Tensor:
        """A mask (B, L) over a time-major grid as one over this encoder's tokens, which may be in another order."""
        return mask

    def in_grid_order(self, mask: Tensor, grid: Size2d) -> Tensor:
        """The inverse of :meth:`in_token_order`."""
        return mask
