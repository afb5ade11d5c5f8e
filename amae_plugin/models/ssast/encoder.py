"""The encoder of SSAST, which fine-tuned on labels is an AST: a DeiT over the patches of a spectrogram."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amae_plugin.models.encoder import Encoder
from amae_plugin.models.ssast.config import SSASTConfig
from amae_plugin.modules.blocks import Block
from amae_plugin.modules.masking import take_tokens
from amae_plugin.modules.patching import PatchEmbed, Size2d, overlapping_patches, patchify
from amae_plugin.modules.positions import LearnedPositions


class SSASTEncoder(Encoder):
    """Pre-norm ViT with class and distillation token and learned positions (Gong et al. 2021, section 2.1).

    The spectrogram is an image whose rows are the mel bands, as where ImageNet weights come from: tokens are
    *frequency-major*, token ``f * columns + t``, and inside a patch the values run band by band.
    """

    num_prefix_tokens = 2
    masks_padding = False

    def __init__(self, config: SSASTConfig):
        super().__init__()
        self.embed_dim = config.embed_dim
        self.num_mel_bins = config.num_mel_bins
        self.patch_size = tuple(config.patch_size)  # type: ignore[assignment]
        self.patch_stride = tuple(config.patch_stride or config.patch_size)  # type: ignore[assignment]
        grid = self.grid(config.input_length, config.num_mel_bins)
        self.patch_embed = PatchEmbed(self.patch_size[::-1], config.embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.positions = LearnedPositions(grid[::-1], config.embed_dim, self.num_prefix_tokens)
        self.blocks = nn.ModuleList(
            Block(config.embed_dim, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.reset_parameters()

    def forward(
        self,
        patches: Tensor,
        grid: Size2d,
        visible: Tensor | None = None,
        padding_mask: Tensor | None = None,
        branch_scales: Tensor | None = None,
    ) -> Tensor:
        """See :meth:`Encoder.forward`; the prefix is the class token and the distillation token."""
        if visible is not None:
            patches = take_tokens(patches, visible)
        return self.encode(self.patch_embed(patches), grid, visible, padding_mask, branch_scales)

    def encode(
        self,
        tokens: Tensor,
        grid: Size2d,
        visible: Tensor | None = None,
        padding_mask: Tensor | None = None,
        branch_scales: Tensor | None = None,
    ) -> Tensor:
        """What follows the patch embedding: positions, prefix, blocks and final norm.

        Args:
            tokens: (B, K, D) embedded patches or mask tokens; K = L if ``visible`` is None.
            grid: see :meth:`Encoder.forward`, like all that follow.
            visible: (B, K) positions that the tokens have.
            padding_mask: (B, L).
            branch_scales: (B, depth, 2).

        Returns:
            (B, 2 + K, D).
        """
        prefix_positions, positions = self.positions(grid[::-1]).tensor_split([self.num_prefix_tokens], dim=1)
        if visible is not None:
            positions = take_tokens(positions.expand(len(tokens), -1, -1), visible)
        prefix = torch.cat([self.cls_token, self.dist_token], dim=1) + prefix_positions
        x = torch.cat([prefix.expand(len(tokens), -1, -1), tokens + positions], dim=1)
        return self.run_blocks(x, self.with_prefix(padding_mask), branch_scales)

    def patches(self, source: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Size2d]:
        """See :meth:`Encoder.patches`; frequency-major, overlapping if the stride is smaller than the patch.

        Overlapping patches leave aside the frames and bands at the end that no whole patch covers.
        """
        grid = self.grid(source.shape[1], source.shape[2])
        bands_first = source.transpose(1, 2)
        if self.patch_stride == self.patch_size:
            return patchify(bands_first, self.patch_size[::-1]), grid
        return overlapping_patches(bands_first, self.patch_size[::-1], self.patch_stride[::-1]), grid

    def in_token_order(self, mask: Tensor, grid: Size2d) -> Tensor:
        """See :meth:`Encoder.in_token_order`."""
        return mask.unflatten(1, grid).transpose(1, 2).flatten(1)

    def in_grid_order(self, mask: Tensor, grid: Size2d) -> Tensor:
        """See :meth:`Encoder.in_grid_order`."""
        return mask.unflatten(1, grid[::-1]).transpose(1, 2).flatten(1)

    def reset_parameters(self) -> None:
        """Initialise as DeiT: matrices and class tokens from N(0, 0.02), cut at two units, biases 0."""
        for layer in self.blocks.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.dist_token, std=0.02)
