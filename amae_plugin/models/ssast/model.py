"""SSAST: hide most patches of a spectrogram, then identify and draw the hidden ones (Gong et al., AAAI 2022)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from typing_extensions import override

from amae_plugin.models.base import PretrainingModel
from amae_plugin.models.ssast.config import SSASTConfig
from amae_plugin.models.ssast.encoder import SSASTEncoder
from amae_plugin.models.ssast.frequency_major import turn_heads
from amae_plugin.modules import losses
from amae_plugin.modules.masking import check_mask, seeded_noise


class SSAST(PretrainingModel):
    """Masked spectrogram modelling with a discriminative and a generative objective.

    Hidden patches are replaced by a learned embedding and stay in the sequence. Both heads read the same encoding, so a
    step is one pass through the encoder.

    Letters in shapes: B clips, T frames, F mel bands, L patches (time-major), P values in a patch, D width.

    Raises:
        ValueError: patches overlap, which would reveal hidden values, or a size or a parameter of the mask is out of
            range.
    """

    config: SSASTConfig
    encoder: SSASTEncoder

    def __init__(self, config: SSASTConfig):
        super().__init__(config)
        self.loss_weights = {"reconstruction": 10.0, "info_nce": 1.0}  # of the paper
        self.encoder = SSASTEncoder(config)
        if self.encoder.patch_stride != self.encoder.patch_size:
            raise ValueError(
                "patches may overlap in fine-tuning only: in pretraining, "
                f"model.patch_stride={self.encoder.patch_stride} must equal the patch, {self.encoder.patch_size}"
            )
        values = self.encoder.patch_size[0] * self.encoder.patch_size[1]
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.embed_dim))
        nn.init.xavier_normal_(self.mask_token)
        self.reconstruction_head = _head(config.embed_dim, values)
        self.classification_head = _head(config.embed_dim, values)
        self.masking = config.build_masking()
        self.register_load_state_dict_pre_hook(
            lambda _, state, prefix, *rest: turn_heads(state, prefix, self.encoder.patch_size)
        )

    def forward(
        self, source: Tensor, mask: Tensor | None = None, seed: Tensor | None = None, padding_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Predict every patch for both objectives.

        Args:
            source: (B, T, F) normalised log-mel; T and F are multiples of the patch.
            mask: (B, L) bool, True = hidden; sampled if None.
            seed: (B,) seeds of the sampled masks, one for each clip; PyTorch's generator if None.
            padding_mask: (B, T), without effect: as published, padding is part of the clip.

        Returns:
            ``prediction`` (B, L, P) from the reconstruction head, ``classification`` (B, L, P) from the discriminative
            head, ``target`` (B, L, P), the patches, ``mask`` (B, L), and ``latent`` (B, 2 + L, D), the class tokens and
            all patches. All but the latent are float32 or bool.

        Raises:
            ValueError: the patch does not divide the spectrogram, or the mask has another shape.
        """
        patches, grid = self.encoder.patches(source)
        if mask is None:
            mask = self.masking(seeded_noise(source, seed), grid)
        else:
            check_mask(mask, patches)
        with self.matrix_precision(source.device):
            tokens = self.encoder.patch_embed(patches)
            latent = self.encoder.encode(torch.where(mask[..., None], self.mask_token.to(tokens.dtype), tokens), grid)
            encoded = latent[:, self.encoder.num_prefix_tokens :]
            prediction = self.reconstruction_head(encoded)
            classification = self.classification_head(encoded)
        return {
            "prediction": prediction.float(),
            "classification": classification.float(),
            "target": patches.float(),
            "mask": mask,
            "latent": latent,
        }

    @override
    def token_losses(self, output: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # The paper's equation 1: for each hidden patch, a softmax over its dot products with the predictions of all
        # hidden patches of the clip. MAE-AST exchanges patches and predictions.
        target, mask = output["target"], output["mask"]
        return {
            "reconstruction": losses.reconstruction(output["prediction"], target, mask),
            "info_nce": losses.info_nce(target, output["classification"], mask),
        }


def _head(dim: int, values: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, values))
