"""Decoder: from encoded visible tokens and mask tokens to a prediction of every patch."""

from collections.abc import Callable
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from amae_plugin.models.audio_mae.config import AudioMAEConfig
from amae_plugin.modules.blocks import Block
from amae_plugin.modules.decoder import MaskedDecoder
from amae_plugin.modules.embedding import GridPositions, Size2d, grid_size
from amae_plugin.modules.local_attention import WindowBlock, WindowPlan, padded_grid, permute_tokens, plan_windows
from amae_plugin.modules.multi_window import MultiWindowBlock


class AudioMAEDecoder(MaskedDecoder):
    """Transformer over all patches: local blocks, then global ones (Huang et al. 2022, section 3).

    A local block attends inside windows, which are shifted in every second block. A global block attends to all tokens
    and CLS. ``config.decoder`` chooses their numbers: ``"shifted"`` has local blocks only, ``"global"`` global blocks
    only, and ``"hybrid"`` both. ``"multi_window"`` has MW-MAE's blocks over the patches, see
    :mod:`amae_plugin.modules.multi_window`.

    Raises:
        ValueError: ``config.decoder`` is unknown, a hybrid decoder lacks one kind of block, a window is empty, or the
            width does not fit the heads.
    """

    def __init__(self, config: AudioMAEConfig):
        dim, depth, heads = config.decoder_embed_dim, config.decoder_depth, config.decoder_num_heads
        num_local = {"shifted": depth, "hybrid": depth - config.decoder_global_blocks, "global": 0, "multi_window": 0}
        if config.decoder not in num_local:
            raise ValueError(f"no decoder is called {config.decoder!r}; there are: {', '.join(num_local)}")
        if config.decoder == "hybrid" and not 0 < config.decoder_global_blocks < depth:
            raise ValueError(
                f"a hybrid decoder of {depth} blocks needs 1 to {depth - 1} global ones, not "
                f"model.decoder_global_blocks={config.decoder_global_blocks}"
            )
        if min(config.decoder_window) < 1:
            raise ValueError(f"a window is at least 1 x 1 patches, not model.decoder_window={config.decoder_window}")
        patch_size: Size2d = tuple(config.patch_size)  # type: ignore[assignment]
        grid = grid_size(config.input_length, config.num_mel_bins, patch_size)
        kinds: list[Callable[[int, int, float], nn.Module]]
        if config.decoder == "multi_window":
            kinds = [partial(MultiWindowBlock, num_tokens=grid[0] * grid[1])] * depth
        else:
            kinds = [WindowBlock if index < num_local[config.decoder] else Block for index in range(depth)]
        super().__init__(
            config.embed_dim,
            patch_size[0] * patch_size[1],
            GridPositions(grid, dim),
            (kind(dim, heads, config.mlp_ratio) for kind in kinds),
        )
        self.num_local = num_local[config.decoder]
        self.decodes_cls = config.decoder != "multi_window"
        self.window: Size2d = tuple(config.decoder_window)  # type: ignore[assignment]
        self.shift: Size2d = tuple(config.decoder_shift)  # type: ignore[assignment]

    @override
    def forward(self, latent: Tensor, visible: Tensor, grid: Size2d) -> Tensor:
        cls, tokens = self.place(latent, visible, grid)
        if self.decodes_cls:
            if self.num_local:
                tokens = self._run_local(tokens, grid)
            return self.predict(cls, tokens, self.blocks[self.num_local :])
        for block in self.blocks:
            tokens = block(tokens)
        return self.predict(cls, tokens, ())

    def _run_local(self, tokens: Tensor, grid: Size2d) -> Tensor:
        """Run the local blocks over the tokens (B, L, D) of a grid; plain and shifted windows alternate."""
        # The tokens stay in window order from block to block: `first` leads into the plain windows, `turns` from the
        # plain to the shifted ones and back.
        first, turns, plans = _route(grid, self.window, self.shift, tokens.device)
        rows, columns = padded_grid(grid, self.window)
        x = F.pad(tokens.unflatten(1, grid), (0, 0, 0, columns - grid[1], 0, rows - grid[0])).flatten(1, 2)
        x = permute_tokens(x, first)
        for index, block in enumerate(self.blocks[: self.num_local]):
            if index:
                x = permute_tokens(x, turns[index % 2])
            x = block(x, plans[index % 2])
        x = permute_tokens(x, plans[(self.num_local - 1) % 2].order.argsort())
        return x.unflatten(1, (rows, columns))[:, : grid[0], : grid[1]].flatten(1, 2)


@lru_cache(maxsize=128)
def _route(
    grid: Size2d, window: Size2d, shift: Size2d, device: torch.device
) -> tuple[Tensor, list[Tensor], list[WindowPlan]]:
    with torch.inference_mode(False):  # training must be able to use a route made during inference
        plain, shifted = (plan_windows(grid, window, by, device) for by in ((0, 0), shift))
        to_shifted = plain.order.argsort()[shifted.order]
        return plain.order, [to_shifted.argsort(), to_shifted], [plain, shifted]
