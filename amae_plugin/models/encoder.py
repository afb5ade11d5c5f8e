"""What every system's encoder offers, so that one classifier fits them all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from amae_plugin.modules.patching import Size2d


class Encoder(nn.Module, ABC):
    """A transformer over the patch tokens of a spectrogram.

    A pretraining model holds its encoder as ``encoder``; a subclass brings its own ``forward`` and ``patches``.
    Letters in shapes: B clips, T frames, F mel bands, L patches, P values in a patch, D width.

    Attributes:
        embed_dim: D.
        num_prefix_tokens: class tokens in front of the patch tokens; there may be none.
        blocks: the transformer blocks; what stands before them has the smallest learning rate of a layer-wise decay.
        norm: after the last block; nothing where the blocks themselves end with a norm.
    """

    embed_dim: int
    num_prefix_tokens: int
    blocks: nn.ModuleList
    norm: nn.Module

    @abstractmethod
    def patches(self, source: Tensor) -> tuple[Tensor, Size2d]:
        """Patches (B, L, P) of a spectrogram (B, T, F), and their grid."""

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

    def in_token_order(self, mask: Tensor, grid: Size2d) -> Tensor:
        """A mask (B, L) over a time-major grid as one over this encoder's tokens, which may be in another order."""
        return mask
