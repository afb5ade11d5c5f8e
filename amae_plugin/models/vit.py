"""Encoder that several systems share: ViT over the visible patches of a spectrogram."""

import torch
from torch import Tensor, nn
from typing_extensions import override

from amae_plugin.models import timm_vit
from amae_plugin.models.base import Encoder
from amae_plugin.models.settings import PretrainingConfig
from amae_plugin.modules.blocks import Block, init_linear
from amae_plugin.modules.embedding import GridPositions, PatchEmbed, Size2d
from amae_plugin.modules.masking import take_tokens


class ViTEncoder(Encoder):
    """Pre-norm ViT over visible patches and a CLS token, with fixed positions (He et al. 2022).

    Args:
        config: sizes.
        input_length: frames that the position table covers.
        time_first: see :class:`GridPositions`.
    """

    positions: GridPositions
    num_prefix_tokens = 1
    masks_padding = False

    def __init__(self, config: PretrainingConfig, input_length: int, time_first: bool = False):
        super().__init__(config)
        grid = self.grid(input_length, config.num_mel_bins)
        self.patch_embed = PatchEmbed(self.patch_size, config.embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.positions = GridPositions(grid, config.embed_dim, time_first)
        self.blocks = nn.ModuleList(
            Block(config.embed_dim, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.reset_parameters()

    @override
    def forward(
        self, patches: Tensor, grid: Size2d, visible: Tensor | None = None, padding_mask: Tensor | None = None
    ) -> Tensor:
        return self.run_blocks(self.embed(patches, grid, visible), self.with_prefix(padding_mask))

    def embed(self, patches: Tensor, grid: Size2d, visible: Tensor | None = None) -> Tensor:
        """Embed the visible patches with their positions: (B, 1 + K, D), CLS first; see :meth:`forward`."""
        positions = self.positions(grid)
        tokens = positions[:, 1:].expand(len(patches), -1, -1)
        if visible is not None:
            patches = take_tokens(patches, visible)
            tokens = take_tokens(tokens, visible)
        x = self.patch_embed(patches) + tokens
        return torch.cat([(self.cls_token + positions[:, :1]).expand(len(x), -1, -1), x], dim=1)

    def reset_parameters(self) -> None:
        """Initialise as MAE does: Xavier-uniform matrices, a CLS token from N(0, 0.02)."""
        init_linear(self, nn.init.xavier_uniform_)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.data.flatten(1))
        nn.init.normal_(self.cls_token, std=0.02)


def as_timm(encoder: ViTEncoder, input_size: Size2d, pooling: str | None) -> timm_vit.TimmVit:
    """Return the encoder as timm's ViT; see :attr:`System.as_timm`."""
    state = timm_vit.encoder_weights(encoder)
    state["pos_embed"] = encoder.positions(encoder.grid(*input_size))
    return timm_vit.TimmVit(timm_vit.VIT, timm_vit.vit_arguments(encoder, input_size, pooling), state)
