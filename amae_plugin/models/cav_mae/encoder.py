"""Encoder: blocks of its own for each modality, then blocks that both share behind norms of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from amae_plugin.models.base import Encoder
from amae_plugin.models.cav_mae.config import CAVMAEConfig
from amae_plugin.models.settings import MODALITIES
from amae_plugin.modules.blocks import Block, RenormedBlock, init_linear
from amae_plugin.modules.embedding import GridPositions, PatchEmbed, Size2d, patchify_image
from amae_plugin.modules.masking import take_tokens

EPS = 1e-5
"""Added to the variance in all norms."""
COLOURS = 3
"""Values of a pixel."""
_BRANCHES = ("image.", "joint.")


class CAVMAEEncoder(Encoder):
    """Pre-norm transformer without a class token over sounds, pictures or both (Gong et al. 2023, section 2.4).

    The encoder itself is the sound's branch: its last ``shared_depth`` blocks are shared, and the norms in them are the
    sound's. ``image`` is the picture's branch, and ``joint`` the way of both together through the shared blocks;
    ``config.modalities`` says which of the two exist. An encoder of pictures alone keeps the sound's own parts beside
    the blocks that it uses. A state dict may hold branches that the encoder lacks.

    Letters in shapes: B clips, L patches, K visible ones, P values in a patch, D width, S pixels of a side.

    Raises:
        ValueError: a width does not fit the heads, or a patch does not divide its input.
    """

    positions: GridPositions
    num_prefix_tokens = 0
    masks_padding = False
    modalities = MODALITIES
    image: ImageBranch | None
    joint: JointBranch | None

    def __init__(self, config: CAVMAEConfig):
        super().__init__(config)
        self.modalities = config.modalities
        self.num_own = config.depth - config.shared_depth
        dim = config.embed_dim
        self.patch_embed = PatchEmbed(self.patch_size, dim)
        self.modality_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = GridPositions(self.grid(config.input_length, config.num_mel_bins), dim, time_first=True)
        self.blocks = nn.ModuleList(_block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.image_patch_size = config.image_patch_size if "image" in self.modalities else None
        self.register_module("image", ImageBranch(config, self.blocks) if "image" in self.modalities else None)
        self.register_module("joint", JointBranch(config, self.blocks) if self.modalities == MODALITIES else None)
        _reset_parameters(self)
        self.register_load_state_dict_pre_hook(_leave_out_branches)

    @override
    def forward(
        self,
        patches: Tensor,
        grid: Size2d,
        visible: Tensor | None = None,
        padding_mask: Tensor | None = None,
        own: Tensor | None = None,
    ) -> Tensor:
        """Encode the visible patches of a spectrogram on their own, see :meth:`Encoder.forward`.

        Args:
            patches: (B, L, P).
            grid: number of patches in time and frequency.
            visible: (B, K).
            padding_mask: (B, K).
            own: (B, K, D), result of :meth:`own_tokens`, which is computed if None.

        Raises:
            ValueError: this encoder takes pictures alone.
        """
        if own is None:
            own = self.own_tokens(patches, grid, visible, padding_mask)
        return self.norm(self.pass_through(self.blocks[self.num_own :], own, padding_mask))

    def own_tokens(
        self, patches: Tensor, grid: Size2d, visible: Tensor | None = None, padding_mask: Tensor | None = None
    ) -> Tensor:
        """Pass the visible patches through the sound's own blocks: (B, K, D); see :meth:`forward`."""
        if "audio" not in self.modalities:
            raise ValueError("this encoder takes pictures alone, not sounds")
        x = _embed(patches, self.patch_embed, self.positions(grid)[:, 1:] + self.modality_token, visible)
        return self.pass_through(self.blocks[: self.num_own], x, padding_mask)

    @override
    def views(
        self,
        patches: Tensor | None,
        grid: Size2d | None,
        visible: Tensor | None = None,
        padding_mask: Tensor | None = None,
        image: Tensor | None = None,
    ) -> list[Tensor]:
        """Encode clips: both together, or one alone; see :meth:`Encoder.views`.

        An encoder of both that is given one encodes it twice, as the one of two and on its own, as published for clips
        that lack the other.
        """
        seen = None
        if image is not None and self.image is not None:
            seen = self.image.own_tokens(*self.image.patches(image))
        if patches is not None and grid is not None and "audio" in self.modalities:
            own = self.own_tokens(patches, grid, visible, padding_mask)
            if seen is not None and self.joint is not None:
                return [self.joint(torch.cat([own, seen], dim=1))]
            alone = self(patches, grid, visible, padding_mask, own)
        elif seen is not None and self.image is not None:
            own, alone = seen, self.image(seen)
        else:
            raise ValueError(f"the clips have nothing that this encoder takes, which is {' or '.join(self.modalities)}")
        return [alone] if self.joint is None else [self.joint(own), alone]

    @override
    def encode_image(self, image: Tensor) -> Tensor:
        if self.image is None:
            return super().encode_image(image)
        return self.image(self.image.own_tokens(*self.image.patches(image)))

    @override
    def freeze_idle(self) -> None:
        if self.image is None:
            return
        shared = self.blocks[self.num_own :]
        idle = [self.norm, *(norm for block in shared for norm in (block.norm1, block.norm2))]
        if self.joint is None:
            idle += [self.patch_embed, self.blocks[: self.num_own]]
            self.modality_token.requires_grad_(False)
        else:
            idle += [self.image.norm, self.image.blocks[self.num_own :]]
        for part in idle:
            part.requires_grad_(False)

    @override
    def hear_only(self) -> None:
        self.modalities, self.image, self.joint = Encoder.modalities, None, None
        self.image_patch_size = None

    @property
    @override
    def layers(self) -> Sequence[nn.Module]:
        if self.image is None:
            return super().layers
        return tuple(nn.ModuleList(pair) for pair in zip(self.blocks, self.image.blocks))


class ImageBranch(nn.Module):
    """What an encoder has for pictures: an embedding, blocks, of which the shared ones are only norms, and a norm.

    Args:
        config: sizes.
        blocks: blocks of the sound's branch.
    """

    def __init__(self, config: CAVMAEConfig, blocks: nn.ModuleList):
        super().__init__()
        self.patch_size, dim = config.image_patch_size, config.embed_dim
        num_own = config.depth - config.shared_depth
        self.patch_embed = PatchEmbed((self.patch_size, self.patch_size), dim, channels=COLOURS)
        self.modality_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = image_positions(config, dim)
        own = (_block(config) for _ in range(num_own))
        self.blocks = nn.ModuleList([*own, *(RenormedBlock(cast(Block, block)) for block in blocks[num_own:])])
        self.num_own = num_own
        self.norm = nn.LayerNorm(dim, eps=EPS)

    def patches(self, image: Tensor) -> tuple[Tensor, Size2d]:
        """Cut pictures (B, 3, S, S) into patches (B, L, P), see :func:`patchify_image`, and return their grid.

        Raises:
            ValueError: the patch does not divide them, or they have no three colours.
        """
        patches, grid = patchify_image(image, self.patch_size)
        if image.shape[1] != COLOURS:
            raise ValueError(f"pictures have {COLOURS} colours, red, green and blue, not {image.shape[1]}")
        return patches, grid

    def own_tokens(self, patches: Tensor, grid: Size2d, visible: Tensor | None = None) -> Tensor:
        """Pass the visible patches, at (B, K) or all, through the picture's own blocks: (B, K, D)."""
        x = _embed(patches, self.patch_embed, self.positions(grid)[:, 1:] + self.modality_token, visible)
        for block in self.blocks[: self.num_own]:
            x = block(x)
        return x

    def forward(self, own: Tensor) -> Tensor:
        """Pass the result of :meth:`own_tokens` through the shared blocks and the norm: (B, K, D)."""
        for block in self.blocks[self.num_own :]:
            own = block(own)
        return self.norm(own)


class JointBranch(nn.Module):
    """Norms of both modalities together: those of the shared blocks, by their layers, and the last one.

    Args:
        config: sizes.
        blocks: blocks of the sound's branch.
    """

    def __init__(self, config: CAVMAEConfig, blocks: nn.ModuleList):
        super().__init__()
        layers = range(config.depth - config.shared_depth, config.depth)
        self.blocks = nn.ModuleDict({str(layer): RenormedBlock(cast(Block, blocks[layer])) for layer in layers})
        self.norm = nn.LayerNorm(config.embed_dim, eps=EPS)

    def forward(self, own: Tensor) -> Tensor:
        """Pass tokens (B, K, D), of both modalities side by side or of one, through the shared blocks and the norm."""
        for block in self.blocks.values():
            own = block(own)
        return self.norm(own)


def image_positions(config: CAVMAEConfig, dim: int) -> GridPositions:
    """Make the positions, of a width, of the patches of an image.

    Raises:
        ValueError: the patch does not divide the image.
    """
    side, rest = divmod(config.image_size, config.image_patch_size)
    if rest:
        raise ValueError(
            f"model.image_patch_size={config.image_patch_size} does not divide model.image_size={config.image_size}"
        )
    return GridPositions((side, side), dim)


def _block(config: CAVMAEConfig) -> Block:
    return Block(config.embed_dim, config.num_heads, config.mlp_ratio, EPS)


def _embed(patches: Tensor, embedding: PatchEmbed, places: Tensor, visible: Tensor | None) -> Tensor:
    """Embed the visible ones (B, K, D) of patches (B, L, P), and add what tells their places (1, L, D)."""
    if visible is not None:
        patches = take_tokens(patches, visible)
        places = take_tokens(places.expand(len(patches), -1, -1), visible)
    return embedding(patches) + places


def _reset_parameters(encoder: CAVMAEEncoder) -> None:
    """Initialise as MAE does: Xavier-uniform matrices, modality tokens from N(0, 0.02)."""
    init_linear(encoder, nn.init.xavier_uniform_)
    for branch in (encoder, encoder.image):
        if branch is not None:
            nn.init.xavier_uniform_(branch.patch_embed.proj.weight.data.flatten(1))
            nn.init.normal_(branch.modality_token, std=0.02)


def _leave_out_branches(encoder: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    for branch in _BRANCHES:
        if getattr(encoder, branch[:-1]) is None:
            for name in [name for name in state if name.startswith(prefix + branch)]:
                del state[name]
