"""Decoder: from encoded visible tokens and mask tokens to a hidden state of every token."""

from functools import partial

import torch
from torch import Tensor, nn

from amae_plugin.models.mae_ast.config import MAEASTConfig
from amae_plugin.modules.blocks import Dropout, PostNormBlock, init_linear
from amae_plugin.modules.embedding import SequencePositions


class MAEASTDecoder(nn.Module):
    """Shallow post-norm transformer over all tokens, with its own width (Baade et al. 2022).

    Raises:
        ValueError: the width does not fit the heads.
    """

    def __init__(self, config: MAEASTConfig):
        super().__init__()
        dim = config.decoder_embed_dim
        self.embed: nn.Module = nn.Identity() if dim == config.embed_dim else nn.Linear(config.embed_dim, dim)
        self.mask_token = nn.Parameter(torch.rand(1, 1, dim))
        self.positions = SequencePositions(dim)
        self.norm_pre = nn.LayerNorm(dim)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            PostNormBlock(
                dim, config.decoder_num_heads, config.decoder_mlp_ratio, config.dropout, config.attention_dropout
            )
            for _ in range(config.decoder_depth)
        )
        init_linear(self.blocks, partial(nn.init.normal_, std=0.02))

    def forward(
        self,
        latent: Tensor,
        visible: Tensor,
        length: int,
        unused: Tensor | None = None,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Decode all tokens.

        Args:
            latent: (B, K, D), output of the encoder.
            visible: (B, K) positions of the latent tokens, no position twice in a clip.
            length: L.
            unused: (B, K), True where a clip with fewer than K visible tokens has none.
            padding_mask: (B, L), True = not attended to.

        Returns:
            (B, L, decoder width).
        """
        x = self.embed(latent).float()
        if unused is not None:
            x = torch.where(unused[..., None], self.mask_token, x)
        batch, _, dim = x.shape
        tokens = self.mask_token.expand(batch, length, -1).scatter(1, visible[..., None].expand(-1, -1, dim), x)
        x = self.dropout(self.norm_pre(tokens + self.positions(length, x.device)))
        for block in self.blocks:
            x = block(x, padding_mask)
        return x
