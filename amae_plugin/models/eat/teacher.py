"""Teacher: a moving average of the encoder, whose features of whole clips are the targets."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amae_plugin.models.eat.encoder import EATEncoder, prepend
from amae_plugin.modules.blocks import PostNormBlock
from amae_plugin.modules.embedding import PatchEmbed
from amae_plugin.modules.moving_average import LinearDecay, MovingAverage


class EATTeacher(MovingAverage):
    """Moving average of an encoder's patch embedding, CLS token, first norm and blocks (Chen et al. 2024, section 3.1).

    Args:
        encoder: encoder that is followed.
        decay: schedule of the decay.
    """

    patch_embed: PatchEmbed
    cls_token: nn.Parameter
    norm_pre: nn.LayerNorm
    blocks: nn.ModuleList

    def __init__(self, encoder: EATEncoder, decay: LinearDecay):
        super().__init__(encoder, ("patch_embed", "cls_token", "norm_pre", "blocks"), decay)

    @torch.no_grad()
    def targets(self, patches: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of the patches of whole clips, and those of the last block: (B, L, D) each, float32.

        The MLP's output in each block, before the sum and the norm, is normalised over time, channel by channel. The
        features are the mean over the blocks. Both results are normalised over the channels.

        Args:
            patches: (B, L, P).
            positions: (1, L, D), or (B, L, D).
        """
        x = self.norm_pre(prepend(self.cls_token, self.patch_embed(patches) + positions))
        total = last = torch.zeros((), device=x.device)
        for block in self.blocks:
            x, branch = cast(PostNormBlock, block).with_mlp(x)
            last = F.instance_norm(branch[:, 1:].float().transpose(1, 2))
            total = total + last
        mean, last = total.transpose(1, 2) / len(self.blocks), last.transpose(1, 2)
        return F.layer_norm(mean, mean.shape[-1:]), F.layer_norm(last, last.shape[-1:])
