"""Encoder of SSAST and AST: a DeiT over the patches of a spectrogram."""

from functools import partial

import torch
from torch import Tensor, nn
from typing_extensions import override

from amae_plugin.models.base import Encoder
from amae_plugin.models.ssast.config import SSASTConfig
from amae_plugin.models.ssast.frequency_major import turn_encoder
from amae_plugin.modules.blocks import Block, init_linear
from amae_plugin.modules.embedding import LearnedPositions, PatchEmbed, Size2d
from amae_plugin.modules.masking import take_tokens


class SSASTEncoder(Encoder):
    """Pre-norm ViT with class and distillation token and learned positions (Gong et al. 2021, section 2.1)."""

    positions: LearnedPositions
    num_prefix_tokens = 2
    masks_padding = False

    def __init__(self, config: SSASTConfig):
        super().__init__(config, config.patch_stride)
        self.patch_embed = PatchEmbed(self.patch_size, config.embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        grid = self.grid(config.input_length, config.num_mel_bins)
        self.positions = LearnedPositions(grid, config.embed_dim, self.num_prefix_tokens)
        self.blocks = nn.ModuleList(
            Block(config.embed_dim, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.reset_parameters()
        self.register_load_state_dict_pre_hook(
            lambda _, state, prefix, *rest: turn_encoder(state, prefix, self.num_prefix_tokens)
        )

    @override
    def forward(
        self, patches: Tensor, grid: Size2d, visible: Tensor | None = None, padding_mask: Tensor | None = None
    ) -> Tensor:
        if visible is not None:
            patches = take_tokens(patches, visible)
        return self.encode(self.patch_embed(patches), grid, visible, padding_mask)

    def encode(
        self, tokens: Tensor, grid: Size2d, visible: Tensor | None = None, padding_mask: Tensor | None = None
    ) -> Tensor:
        """Add positions and prefix to embedded tokens, and apply the blocks and the final norm.

        Args:
            tokens: (B, K, D) embedded patches or mask tokens; K = L if ``visible`` is None.
            grid: number of patches in time and frequency.
            visible: (B, K) positions of the tokens.
            padding_mask: (B, K), True = not attended to.

        Returns:
            (B, 2 + K, D).
        """
        prefix_positions, positions = self.positions(grid).tensor_split([self.num_prefix_tokens], dim=1)
        if visible is not None:
            positions = take_tokens(positions.expand(len(tokens), -1, -1), visible)
        prefix = torch.cat([self.cls_token, self.dist_token], dim=1) + prefix_positions
        x = torch.cat([prefix.expand(len(tokens), -1, -1), tokens + positions], dim=1)
        return self.run_blocks(x, self.with_prefix(padding_mask))

    def reset_parameters(self) -> None:
        """Initialise as DeiT does: matrices and class tokens from N(0, 0.02), truncated to [-2, 2], biases 0."""
        init_linear(self.blocks, partial(nn.init.trunc_normal_, std=0.02))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.dist_token, std=0.02)
