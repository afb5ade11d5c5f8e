"""MAE-AST: hide most tokens of a spectrogram, encode the rest, predict the hidden ones (Baade et al. 2022)."""

from collections.abc import Mapping

from torch import Tensor, nn
from typing_extensions import override

from amae_plugin.models.base import PretrainingModel
from amae_plugin.models.mae_ast.config import MAEASTConfig
from amae_plugin.models.mae_ast.decoder import MAEASTDecoder
from amae_plugin.models.mae_ast.encoder import MAEASTEncoder
from amae_plugin.modules import losses
from amae_plugin.modules.masking import attention_padding, check_mask, gather_ids, seeded_noise


class MAEAST(PretrainingModel):
    """Masked autoencoder over log-mel spectrograms with a generative and a discriminative objective.

    Letters in shapes: B clips, T frames, F mel bands, L tokens (time-major), P values in a token, D encoder width.

    Raises:
        ValueError: a width, a probability or a parameter of the mask is out of range, or both weights are 0.
    """

    config: MAEASTConfig
    encoder: MAEASTEncoder

    def __init__(self, config: MAEASTConfig):
        super().__init__(config)
        weights = {"reconstruction": config.reconstruction_weight, "info_nce": config.info_nce_weight}
        self.loss_weights = {name: weight for name, weight in weights.items() if weight}
        if not self.loss_weights or min(weights.values()) < 0:
            raise ValueError(
                "model.reconstruction_weight and model.info_nce_weight must be at least 0 and not both 0, but are "
                f"{config.reconstruction_weight} and {config.info_nce_weight}"
            )
        self.encoder = MAEASTEncoder(config)
        self.decoder = MAEASTDecoder(config)
        values = self.encoder.patch_size[0] * self.encoder.patch_size[1]
        self.reconstruction_head = nn.Linear(config.decoder_embed_dim, values) if weights["reconstruction"] else None
        self.classification_head = nn.Linear(config.decoder_embed_dim, values) if weights["info_nce"] else None
        self.masking = config.build_masking()

    def forward(
        self, source: Tensor, mask: Tensor | None = None, seed: Tensor | None = None, padding_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Predict every token from the visible ones.

        Args:
            source: (B, T, F) log-mel, not normalised; T and F are multiples of the patch.
            mask: (B, L) bool, True = hidden; clips may hide different numbers of tokens; sampled if None.
            seed: (B,) seeds of the sampled masks, one for each clip; PyTorch's generator if None.
            padding_mask: (B, T) bool, True = beyond the clip's end. Tokens wholly there are never hidden, attended to
                or part of a loss.

        Returns:
            ``prediction`` (B, L, P) from the reconstruction head and ``classification`` (B, L, P) from the InfoNCE
            head, each only if its weight is not 0; ``target`` (B, L, P), the normalised tokens; ``mask`` (B, L), True =
            hidden and not padding. Predictions and targets are float32.

        Raises:
            ValueError: the patch does not divide the spectrogram, or the mask has another shape.
        """
        padding_mask = self.encoder.relevant_padding(padding_mask)
        patches, grid = self.encoder.patches(source, padding_mask)
        padding = None if padding_mask is None else self.encoder.patch_padding(padding_mask)
        if mask is None:
            mask = self.masking(seeded_noise(source, seed), grid, padding)
            visible, unused = gather_ids(mask, padding, self.masking.num_visible(grid))
        else:
            check_mask(mask, patches)
            mask = mask if padding is None else mask & ~padding
            visible, unused = gather_ids(mask, padding)
        with self.matrix_precision(source.device):
            latent = self.encoder(patches, grid, visible, attention_padding(unused))
            x = self.decoder(latent, visible, patches.shape[1], unused, attention_padding(padding))
            output = {"target": patches, "mask": mask}
            if self.reconstruction_head is not None:
                output["prediction"] = self.reconstruction_head(x).float()
            if self.classification_head is not None:
                output["classification"] = self.classification_head(x).float()
        return output

    @override
    def token_losses(self, output: Mapping[str, Tensor]) -> dict[str, Tensor]:
        target, mask = output["target"], output["mask"]
        by_name = {}
        if self.reconstruction_head is not None:
            by_name["reconstruction"] = losses.reconstruction(output["prediction"], target, mask)
        if self.classification_head is not None:
            by_name["info_nce"] = losses.info_nce(output["classification"], target, mask)
        return by_name

    @override
    def reconstruct(
        self, source: Tensor, prediction: Tensor, mask: Tensor, padding_mask: Tensor | None = None
    ) -> Tensor:
        return super().reconstruct(source, self.encoder.input_norm.inverse(prediction), mask)
