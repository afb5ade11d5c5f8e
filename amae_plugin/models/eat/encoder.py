"""Encoder: a post-norm transformer that sees only the visible patches of a spectrogram."""

from functools import partial

import torch
from torch import Tensor, nn
from typing_extensions import override

from amae_plugin.models.base import Encoder
from amae_plugin.models.eat.config import EATConfig
from amae_plugin.modules.blocks import PostNormBlock, init_linear
from amae_plugin.modules.embedding import GridPositions, PatchEmbed, Size2d
from amae_plugin.modules.masking import take_tokens


class EATEncoder(Encoder):
    """Post-norm transformer over visible patches and a CLS token (Chen et al. 2024, section 3).

    A LayerNorm precedes the blocks. CLS has no position. The last block ends with a norm, so ``norm`` does nothing.
    """

    positions: GridPositions
    num_prefix_tokens = 1
    masks_padding = False
    decays_embedding = False  # as published

    def __init__(self, config: EATConfig):
        super().__init__(config)
        self.patch_embed = PatchEmbed(self.patch_size, config.embed_dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.embed_dim))
        self.positions = GridPositions(self.grid(config.input_length, config.num_mel_bins), config.embed_dim)
        self.norm_pre = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.blocks = nn.ModuleList(
            PostNormBlock(config.embed_dim, config.num_heads, config.mlp_ratio, eps=1e-6) for _ in range(config.depth)
        )
        self.norm = nn.Identity()
        self.reset_parameters()

    @override
    def forward(
        self, patches: Tensor, grid: Size2d, visible: Tensor | None = None, padding_mask: Tensor | None = None
    ) -> Tensor:
        positions = self.positions(grid)[:, 1:].expand(len(patches), -1, -1)
        if visible is not None:
            patches = take_tokens(patches, visible)
            positions = take_tokens(positions, visible)
        return self.encode(self.patch_embed(patches) + positions, self.with_prefix(padding_mask))

    def encode_clones(self, patches: Tensor, grid: Size2d, visible: Tensor) -> Tensor:
        """Encode clips under several masks each, which share the embedding of the patches.

        Args:
            patches: (B, L, P), all patches of the grid.
            grid: number of patches in time and frequency, L in total.
            visible: (N, K) positions of the visible patches, N / B masks for each clip, clip by clip.

        Returns:
            (N, 1 + K, D), CLS first.
        """
        tokens = self.patch_embed(patches) + self.positions(grid)[:, 1:]
        seen = take_tokens(tokens, visible.reshape(len(tokens), -1))
        return self.encode(seen.reshape(*visible.shape, -1), None)

    def encode(self, tokens: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Apply the blocks to embedded patches (B, K, D) with CLS in front of them: (B, 1 + K, D)."""
        return self.run_blocks(self.norm_pre(prepend(self.cls_token, tokens)), padding_mask)

    def reset_parameters(self) -> None:
        """Initialise as published: matrices from N(0, 0.02), Xavier-uniform patch kernels, CLS from N(0, 1)."""
        init_linear(self.blocks, partial(nn.init.normal_, std=0.02))
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.data.flatten(1))
        nn.init.normal_(self.cls_token)


def prepend(cls_token: Tensor, tokens: Tensor) -> Tensor:
    """Put a token (1, 1, D) in front of those of each clip (B, K, D): (B, 1 + K, D)."""
    return torch.cat([cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
