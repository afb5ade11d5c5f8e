"""Audio-MAE: hide most patches of a spectrogram, encode the rest, predict the hidden ones (Huang et al. 2022)."""

from collections.abc import Mapping

from torch import Tensor
from typing_extensions import override

from amae_plugin.models.audio_mae.config import AudioMAEConfig
from amae_plugin.models.audio_mae.decoder import AudioMAEDecoder
from amae_plugin.models.audio_mae.encoder import AudioMAEEncoder
from amae_plugin.models.autoencoder import MaskedAutoencoder
from amae_plugin.modules import losses
from amae_plugin.modules.masking import hide, seeded_noise


class AudioMAE(MaskedAutoencoder):
    """Masked autoencoder over log-mel spectrograms.

    Letters in shapes: B clips, T frames, F mel bands, L patches (time-major), P values in a patch, D encoder width.
    """

    config: AudioMAEConfig
    encoder: AudioMAEEncoder
    usual_std = 0.5  # of spectrograms normalised by two standard deviations

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
        mask, visible = hide(self.masking, patches, grid, seeded_noise(source, seed), mask)
        with self.matrix_precision(source.device):
            latent = self.encoder(patches, grid, visible)
            prediction = self.decoder(latent, visible, grid)
        return {"prediction": prediction.float(), "target": self.targets(patches), "mask": mask, "latent": latent}

    @override
    def token_losses(self, output: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"reconstruction": losses.reconstruction(output["prediction"], output["target"], output["mask"])}
