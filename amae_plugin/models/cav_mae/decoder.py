"""Decoder: from encoded visible tokens and mask tokens to a prediction of every patch of the sound and the picture."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from amae_plugin.models.cav_mae.config import CAVMAEConfig
from amae_plugin.models.cav_mae.encoder import COLOURS, EPS, image_positions
from amae_plugin.modules.blocks import Block, init_linear
from amae_plugin.modules.decoder import MaskedDecoder
from amae_plugin.modules.embedding import GridPositions, Size2d, grid_size


class CAVMAEDecoder(MaskedDecoder):
    """MAE's transformer over the tokens of both modalities, with a head for each (Gong et al. 2023, section 2.4).

    Letters in shapes: B clips, L patches of the sound, K visible ones, M patches of the picture, J visible ones, D
    width of the encoder, P and Q values in a patch of the sound and the picture.
    """

    def __init__(self, config: CAVMAEConfig):
        dim, patch = config.decoder_embed_dim, config.patch_size
        grid = grid_size(config.input_length, config.num_mel_bins, patch)
        heads, ratio = config.decoder_num_heads, config.mlp_ratio
        super().__init__(
            config.embed_dim,
            patch[0] * patch[1],
            GridPositions(grid, dim, time_first=True),
            (Block(dim, heads, ratio, EPS) for _ in range(config.decoder_depth)),
            EPS,
        )
        self.modality_token = nn.Parameter(torch.zeros(1, 1, dim))
        nn.init.normal_(self.modality_token, std=0.02)
        self.image: ImageHead | None = ImageHead(config) if "image" in config.modalities else None

    @override
    def forward(self, latent: Tensor, visible: Tensor, grid: Size2d) -> Tensor:
        """Predict all patches (B, L, P) of a sound from its visible ones (B, K, D) alone, at (B, K)."""
        return self.pred(self._run(self._place(self.embed(latent), visible, grid)))

    def predict_both(
        self, latent: Tensor, visible: Tensor, grid: Size2d, image_visible: Tensor, image_grid: Size2d
    ) -> tuple[Tensor, Tensor]:
        """Predict all patches of sounds and of pictures.

        Args:
            latent: (B, K + J, D), output of the encoder, the sound's tokens first.
            visible: (B, K) positions of the sound's tokens.
            grid: number of patches of the sound in time and frequency, L in total.
            image_visible: (B, J) positions of the picture's tokens.
            image_grid: number of patches of the picture in rows and columns, M in total.

        Returns:
            (B, L, P) and (B, M, Q).
        """
        assert self.image is not None
        heard, seen = self.embed(latent).split([visible.shape[1], image_visible.shape[1]], dim=1)
        places = self.image.positions(image_grid)[:, 1:] + self.image.modality_token
        tokens = [self._place(heard, visible, grid), self.fill(seen, image_visible, places)]
        x = self._run(torch.cat(tokens, dim=1))
        length = grid[0] * grid[1]
        return self.pred(x[:, :length]), self.image.pred(x[:, length:])

    def _place(self, tokens: Tensor, visible: Tensor, grid: Size2d) -> Tensor:
        return self.fill(tokens, visible, self.positions(grid)[:, 1:] + self.modality_token)

    def _run(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class ImageHead(nn.Module):
    """What the decoder has for pictures: positions, a modality token and a head."""

    def __init__(self, config: CAVMAEConfig):
        super().__init__()
        dim = config.decoder_embed_dim
        self.positions = image_positions(config, dim)
        self.modality_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pred = nn.Linear(dim, COLOURS * config.image_patch_size**2)
        init_linear(self, nn.init.xavier_uniform_)
        nn.init.normal_(self.modality_token, std=0.02)
