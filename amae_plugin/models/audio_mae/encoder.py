"""The encoder: a ViT that sees only the visible patches of a spectrogram."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amae_plugin.models.audio_mae.config import AudioMAEConfig
from amae_plugin.modules.blocks import Block
from amae_plugin.modules.patching import PatchEmbed, Size2d, grid_size, patchify
from amae_plugin.modules.positions import GridPositions


class AudioMAEEncoder(nn.Module):
    """Pre-norm ViT over visible patches and a CLS token (Huang et al. 2022, section 3.1)."""

    def __init__(self, config: AudioMAEConfig):
        super().__init__()
        self.patch_size: Size2d = tuple(config.patch_size)  # type: ignore[assignment]
        grid = grid_size(config.input_length, config.num_mel_bins, self.patch_size)
        self.patch_embed = PatchEmbed(self.patch_size, config.embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.positions = GridPositions(grid, config.embed_dim)
        self.blocks = nn.ModuleList(
            Block(config.embed_dim, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.embed_dim, eps=1e-6)

    def forward(
        self, patches: Tensor, grid: Size2d, visible: Tensor | None = None, padding_mask: Tensor | None = None
    ) -> Tensor:
        """Encode the visible patches.

        Args:
            patches: (B, L, P), all patches of the grid.
            grid: patches in time and frequency, L together.
            visible: (B, K) positions to keep, all if None.
            padding_mask: (B, L), True = not attended to; only with ``visible`` None.

        Returns:
            (B, 1 + K, D) after the final norm, CLS first.
        """
        positions = self.positions(grid)
        tokens = positions[:, 1:].expand(len(patches), -1, -1)
        if visible is not None:
            patches = take_tokens(patches, visible)
            tokens = take_tokens(tokens, visible)
        x = self.patch_embed(patches) + tokens
        x = torch.cat([(self.cls_token + positions[:, :1]).expand(len(x), -1, -1), x], dim=1)
        if padding_mask is not None:
            padding_mask = torch.cat([padding_mask.new_zeros(len(x), 1), padding_mask], dim=1)
        for block in self.blocks:
            x = block(x, padding_mask)
        return self.norm(x)

    def patches(self, source: Tensor) -> tuple[Tensor, Size2d]:
        """Patches (B, L, P) of a spectrogram (B, T, F), and their grid."""
        return patchify(source, self.patch_size), grid_size(source.shape[1], source.shape[2], self.patch_size)


def take_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Tokens (B, L, D) at the positions ``ids`` (B, K): (B, K, D)."""
    return tokens.gather(1, ids[..., None].expand(-1, -1, tokens.shape[-1]))
