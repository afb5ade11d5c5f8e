"""Audio-MAE: hide most patches of a spectrogram, encode the rest, predict the hidden ones (Huang et al. 2022)."""

from collections.abc import Mapping

import torch
from torch import Tensor
from typing_extensions import override

from amae_plugin.models.audio_mae.config import AudioMAEConfig
from amae_plugin.models.audio_mae.decoder import AudioMAEDecoder
from amae_plugin.models.audio_mae.encoder import AudioMAEEncoder
from amae_plugin.models.base import PretrainingModel
from amae_plugin.modules import losses
from amae_plugin.modules.interpolation import interpolate
from amae_plugin.modules.masking import check_mask, seeded_noise, visible_ids

_USUAL_STD = 0.5  # standard deviation of normalised spectrograms


class AudioMAE(PretrainingModel):
    """Masked autoencoder over log-mel spectrograms.

    Letters in shapes: B clips, T frames, F mel bands, L patches (time-major), P values in a patch, D encoder width.
    """

    config: AudioMAEConfig
    encoder: AudioMAEEncoder

    def __init__(self, config: AudioMAEConfig):
        super().__init__(config)
        self.loss_weights = {"reconstruction": 1.0}
        self.normalizes_targets = config.norm_pix_loss
        self.encoder = AudioMAEEncoder(config)
        self.decoder = AudioMAEDecoder(config)
        self.masking = config.build_masking()

    def forward(
        self, source: Tensor, mask: Tensor | None = None, seed: Tensor | None = None, padding_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Predict every patch from the visible ones.

        Args:
            source: (B, T, F) normalised log-mel; T and F are multiples of the patch.
            mask: (B, L) bool, True = hidden, the same number for every clip; sampled if None.
            seed: (B,) seeds of the sampled masks, one for each clip; PyTorch's generator if None.
            padding_mask: (B, T), without effect: as published, padding is part of the clip.

        Returns:
            ``prediction`` (B, L, P), ``target`` (B, L, P) from :meth:`targets`, ``mask`` (B, L), and ``latent``
            (B, 1 + K, D), the CLS token and the K visible patches in order. Predictions and targets are float32.

        Raises:
            ValueError: the patch does not divide the spectrogram, the mask has another shape, or the clips have
                different numbers of visible patches.
        """
        patches, grid = self.encoder.patches(source)
        if mask is None:
            mask = self.masking(seeded_noise(source, seed), grid)
            visible = visible_ids(mask, self.masking.num_visible(grid))
        else:
            check_mask(mask, patches)
            visible = visible_ids(mask)
        with self.matrix_precision(source.device):
            latent = self.encoder(patches, grid, visible)
            prediction = self.decoder(latent, visible, grid)
        return {"prediction": prediction.float(), "target": self.targets(patches), "mask": mask, "latent": latent}

    @override
    def token_losses(self, output: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"reconstruction": losses.reconstruction(output["prediction"], output["target"], output["mask"])}

    def targets(self, patches: Tensor) -> Tensor:
        """Return the patches (B, L, P), as configured each normalised by its own mean and unbiased variance (MAE)."""
        patches = patches.float()
        if not self.normalizes_targets:
            return patches
        var, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return (patches - mean) * (var + 1e-6).rsqrt()

    @override
    def reconstruct(
        self, source: Tensor, prediction: Tensor, mask: Tensor, padding_mask: Tensor | None = None
    ) -> Tensor:
        if self.normalizes_targets:
            # Predictions of normalised targets lack the level and the spread of a patch. Both are interpolated from the
            # visible patches, so the hidden ones have no influence.
            patches, grid = self.encoder.patches(source)
            known = ~mask
            if padding_mask is not None:
                frames = padding_mask.unflatten(1, (grid[0], -1))
                known = known & ~frames.any(dim=-1).repeat_interleave(grid[1], dim=1)
            var, mean = torch.var_mean(patches, dim=-1, keepdim=True)
            # Relative to the usual value, whose logarithm is 0: the guess if no patch is known.
            statistics = torch.cat([mean, ((var + 1e-6).sqrt() / _USUAL_STD).log()], dim=-1)
            mean, log_std = interpolate(statistics, known, grid, self.encoder.patch_size[0]).split(1, dim=-1)
            prediction = prediction * (log_std.exp() * _USUAL_STD) + mean
        return super().reconstruct(source, prediction, mask)
