"""CAV-MAE: hide most patches of a sound and its picture, predict them, and match the two (Gong et al., ICLR 2023)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from typing_extensions import override

from amae_plugin.models.autoencoder import MaskedAutoencoder
from amae_plugin.models.cav_mae.config import CAVMAEConfig
from amae_plugin.models.cav_mae.decoder import CAVMAEDecoder
from amae_plugin.models.cav_mae.encoder import CAVMAEEncoder
from amae_plugin.modules import losses
from amae_plugin.modules.embedding import Size2d, patchify_image, unpatchify_image
from amae_plugin.modules.gathering import all_clips
from amae_plugin.modules.masking import RandomMasking, hide, seeded_noise

# Pictures vary as fast down as across: the correlation of their patches falls by the share of the side, as that of a
# spectrogram falls by the share of its bands.
_FRAMES_OF_A_SIDE = 32.0


class CAVMAE(MaskedAutoencoder):
    """Contrastive audio-visual masked autoencoder.

    A model of sounds alone (``config.modalities``) is a masked autoencoder of them.
    Letters in shapes: B clips, T frames, F mel bands, L patches (time-major), P values in a patch, D encoder width; of
    pictures: S pixels of a side, M patches, Q values in a patch.

    Raises:
        ValueError: ``config.modalities`` lacks audio, or a size or a parameter of the mask is out of range.
    """

    config: CAVMAEConfig
    encoder: CAVMAEEncoder
    usual_std = 1.0  # of values normalised by one standard deviation

    def __init__(self, config: CAVMAEConfig):
        super().__init__(config)
        if "audio" not in config.modalities:
            raise ValueError("model.modalities is image, but pretraining needs audio, alone or with image")
        self.loss_weights = {"reconstruction": 1.0}
        if "image" in config.modalities:
            self.loss_weights |= {"image_reconstruction": 1.0, "contrastive": config.contrastive_weight}
        self.normalizes_targets = config.norm_pix_loss
        self.encoder = CAVMAEEncoder(config)
        if self.encoder.image is not None:
            # No loss depends on these norms, see `forward`, and distributed training waits for all that have gradients.
            for branch in (self.encoder, self.encoder.image):
                for block in branch.blocks[self.encoder.num_own : -1]:
                    block.norm1.requires_grad_(False)
                    block.norm2.requires_grad_(False)
        self.decoder = CAVMAEDecoder(config)
        self.masking = config.build_masking()
        self.image_masking = RandomMasking(config.image_mask_ratio)

    def forward(  # type: ignore[override]  # the picture comes second
        self,
        source: Tensor,
        image: Tensor | None = None,
        mask: Tensor | None = None,
        image_mask: Tensor | None = None,
        seed: Tensor | None = None,
        padding_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Predict every patch of sounds and of their pictures from the visible ones.

        Args:
            source: (B, T, F) normalised log-mel; T and F are multiples of the patch.
            image: (B, 3, S, S) normalised pictures; None: sounds alone.
            mask: (B, L) bool, True = hidden, the same number for every clip; sampled if None.
            image_mask: (B, M) likewise.
            seed: (B,) seeds of the sampled masks, one for each clip; PyTorch's generator if None.
            padding_mask: (B, T), without effect: as published, padding is part of the clip.

        Returns:
            ``prediction`` (B, L, P), ``target`` (B, L, P) from :meth:`targets`, ``mask`` (B, L), and ``latent``, the
            visible patches of the sound in order, then those of the picture. With pictures also ``image_prediction``
            and ``image_target`` (B, M, Q), row by row and in a patch pixel by pixel, ``image_mask`` (B, M), and
            ``embedding`` and ``image_embedding`` (B, D), which the contrastive objective compares. All but the latent
            are float32 or bool.

        Raises:
            ValueError: the patch does not divide its input, a mask has another shape, the clips have different numbers
                of visible patches, or a model of sounds alone is given pictures.
        """
        patches, grid = self.encoder.patches(source)
        mask, visible = hide(self.masking, patches, grid, seeded_noise(source, seed), mask)
        output = {"target": self.targets(patches), "mask": mask}
        if image is None:
            with self.matrix_precision(source.device):
                latent = self._encode_sound(patches, grid, visible)
                prediction = self.decoder(latent, visible, grid)
            return {**output, "prediction": prediction.float(), "latent": latent}
        image_branch, joint_branch = self.encoder.image, self.encoder.joint
        if image_branch is None or joint_branch is None:
            raise ValueError("this model takes sounds alone, but is given pictures")
        image_patches, image_grid = image_branch.patches(image)
        noise = seeded_noise(image, None if seed is None else ~seed)  # whatever the sound's mask has drawn
        image_mask, image_visible = hide(self.image_masking, image_patches, image_grid, noise, image_mask)
        with self.matrix_precision(source.device):
            heard = self.encoder.own_tokens(patches, grid, visible)
            seen = image_branch.own_tokens(image_patches, image_grid, image_visible)
            latent = joint_branch(torch.cat([heard, seen], dim=1))
            predictions = self.decoder.predict_both(latent, visible, grid, image_visible, image_grid)
            # As published, here alone: of several shared blocks only the last.
            embedding = self.encoder.norm(self.encoder.blocks[-1](heard))
            image_embedding = image_branch.norm(image_branch.blocks[-1](seen))
        return {
            **output,
            "prediction": predictions[0].float(),
            "image_prediction": predictions[1].float(),
            "image_target": self.targets(image_patches),
            "image_mask": image_mask,
            "latent": latent,
            "embedding": embedding.float().mean(dim=1),
            "image_embedding": image_embedding.float().mean(dim=1),
        }

    @override
    def token_losses(self, output: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {"reconstruction": losses.reconstruction(output["prediction"], output["target"], output["mask"])}
        if "image_prediction" in output:
            mask = output["image_mask"]
            errors = losses.reconstruction(output["image_prediction"], output["image_target"], mask)
            found["image_reconstruction"] = errors.sum(dim=1) / mask.sum(dim=1).clamp(min=1)
            found["contrastive"] = self._contrast(output["embedding"], output["image_embedding"])
        return found

    @override
    def reconstruct_image(self, image: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
        patches, grid = patchify_image(image, self.config.image_patch_size)
        if self.normalizes_targets:
            prediction = self.denormalize(prediction, patches, ~mask, grid, _FRAMES_OF_A_SIDE / grid[0])
        filled = torch.where(mask[..., None], prediction, patches)
        return unpatchify_image(filled, grid, self.config.image_patch_size)

    def _encode_sound(self, patches: Tensor, grid: Size2d, visible: Tensor) -> Tensor:
        """Encode the visible patches of sounds alone as the decoder knows them, that of both by the joint branch."""
        if self.encoder.joint is None:
            return self.encoder(patches, grid, visible)
        latent = self.encoder.joint(self.encoder.own_tokens(patches, grid, visible))
        if self.training and torch.is_grad_enabled():
            # DistributedDataParallel waits for a gradient of every parameter.
            latent = latent + 0.0 * torch.stack([weight.sum() for weight in self.parameters()]).sum()
        return latent

    def _contrast(self, heard: Tensor, seen: Tensor) -> Tensor:
        """Return the contrastive loss (B,) of the clips' mean tokens (B, D) of the two modalities."""
        config, own = self.config, None
        all_heard, all_seen = heard, seen
        if config.contrastive_all_ranks:
            all_heard, first = all_clips(heard)
            all_seen, _ = all_clips(seen)
            own = torch.arange(first, first + len(heard), device=heard.device)
        found = []
        if config.contrastive_direction != "sound_to_image":
            found.append(losses.contrastive(seen, all_heard, config.contrastive_temperature, own))
        if config.contrastive_direction != "image_to_sound":
            found.append(losses.contrastive(heard, all_seen, config.contrastive_temperature, own))
        return torch.stack(found).mean(dim=0)
