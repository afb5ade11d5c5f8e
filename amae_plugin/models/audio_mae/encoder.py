"""Encoder: a ViT that sees only the visible patches of a spectrogram."""

import torch
from torch import Tensor, nn
from typing_extensions import override

from amae_plugin.models.audio_mae.config import AudioMAEConfig
from amae_plugin.models.base import Encoder
from amae_plugin.modules.blocks import Block, init_linear
from amae_plugin.modules.embedding import GridPositions, PatchEmbed, Size2d
from amae_plugin.modules.masking import take_tokens


class AudioMAEEncoder(Encoder):
    """Pre-norm ViT over visible patches and a CLS token (Huang et al. 2022, section 3.1)."""

    positions: GridPositions
    num_prefix_tokens = 1
    masks_padding = False

    def __init__(self, config: AudioMAEConfig):
        super().__init__(config)
        grid = self.grid(config.input_length, config.num_mel_bins)
        self.patch_embed = PatchEmbed(self.patch_size, config.embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.positions = GridPositions(grid, config.embed_dim)
        self.blocks = nn.ModuleList(
            Block(config.embed_dim, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.reset_parameters()

    @override
    def forward(
        self, patches: Tensor, grid: Size2d, visible: Tensor | None = None, padding_mask: Tensor | None = None
    ) -> Tensor:
        positions = self.positions(grid)
        tokens = positions[:, 1:].expand(len(patches), -1, -1)
        if visible is not None:
            patches = take_tokens(patches, visible)
            tokens = take_tokens(tokens, visible)
        x = self.patch_embed(patches) + tokens
        x = torch.cat([(self.cls_token + positions[:, :1]).expand(len(x), -1, -1), x], dim=1)
        return self.run_blocks(x, self.with_prefix(padding_mask))

    def reset_parameters(self) -> None:
        """Initialise as the published code does: Xavier-uniform matrices, a CLS token from N(0, 0.02)."""
        init_linear(self, nn.init.xavier_uniform_)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.data.flatten(1))
        nn.init.normal_(self.cls_token, std=0.02)
