"""EAT: predict a teacher's features of hidden patches from the visible ones (Chen et al., IJCAI 2024)."""

from collections.abc import Mapping

import torch
from torch import Tensor
from typing_extensions import override

from amae_plugin.models.base import PretrainingModel
from amae_plugin.models.eat.config import EATConfig
from amae_plugin.models.eat.decoder import EATDecoder
from amae_plugin.models.eat.encoder import EATEncoder
from amae_plugin.models.eat.mixtures import Mixtures, beside, twice
from amae_plugin.models.eat.teacher import EATTeacher
from amae_plugin.modules import losses
from amae_plugin.modules.masking import cloned_noise, seeded_noise, seeded_normal, take_tokens, visible_ids
from amae_plugin.modules.moving_average import LinearDecay


class EAT(PretrainingModel):
    """Student and teacher over log-mel spectrograms, as in data2vec 2.0 (Chen et al. 2024, section 3).

    The teacher, a moving average of the encoder, sees a whole clip once. The encoder sees the clip under several masks,
    its clones, and a convolutional decoder predicts the teacher's features of the hidden patches. CLS predicts the mean
    of these features.

    With ``mixtures``, it is SSLAM's second stage (Alex et al., ICLR 2025): each clip is followed by a mixture with
    another clip, under the same masks. The objectives of EAT hold for both, but CLS predicts the last block's features.
    The objective ``mixture`` asks of a mixture the mean of the features of both sources, each heard alone.

    Letters in shapes: B clips, with ``mixtures`` twice as many in the results, N clones of all clips, clip by clip, T
    frames, F mel bands, L patches (time-major), K visible ones, D width.
    """

    config: EATConfig
    encoder: EATEncoder
    teacher: EATTeacher

    def __init__(self, config: EATConfig):
        super().__init__(config)
        self.loss_weights = {"frame": 1.0, "utterance": config.utterance_weight}
        if config.mixtures:
            self.loss_weights["mixture"] = 1.0
        self.encoder = EATEncoder(config)
        self.decoder = EATDecoder(config)
        decay = LinearDecay(*config.teacher_decay, config.teacher_decay_updates)
        self.teacher = EATTeacher(self.encoder, decay)
        self.masking = config.build_masking()

    def forward(
        self, source: Tensor, mask: Tensor | None = None, seed: Tensor | None = None, padding_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Predict the teacher's features of every patch, under several masks.

        Args:
            source: (B, T, F) normalised log-mel; T and F are multiples of the patch.
            mask: (N, L) bool, True = hidden, any number of masks for each clip, clip by clip, that all hide equally
                many patches; ``config.clones`` of each clip are sampled if None.
            seed: (B,) seeds of the sampled masks and of the decoder's noise, one for each clip; PyTorch's generator if
                None.
            padding_mask: (B, T), without effect: as published, padding is part of the clip.

        Returns:
            ``prediction`` (N, L, D), ``target`` (B, L, D) from :meth:`EATTeacher.targets`, ``mask`` (N, L), ``latent``
            (N, 1 + K, D), CLS and the K visible patches in order, and ``target_variance``, see
            :meth:`PretrainingModel.forward`. All but the mask are float32. With ``mixtures`` also ``last_block``, the
            same targets of the last block, and ``retained`` (B / 2, L, D), the targets of both sources.

        Raises:
            ValueError: the patch does not divide the spectrogram, the mask has another shape, or the masks leave
                different numbers of patches visible.
        """
        patches, grid = self.encoder.patches(source)
        draw = seeded_noise(source, seed)
        if mask is None:
            mask = self.masking(cloned_noise(draw, self.config.clones), grid)
            visible = visible_ids(mask, self.masking.num_visible(grid))
        else:
            _check_clones(mask, patches)
            visible = visible_ids(mask)
        clips = patches
        if self.config.mixtures:
            mixtures = Mixtures.draw(clips, grid, draw)
            patches = beside(clips, mixtures.patches)
            mask, visible = twice(mask, len(clips)), twice(visible, len(clips))
        with self.matrix_precision(source.device):
            latent = self.encoder.encode_clones(patches, grid, visible).float()
            noise = None
            if self.training and self.decoder.noise_std:
                shape = (len(mask), patches.shape[1], self.encoder.embed_dim)
                noise = seeded_normal(source, seed, shape[0] // len(source) * shape[1] * shape[2]).view(shape)
            prediction = self.decoder(latent[:, self.encoder.num_prefix_tokens :], visible, grid, noise)
            positions = self.encoder.positions(grid)[:, 1:]
            target, last_block = self.teacher.targets(patches, positions)
            output = {
                "prediction": prediction.float(),
                "target": target,
                "mask": mask,
                "latent": latent,
                "target_variance": losses.feature_variance(target),
            }
            if self.config.mixtures:
                heard = take_tokens(positions.expand(len(clips), -1, -1), mixtures.places)
                second, _ = self.teacher.targets(mixtures.second, heard)
                output |= {"last_block": last_block, "retained": mixtures.retained(target[::2], second)}
        return output

    @override
    def token_losses(self, output: Mapping[str, Tensor]) -> dict[str, Tensor]:
        target, mask = output["target"], output["mask"]
        clones, scale = len(mask) // len(target), target.shape[-1] ** -0.5
        prediction = output["prediction"].unflatten(0, (-1, clones))
        frame = (prediction - target[:, None]).square().sum(dim=-1).flatten(0, 1) * scale
        cls = output["latent"][:, 0].unflatten(0, (-1, clones))
        whole = output.get("last_block", target).mean(dim=1)
        utterance = (cls - whole[:, None]).square().sum(dim=-1).flatten() * scale
        found = {"frame": frame * mask, "utterance": utterance}
        if "retained" in output:
            error = (prediction[1::2] - output["retained"][:, None]).square().sum(dim=-1) * scale
            # Twice, so that the mean over the tokens of clips and mixtures is that over the mixtures'.
            found["mixture"] = beside(torch.zeros_like(error), 2 * error).flatten(0, 1) * mask
        return found


def _check_clones(mask: Tensor, patches: Tensor) -> None:
    """Refuse masks that are not those of some clones of each clip of the patches (B, L, P)."""
    if mask.dim() != 2 or not len(mask) or len(mask) % len(patches) or mask.shape[1] != patches.shape[1]:
        raise ValueError(
            f"the mask must be (clones x B, L), where (B, L) = {tuple(patches.shape[:2])}, not {tuple(mask.shape)}"
        )
