"""M2D: predict what a slowly following copy of the encoder sees in the hidden patches (Niizumi et al. 2024)."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from amae_plugin.models.base import PretrainingModel
from amae_plugin.models.m2d.config import M2DConfig
from amae_plugin.models.m2d.encoder import M2DEncoder
from amae_plugin.modules import losses
from amae_plugin.modules.blocks import Block, init_linear
from amae_plugin.modules.decoder import MaskedDecoder
from amae_plugin.modules.embedding import GridPositions, Size2d
from amae_plugin.modules.masking import hide, seeded_noise, visible_ids
from amae_plugin.modules.moving_average import LinearDecay, MovingAverage


class M2D(PretrainingModel):
    """Masked modeling duo over log-mel spectrograms.

    The online encoder sees the visible patches, and the decoder predicts from them what the target encoder, here the
    teacher, makes of the hidden patches alone. The teacher's blocks and norm follow the online encoder's; patch
    embedding, positions and CLS are the online encoder's own.
    Letters in shapes: B clips, T frames, F mel bands, L patches (time-major), K of them visible, D encoder width.
    """

    config: M2DConfig
    encoder: M2DEncoder
    teacher: MovingAverage

    def __init__(self, config: M2DConfig):
        super().__init__(config)
        self.loss_weights = {"cosine": 1.0}
        self.encoder = M2DEncoder(config)
        dim = config.decoder_embed_dim
        self.decoder = MaskedDecoder(
            config.embed_dim,
            config.embed_dim,
            GridPositions(self.encoder.positions.grid, dim, time_first=True),
            (Block(dim, config.decoder_num_heads, config.mlp_ratio) for _ in range(config.decoder_depth)),
        )
        decay = LinearDecay(*config.teacher_decay, config.teacher_decay_updates, first=1)
        self.teacher = MovingAverage(self.encoder, ("blocks", "norm"), decay)
        init_linear(self.teacher, nn.init.xavier_uniform_)  # as published, it starts as a network of its own
        self.masking = config.build_masking()

    def forward(
        self, source: Tensor, mask: Tensor | None = None, seed: Tensor | None = None, padding_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Predict the teacher's features of every hidden patch from the visible ones.

        Args:
            source: (B, T, F) normalised log-mel; T and F are multiples of the patch.
            mask: (B, L) bool, True = hidden, the same number for every clip; sampled if None.
            seed: (B,) seeds of the sampled masks, one for each clip; PyTorch's generator if None.
            padding_mask: (B, T), without effect: as published, padding is part of the clip.

        Returns:
            ``prediction`` (B, L, D), ``target`` (B, L, D), 0 at visible patches, ``mask`` (B, L), ``latent``
            (B, 1 + K, D), the CLS token and the K visible patches in order, and ``target_variance``. All but the latent
            are float32.

        Raises:
            ValueError: the patch does not divide the spectrogram, the mask has another shape, or the clips have
                different numbers of visible patches.
        """
        patches, grid = self.encoder.patches(source)
        mask, visible = hide(self.masking, patches, grid, seeded_noise(source, seed), mask)
        hidden = visible_ids(~mask, mask.shape[1] - visible.shape[1])
        with self.matrix_precision(source.device):
            latent = self.encoder(patches, grid, visible)
            prediction = self.decoder(latent, visible, grid).float()
            features = self._teach(patches, grid, hidden).float()
        target = torch.zeros_like(prediction).scatter(1, hidden[..., None].expand_as(features), features)
        return {
            "prediction": prediction,
            "target": target,
            "mask": mask,
            "latent": latent,
            "target_variance": losses.feature_variance(features),
        }

    @override
    def token_losses(self, output: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"cosine": losses.cosine(output["prediction"], output["target"], output["mask"])}

    @torch.no_grad()
    def _teach(self, patches: Tensor, grid: Size2d, hidden: Tensor) -> Tensor:
        """Return the teacher's features (B, L - K, D) of the hidden patches, which it sees without the others."""
        x = self.encoder.embed(patches, grid, hidden)
        for block in cast(nn.ModuleList, self.teacher.blocks):
            x = block(x)
        return cast(nn.LayerNorm, self.teacher.norm)(x)[:, 1:]
