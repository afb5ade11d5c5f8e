"""MAE-AST: hide most tokens of a spectrogram, encode the rest, predict the hidden ones (Baade et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from amae_plugin.models.mae_ast.config import MAEASTConfig
from amae_plugin.models.mae_ast.decoder import MAEASTDecoder
from amae_plugin.models.mae_ast.encoder import MAEASTEncoder
from amae_plugin.models.pretraining import PretrainingModel
from amae_plugin.modules import losses
from amae_plugin.modules.compute import matrix_precision
from amae_plugin.modules.masking import attendable, build_masking, check_mask, gather_ids, noise_of
from amae_plugin.modules.patching import patchify, unpatchify


class MAEAST(PretrainingModel):
    """Masked autoencoder over log-mel spectrograms with a generative and a discriminative objective.

    Letters in shapes: B clips, T frames, F mel bands, L tokens (time-major), P values in a token, D encoder width.

    Raises:
        ValueError: settings that make no model: of widths, probabilities, the masking, or both weights 0.
    """

    encoder: MAEASTEncoder

    def __init__(self, config: MAEASTConfig):
        super().__init__()
        weights = {"reconstruction": config.reconstruction_weight, "info_nce": config.info_nce_weight}
        self.loss_weights = {name: weight for name, weight in weights.items() if weight}
        if not self.loss_weights or min(weights.values()) < 0:
            raise ValueError(
                "model.reconstruction_weight and model.info_nce_weight must be at least 0, one of them above, not "
                f"{config.reconstruction_weight} and {config.info_nce_weight}"
            )
        self.config = config
        self.encoder = MAEASTEncoder(config)
        self.decoder = MAEASTDecoder(config)
        values = self.encoder.patch_size[0] * self.encoder.patch_size[1]
        self.reconstruction_head = nn.Linear(config.decoder_embed_dim, values) if weights["reconstruction"] else None
        self.classification_head = nn.Linear(config.decoder_embed_dim, values) if weights["info_nce"] else None
        self.masking = build_masking(
            config.masking,
            config.mask_ratio,
            config.mask_ratio_time,
            config.mask_ratio_frequency,
            config.mask_length,
        )

    def forward(
        self,
        source: Tensor,
        mask: Tensor | None = None,
        seed: Tensor | None = None,
        padding_mask: Tensor | None = None,
    ) -> dict[str, Any]:
        """Predict every token from the visible ones.

        Args:
            source: (B, T, F) log-mel, not normalised; T and F are multiples of the patch.
            mask: (B, L) bool, True = hidden; clips may hide different numbers of tokens; sampled if None.
            seed: (B,) integers that the sampled masks depend on, clip by clip; PyTorch's generator if None.
            padding_mask: (B, T) bool, True = beyond the clip's end. Tokens wholly there are neither hidden nor attended
                to, nor part of any loss.

        Returns:
            ``prediction`` (B, L, P) of the reconstruction head and ``classification`` (B, L, P) of the InfoNCE head,
            each only if its weight is not 0; ``target`` (B, L, P), the normalised tokens; ``mask`` (B, L), hidden and
            not padding. Predictions and targets are float32.

        Raises:
            ValueError: the patch does not divide the spectrogram, or a mask is of another shape.
        """
        padding_mask = self.encoder.heeded(padding_mask)
        patches, grid = self.encoder.patches(source, padding_mask)
        padding = None if padding_mask is None else self.patch_padding(padding_mask)
        if mask is None:
            mask = self.masking(noise_of(source, seed), grid, padding)
            visible, unused = gather_ids(mask, padding, self.masking.num_visible(grid))
        else:
            check_mask(mask, patches)
            mask = mask if padding is None else mask & ~padding
            visible, unused = gather_ids(mask, padding)
        with matrix_precision(source.device, self.config.bf16):
            latent = self.encoder(patches, grid, visible, attendable(unused))
            x = self.decoder(latent, visible, patches.shape[1], unused, attendable(padding))
            output = {"target": patches, "mask": mask}
            if self.reconstruction_head is not None:
                output["prediction"] = self.reconstruction_head(x).float()
            if self.classification_head is not None:
                output["classification"] = self.classification_head(x).float()
        return output

    def token_losses(self, output: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Losses (B, L) of an output of :meth:`forward`, unweighted and 0 where nothing is hidden, by objective.

        Their names are those of ``loss_weights``: ``reconstruction`` and ``info_nce``, those whose weight is not 0.
        """
        target, mask = output["target"], output["mask"]
        by_name = {}
        if self.reconstruction_head is not None:
            by_name["reconstruction"] = losses.reconstruction(output["prediction"], target, mask)
        if self.classification_head is not None:
            by_name["info_nce"] = losses.info_nce(output["classification"], target, mask)
        return by_name

    def reconstruct(
        self, source: Tensor, prediction: Tensor, mask: Tensor, padding_mask: Tensor | None = None
    ) -> Tensor:
        """See :meth:`PretrainingModel.reconstruct`."""
        patch_size = self.encoder.patch_size
        grid = (source.shape[1] // patch_size[0], source.shape[2] // patch_size[1])
        prediction = self.encoder.input_norm.inverse(prediction)
        return unpatchify(torch.where(mask[..., None], prediction, patchify(source, patch_size)), grid, patch_size)

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """See :attr:`PretrainingModel.blocks`."""
        return (*self.encoder.blocks, *self.decoder.blocks)
