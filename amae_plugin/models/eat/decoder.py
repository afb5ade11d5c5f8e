"""Decoder: convolutions over the grid of patches, from encoded visible ones to predicted features of all."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from amae_plugin.models.eat.config import EATConfig
from amae_plugin.modules.embedding import Size2d


class EATDecoder(nn.Module):
    """Residual convolutions over all patches, the hidden ones filled with noise (Chen et al. 2024, section 3.2).

    Attributes:
        noise_std: standard deviation of the noise in training; in evaluation the hidden patches are 0.
    """

    def __init__(self, config: EATConfig):
        super().__init__()
        self.noise_std = config.decoder_noise_std
        groups = math.gcd(config.embed_dim, config.decoder_groups)
        self.blocks = nn.ModuleList(
            ConvBlock(config.embed_dim, config.decoder_kernel, groups) for _ in range(config.decoder_depth)
        )
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)

    def forward(self, latent: Tensor, visible: Tensor, grid: Size2d, noise: Tensor | None = None) -> Tensor:
        """Predict the features of all patches.

        Args:
            latent: (N, K, D), encoded visible patches, without CLS.
            visible: (N, K) positions of the latent patches.
            grid: number of patches in time and frequency, L in total.
            noise: (N, L, D) from N(0, 1); none if None.

        Returns:
            (N, L, D).
        """
        count, _, dim = latent.shape
        shape = (count, grid[0] * grid[1], dim)
        hidden = latent.new_zeros(shape) if noise is None else noise.to(latent.dtype) * self.noise_std
        x = hidden.scatter(1, visible[..., None].expand(-1, -1, dim), latent).unflatten(1, grid)
        for block in self.blocks:
            x = block(x)
        return self.proj(x.flatten(1, 2))


class ConvBlock(nn.Module):
    """Grouped convolution, LayerNorm without weights over the channels, GELU, and the sum with the input."""

    def __init__(self, dim: int, kernel: int, groups: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """(N, time, frequency, D) to the same shape."""
        # On a CPU, channels come last throughout: the transposes are views. A GPU's libraries would copy such a tensor
        # back and forth for each of a convolution's three products.
        channels = x.permute(0, 3, 1, 2)
        convolved = self.conv(channels.contiguous() if x.is_cuda else channels).permute(0, 2, 3, 1)
        return x + F.gelu(F.layer_norm(convolved, convolved.shape[-1:]))
