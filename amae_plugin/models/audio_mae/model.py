"""Audio-MAE: hide most patches of a spectrogram, encode the rest, predict the hidden ones (Huang et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from amae_plugin.models.audio_mae.config import AudioMAEConfig
from amae_plugin.models.audio_mae.decoder import build_decoder
from amae_plugin.models.audio_mae.encoder import AudioMAEEncoder
from amae_plugin.models.pretraining import PretrainingModel
from amae_plugin.modules import losses
from amae_plugin.modules.compute import matrix_precision
from amae_plugin.modules.masking import build_masking, check_mask, noise_of, visible_ids
from amae_plugin.modules.patching import unpatchify


class AudioMAE(PretrainingModel):
    """Masked autoencoder over log-mel spectrograms.

    Letters in shapes: B clips, T frames, F mel bands, L patches (time-major), P values in a patch, D encoder width.
    """

    encoder: AudioMAEEncoder

    def __init__(self, config: AudioMAEConfig):
        super().__init__()
        self.config = config
        self.loss_weights = {"reconstruction": 1.0}
        self.encoder = AudioMAEEncoder(config)
        self.decoder = build_decoder(config)
        self.masking = build_masking(
            config.masking, config.mask_ratio, config.mask_ratio_time, config.mask_ratio_frequency
        )

    def forward(
        self,
        source: Tensor,
        mask: Tensor | None = None,
        seed: Tensor | None = None,
        padding_mask: Tensor | None = None,
    ) -> dict[str, Any]:
        """Predict every patch from the visible ones.

        Args:
            source: (B, T, F) normalised log-mel; T and F are multiples of the patch.
            mask: (B, L) bool, True = hidden, the same number for every clip; sampled if None.
            seed: (B,) integers that the sampled masks depend on, clip by clip; PyTorch's generator if None.
            padding_mask: (B, T), of no effect here: as published, padding is a part of the clip.

        Returns:
            ``prediction`` (B, L, P), ``target`` (B, L, P) as :meth:`targets` gives it, ``mask`` (B, L), ``latent``
            (B, 1 + K, D) of the CLS token and the K visible patches in order; predictions and targets are float32.

        Raises:
            ValueError: the patch does not divide the spectrogram, the mask is of another shape, or the clips have
                different numbers of visible patches.
        """
        patches, grid = self.encoder.patches(source)
        if mask is None:
            mask = self.masking(noise_of(source, seed), grid)
            visible = visible_ids(mask, self.masking.num_visible(grid))
        else:
            check_mask(mask, patches)
            visible = visible_ids(mask)
        with matrix_precision(source.device, self.config.bf16):
            latent = self.encoder(patches, grid, visible)
            prediction = self.decoder(latent, visible, grid)
        return {"prediction": prediction.float(), "target": self.targets(patches), "mask": mask, "latent": latent}

    def token_losses(self, output: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See :meth:`PretrainingModel.token_losses`: the mean squared error of every patch."""
        return {"reconstruction": losses.reconstruction(output["prediction"], output["target"], output["mask"])}

    def targets(self, patches: Tensor) -> Tensor:
        """What the model learns to predict from patches (B, L, P): these, or each normalised by its own statistics.

        The variance is the unbiased one, as in MAE.
        """
        patches = patches.float()
        if not self.config.norm_pix_loss:
            return patches
        var, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return (patches - mean) * (var + 1e-6).rsqrt()

    def reconstruct(self, source: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
        """Spectrogram (B, T, F) with the visible patches of ``source`` and the predicted hidden ones.

        Predictions of normalised targets are brought back by each source patch's own mean and variance.

        Args:
            source: (B, T, F) normalised log-mel.
            prediction: (B, L, P) of :meth:`forward`.
            mask: (B, L) bool, True = hidden.
        """
        patches, grid = self.encoder.patches(source)
        if self.config.norm_pix_loss:
            var, mean = torch.var_mean(patches, dim=-1, keepdim=True)
            prediction = prediction * (var + 1e-6).sqrt() + mean
        return unpatchify(torch.where(mask[..., None], prediction, patches), grid, self.encoder.patch_size)

    @property
    def normalizes_targets(self) -> bool:
        """See :attr:`PretrainingModel.normalizes_targets`."""
        return self.config.norm_pix_loss

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """See :attr:`PretrainingModel.blocks`."""
        return (*self.encoder.blocks, *self.decoder.blocks)
