"""Classifier: an encoder with a pooling and a linear head, for fine-tuning, linear probes and training from scratch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from amae_plugin.models.base import DownstreamModel
from amae_plugin.models.classifier.config import ClassifierConfig
from amae_plugin.models.registry import find_system
from amae_plugin.modules.embedding import Size2d
from amae_plugin.modules.masking import (
    Noise,
    TimeFrequencyMasking,
    attention_padding,
    check_mask,
    gather_ids,
    seeded_noise,
    visible_ids,
)

POOLINGS = ("mean", "cls", "avgtok", "avgcls", "token_mean", "time_concat")


class BatchNorm(nn.BatchNorm1d):
    """PyTorch's batch norm, which a batch of one clip passes as in evaluation: alone it has no variance."""

    @override
    def forward(self, input: Tensor) -> Tensor:
        if self.training and len(input) == 1:
            return F.batch_norm(input, self.running_mean, self.running_var, eps=self.eps)
        return super().forward(input)


class Classifier(DownstreamModel):
    """Classifier of clips with the encoder of any system (Audio-MAE, section 3.3).

    ``pooling="mean"`` averages the patch tokens of the last block, then normalises (``fc_norm``), and leaves out the
    encoder's final norm. ``"cls"`` takes the class token after the encoder's norm, and normalises it if the encoder
    ends with a block (EAT). AST's poolings keep the encoder's norm and add one before the head (SSAST, Gong et al.
    2022): ``"avgtok"`` averages the patch tokens, ``"avgcls"`` the class tokens, of which SSAST has two. M2D's keep it
    too and add none: ``"token_mean"`` averages the patch tokens, ``"time_concat"`` the time steps, in each of which the
    tokens of the bands stay side by side.
    Letters in shapes: B clips, T frames, F mel bands, L patches, D width, C classes.

    Raises:
        UserError: ``config.encoder`` names no system.
        ValueError: ``config.pooling`` is unknown, needs a class token that the encoder lacks or bands that training
            hides, the number of classes is 0, or a ratio is outside [0, 1).
    """

    config: ClassifierConfig
    kind = "classifier"
    tells = "classes"
    task = "amae_classification"
    plain_config = ClassifierConfig
    size = "num_classes"
    output_name = "logits"

    def __init__(self, config: ClassifierConfig):
        super().__init__(config)
        if config.pooling not in POOLINGS:
            raise ValueError(f"model.pooling is {config.pooling!r}, must be one of {', '.join(POOLINGS)}")
        if config.num_classes < 1:
            raise ValueError(f"a classifier needs classes, not model.num_classes={config.num_classes}")
        settings = config.encoder or {}
        self.encoder = find_system(settings).encoder(settings)
        if "image" in self.encoder.modalities and config.pooling not in ("avgtok", "token_mean"):
            raise ValueError(
                f"model.pooling is {config.pooling}, but an encoder that takes pictures needs avgtok or token_mean, "
                "which keep its norms"
            )
        if config.pooling in ("cls", "avgcls") and not self.encoder.num_prefix_tokens:
            raise ValueError(
                f"model.pooling is {config.pooling}, but this encoder has no class token: choose mean or avgtok"
            )
        self.joins_bands = config.pooling == "time_concat"
        if self.joins_bands and config.mask_ratio_frequency:
            raise ValueError(
                "model.pooling is time_concat, which needs all bands: set model.mask_ratio_frequency to 0, or choose "
                "token_mean"
            )
        width = self.encoder.step_dim(self.joins_bands)
        self.fc_norm: nn.Module = nn.Identity()
        if config.pooling == "mean":
            self.encoder.norm = nn.Identity()
            self.fc_norm = nn.LayerNorm(width, eps=1e-6)
        elif config.pooling == "cls" and isinstance(self.encoder.norm, nn.Identity):
            self.fc_norm = nn.LayerNorm(width, eps=1e-6)
        elif config.pooling in ("avgtok", "avgcls"):
            self.fc_norm = nn.LayerNorm(width, eps=1e-5)
        eps = 1e-5 if config.pooling in ("token_mean", "time_concat") else 1e-6  # M2D's, and that of MAE's linear probe
        self.batch_norm: nn.Module = BatchNorm(width, eps=eps, affine=False) if config.batch_norm else nn.Identity()
        self.head = nn.Linear(width, config.num_classes)
        nn.init.trunc_normal_(self.head.weight, std=config.head_std)
        nn.init.zeros_(self.head.bias)
        self.masking = TimeFrequencyMasking(config.mask_ratio_time, config.mask_ratio_frequency)

        self.frozen = config.frozen
        self.encoder.freeze_idle()
        if config.frozen:
            self.encoder.requires_grad_(False)

    def forward(
        self,
        source: Tensor | None = None,
        mask: Tensor | None = None,
        seed: Tensor | None = None,
        padding_mask: Tensor | None = None,
        image: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Classify clips.

        In training, the configured shares of time steps, bands and branches are left out at random. A frozen encoder
        computes as in evaluation. If the encoder takes sounds and pictures and is given one of them, the head reads the
        mean of two views of it, see :meth:`Encoder.views`.

        Args:
            source: (B, T, F) normalised log-mel of any length that the encoder's patches fit; without overlap, T and F
                are multiples of the patch. None: the clips have no sound.
            mask: (B, L) bool, True = hidden, the same number for every clip; if None, sampled in training and empty in
                evaluation. The pooling ``time_concat`` takes none.
            seed: (B,) seeds of everything random, one for each clip; PyTorch's generator if None.
            padding_mask: (B, T) bool, True = beyond the clip's end. An encoder that ``masks_padding`` neither attends
                to tokens wholly there nor pools them; for other encoders padding is part of the clip.
            image: (B, 3, S, S) normalised pictures, without effect on an encoder that takes none. None: the clips have
                no picture.

        Returns:
            ``logits`` (B, C) and the head's input ``features``, (B, D) or with ``time_concat`` (B, bands D); both
            float32.

        Raises:
            ValueError: a patch does not divide its input, the mask has another shape, the clips have different numbers
                of visible patches, the pooling takes no mask, or the clips have nothing that the encoder takes.
        """
        given = image if source is None else source
        if given is None:
            raise ValueError("the clips have neither a sound nor a picture")
        noise, patches, grid, visible, unused = seeded_noise(given, seed), None, None, None, None
        if source is not None and "audio" in self.encoder.modalities:
            padding_mask = self.encoder.relevant_padding(padding_mask)
            patches, grid = self.encoder.patches(source, padding_mask)
            visible, unused = self._visible(patches, grid, mask, noise, padding_mask)
        with (
            self.matrix_precision(given.device),
            torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen),
            self.drop_paths(noise),
        ):
            views = self.encoder.views(patches, grid, visible, attention_padding(unused), image)
        pooled = torch.stack([self._pool(tokens.float(), unused) for tokens in views]).mean(dim=0)
        features = self.batch_norm(self.fc_norm(pooled))
        return {"logits": self.head(features), "features": features}

    @override
    def outputs(self, source: Tensor) -> Tensor:
        return self(source)["logits"]

    @override
    def features(self, source: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        return self(source, padding_mask=padding_mask)["features"]

    def _pool(self, tokens: Tensor, unused: Tensor | None) -> Tensor:
        if self.config.pooling == "cls":
            return tokens[:, 0]
        if self.config.pooling == "avgcls":
            return tokens[:, : self.encoder.num_prefix_tokens].mean(1)
        return self.encoder.mean_of_patches(tokens, unused, self.joins_bands)

    def _visible(
        self, patches: Tensor, grid: Size2d, mask: Tensor | None, noise: Noise, padding_mask: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the positions (B, K) of the tokens to encode, all if None, and the unused places, True in (B, K)."""
        padding = None if padding_mask is None else self.encoder.patch_padding(padding_mask)
        if mask is not None:
            if self.joins_bands:
                raise ValueError("the pooling time_concat needs all bands of a time step, so it takes no mask")
            check_mask(mask, patches)
            return (visible_ids(mask), None) if padding is None else gather_ids(mask & ~padding, padding)
        if not self.encoder.training or not (self.config.mask_ratio_time or self.config.mask_ratio_frequency):
            return None, padding
        return gather_ids(self.masking(noise, grid, padding), padding, self.masking.num_visible(grid))
