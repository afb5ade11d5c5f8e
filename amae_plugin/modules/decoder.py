"""Decoder of a masked autoencoder: from encoded visible tokens and mask tokens to a prediction of every token."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from amae_plugin.modules.blocks import init_linear
from amae_plugin.modules.embedding import GridPositions, Size2d


class MaskedDecoder(nn.Module):
    """Transformer over all tokens of a grid and CLS (He et al. 2022).

    Letters in shapes: B clips, K visible tokens, L tokens, D width of the encoder, C width of the decoder.

    Args:
        embed_dim: D.
        output_dim: width of a prediction.
        positions: positions of the grid, of width C.
        blocks: blocks of width C.
        eps: of the norm.
    """

    def __init__(
        self,
        embed_dim: int,
        output_dim: int,
        positions: GridPositions,
        blocks: Iterable[nn.Module],
        eps: float = 1e-6,
    ):
        super().__init__()
        self.embed = nn.Linear(embed_dim, positions.dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, positions.dim))
        self.positions = positions
        self.norm = nn.LayerNorm(positions.dim, eps=eps)
        self.pred = nn.Linear(positions.dim, output_dim)
        self.blocks = nn.ModuleList(blocks)
        self.reset_parameters()

    def forward(self, latent: Tensor, visible: Tensor, grid: Size2d) -> Tensor:
        """Predict all tokens.

        Args:
            latent: (B, 1 + K, D), output of the encoder, CLS first.
            visible: (B, K) positions of the latent tokens.
            grid: number of tokens in time and frequency, L in total.

        Returns:
            (B, L, output_dim).
        """
        return self.predict(*self.place(latent, visible, grid), self.blocks)

    def place(self, latent: Tensor, visible: Tensor, grid: Size2d) -> tuple[Tensor, Tensor]:
        """Put the latent tokens into their places, and return CLS (B, 1, C) and all tokens (B, L, C)."""
        x = self.embed(latent)
        positions = self.positions(grid)
        return x[:, :1] + positions[:, :1], self.fill(x[:, 1:], visible, positions[:, 1:])

    def fill(self, tokens: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """Put tokens (B, K, C) into their places, mask tokens into the others, and add positions (1, L, C)."""
        batch, _, dim = tokens.shape
        filled = self.mask_token.to(tokens.dtype).expand(batch, positions.shape[1], -1)
        return filled.scatter(1, visible[..., None].expand(-1, -1, dim), tokens) + positions

    def predict(self, cls: Tensor, tokens: Tensor, blocks: Iterable[nn.Module]) -> Tensor:
        """Run blocks over CLS (B, 1, C) and tokens (B, L, C), and predict all tokens (B, L, output_dim)."""
        x = torch.cat([cls, tokens], dim=1)
        for block in blocks:
            x = block(x)
        return self.pred(self.norm(x[:, 1:]))

    def reset_parameters(self) -> None:
        """Initialise as MAE does: Xavier-uniform matrices, a mask token from N(0, 0.02)."""
        init_linear(self, nn.init.xavier_uniform_)
        nn.init.normal_(self.mask_token, std=0.02)
