"""Encoder: a post-norm transformer that sees only the visible tokens of a spectrogram."""

from functools import partial

from torch import Tensor, nn
from typing_extensions import override

from amae_plugin.models.base import Encoder, check_probability
from amae_plugin.models.mae_ast.config import MAEASTConfig
from amae_plugin.models.mae_ast.input_norm import InputNorm
from amae_plugin.modules.blocks import Dropout, PostNormBlock, init_linear
from amae_plugin.modules.embedding import PatchEmbed, SequencePositions, Size2d
from amae_plugin.modules.masking import take_tokens


class MAEASTEncoder(Encoder):
    """Post-norm transformer over visible tokens, with a LayerNorm before the blocks (Baade et al. 2022).

    The encoder normalises its input itself. The last block ends with a norm, so ``norm`` does nothing.

    Raises:
        ValueError: a width does not fit the heads, a probability is outside [0, 1), or the patch does not divide the
            bands.
    """

    num_prefix_tokens = 0
    masks_padding = True

    def __init__(self, config: MAEASTConfig):
        super().__init__(config)
        for name in ("dropout", "attention_dropout", "dropout_input", "layerdrop"):
            check_probability(name, getattr(config, name))
        self.grid(self.patch_size[0], config.num_mel_bins)
        self.layerdrop = config.layerdrop
        self.input_norm = InputNorm()
        self.patch_embed = PatchEmbed(self.patch_size, config.embed_dim, config.dropout_input)
        self.positions = SequencePositions(config.embed_dim)
        self.norm_pre = nn.LayerNorm(config.embed_dim)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            PostNormBlock(
                config.embed_dim, config.num_heads, config.mlp_ratio, config.dropout, config.attention_dropout
            )
            for _ in range(config.depth)
        )
        self.norm = nn.Identity()
        init_linear(self.blocks, partial(nn.init.normal_, std=0.02))

    @override
    def forward(
        self, patches: Tensor, grid: Size2d, visible: Tensor | None = None, padding_mask: Tensor | None = None
    ) -> Tensor:
        positions = self.positions(grid[0] * grid[1], patches.device).to(self.norm_pre.weight.dtype)
        if visible is not None:
            patches = take_tokens(patches, visible)
            positions = take_tokens(positions.expand(len(patches), -1, -1), visible)
        x = self.patch_embed(patches) + positions
        x = self.dropout(self.norm_pre(x))
        return self.run_blocks(x, padding_mask)

    @override
    def patches(
        self, source: Tensor, padding_mask: Tensor | None = None, learned: bool = False
    ) -> tuple[Tensor, Size2d]:
        return super().patches(self.input_norm(source, padding_mask, learned))

    @property
    @override
    def input_statistics(self) -> tuple[float, float]:
        norm = self.input_norm
        return norm.running_mean.item(), (norm.running_var + norm.eps).sqrt().item()
