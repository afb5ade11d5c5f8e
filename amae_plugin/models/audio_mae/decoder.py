"""Decoders: from encoded visible tokens and mask tokens to a prediction of every patch."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from amae_plugin.models.audio_mae.config import AudioMAEConfig
from amae_plugin.modules.blocks import Block, xavier_linear
from amae_plugin.modules.embedding import GridPositions, Size2d, grid_size
from amae_plugin.modules.local_attention import WindowBlock, WindowPlan, padded_grid, permute_tokens, plan_windows


class Decoder(nn.Module, ABC):
    """Base of the decoders: projection, mask tokens, positions, final norm and prediction.

    A decoder differs in its ``blocks`` and in :meth:`run_blocks`.
    """

    blocks: nn.ModuleList

    def __init__(self, config: AudioMAEConfig):
        super().__init__()
        patch_size: Size2d = tuple(config.patch_size)  # type: ignore[assignment]
        dim = config.decoder_embed_dim
        self.embed = nn.Linear(config.embed_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = GridPositions(grid_size(config.input_length, config.num_mel_bins, patch_size), dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pred = nn.Linear(dim, patch_size[0] * patch_size[1])

    def forward(self, latent: Tensor, visible: Tensor, grid: Size2d) -> Tensor:
        """Predict all patches.

        Args:
            latent: (B, 1 + K, D), output of the encoder, CLS first.
            visible: (B, K) positions of the latent tokens.
            grid: number of patches in time and frequency, L in total.

        Returns:
            (B, L, P).
        """
        x = self.embed(latent)
        batch, _, dim = x.shape
        positions = self.positions(grid)
        tokens = self.mask_token.to(x.dtype).expand(batch, grid[0] * grid[1], -1)
        tokens = tokens.scatter(1, visible[..., None].expand(-1, -1, dim), x[:, 1:])
        tokens = self.run_blocks(x[:, :1] + positions[:, :1], tokens + positions[:, 1:], grid)
        return self.pred(self.norm(tokens))

    def reset_parameters(self) -> None:
        """Initialise as the published code does: Xavier-uniform matrices, a mask token from N(0, 0.02)."""
        xavier_linear(self)
        nn.init.normal_(self.mask_token, std=0.02)

    @abstractmethod
    def run_blocks(self, cls: Tensor, tokens: Tensor, grid: Size2d) -> Tensor:
        """Run the blocks over CLS (B, 1, D) and tokens (B, L, D); returns the tokens (B, L, D)."""


class GlobalDecoder(Decoder):
    """Every block attends to all tokens and CLS (the paper's global attention: 8 blocks)."""

    def __init__(self, config: AudioMAEConfig):
        super().__init__(config)
        self.blocks = nn.ModuleList(_global_block(config) for _ in range(config.decoder_depth))

    @override
    def run_blocks(self, cls: Tensor, tokens: Tensor, grid: Size2d) -> Tensor:
        x = torch.cat([cls, tokens], dim=1)
        for block in self.blocks:
            x = block(x)
        return x[:, 1:]


class ShiftedDecoder(Decoder):
    """Every block attends inside windows, those of every second block shifted; CLS is left out."""

    def __init__(self, config: AudioMAEConfig):
        super().__init__(config)
        self.window: Size2d = tuple(config.decoder_window)  # type: ignore[assignment]
        self.shift: Size2d = tuple(config.decoder_shift)  # type: ignore[assignment]
        if min(self.window) < 1:
            raise ValueError(f"a window is at least 1 x 1 patches, not model.decoder_window={self.window}")
        self.blocks = nn.ModuleList(_local_block(config) for _ in range(config.decoder_depth))
        self._routes: dict[tuple[Size2d, torch.device], tuple[Tensor, list[Tensor], list[WindowPlan]]] = {}

    @override
    def run_blocks(self, cls: Tensor, tokens: Tensor, grid: Size2d) -> Tensor:
        return self.run_local(self.blocks, tokens, grid)

    def run_local(self, blocks: nn.ModuleList, tokens: Tensor, grid: Size2d) -> Tensor:
        """Run window blocks over the tokens (B, L, D) of a grid; plain and shifted windows alternate."""
        first, turns, plans = self._route(grid, tokens.device)
        padded = padded_grid(grid, self.window)
        x = _pad(tokens, grid, padded)
        # The tokens stay in window order from block to block: `first` leads into the plain windows, `turns` from the
        # plain to the shifted ones and back.
        x = permute_tokens(x, first)
        for index, block in enumerate(blocks):
            if index:
                x = permute_tokens(x, turns[index % 2])
            x = block(x, plans[index % 2])
        x = permute_tokens(x, plans[(len(blocks) - 1) % 2].order.argsort())
        return _unpad(x, grid, padded)

    def _route(self, grid: Size2d, device: torch.device) -> tuple[Tensor, list[Tensor], list[WindowPlan]]:
        key = (grid, device)
        if key not in self._routes:
            with torch.inference_mode(False):  # training must be able to use a route made during inference
                plain = plan_windows(grid, self.window, (0, 0), device)
                shifted = plan_windows(grid, self.window, self.shift, device)
                to_shifted = plain.order.argsort()[shifted.order]
                self._routes[key] = (plain.order, [to_shifted.argsort(), to_shifted], [plain, shifted])
        return self._routes[key]


class HybridDecoder(ShiftedDecoder):
    """Local blocks as in :class:`ShiftedDecoder`, then global attention (with CLS) in the last few."""

    def __init__(self, config: AudioMAEConfig):
        super().__init__(config)
        if not 0 < config.decoder_global_blocks < config.decoder_depth:
            raise ValueError(
                f"a hybrid decoder of {config.decoder_depth} blocks needs 1 to {config.decoder_depth - 1} global ones, "
                f"not model.decoder_global_blocks={config.decoder_global_blocks}"
            )
        local = config.decoder_depth - config.decoder_global_blocks
        self.num_local = local
        self.blocks = nn.ModuleList(
            _local_block(config) if i < local else _global_block(config) for i in range(config.decoder_depth)
        )

    @override
    def run_blocks(self, cls: Tensor, tokens: Tensor, grid: Size2d) -> Tensor:
        tokens = self.run_local(self.blocks[: self.num_local], tokens, grid)
        x = torch.cat([cls, tokens], dim=1)
        for block in self.blocks[self.num_local :]:
            x = block(x)
        return x[:, 1:]


DECODERS: dict[str, type[Decoder]] = {"shifted": ShiftedDecoder, "hybrid": HybridDecoder, "global": GlobalDecoder}


def build_decoder(config: AudioMAEConfig) -> Decoder:
    """Build the decoder that ``config.decoder`` names.

    Raises:
        ValueError: no decoder has that name.
    """
    if config.decoder not in DECODERS:
        raise ValueError(f"no decoder is called {config.decoder!r}; there are: {', '.join(DECODERS)}")
    decoder = DECODERS[config.decoder](config)
    decoder.reset_parameters()
    return decoder


def _local_block(config: AudioMAEConfig) -> WindowBlock:
    return WindowBlock(config.decoder_embed_dim, config.decoder_num_heads, config.mlp_ratio)


def _global_block(config: AudioMAEConfig) -> Block:
    return Block(config.decoder_embed_dim, config.decoder_num_heads, config.mlp_ratio)


def _pad(tokens: Tensor, grid: Size2d, padded: Size2d) -> Tensor:
    """Append zero tokens to the grid in time and frequency: (B, L, D) to (B, padded L, D)."""
    if grid == padded:
        return tokens
    x = tokens.unflatten(1, grid)
    return F.pad(x, (0, 0, 0, padded[1] - grid[1], 0, padded[0] - grid[0])).flatten(1, 2)


def _unpad(tokens: Tensor, grid: Size2d, padded: Size2d) -> Tensor:
    """Inverse of :func:`_pad`."""
    if grid == padded:
        return tokens
    return tokens.unflatten(1, padded)[:, : grid[0], : grid[1]].flatten(1, 2)
