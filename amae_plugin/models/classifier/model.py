"""An encoder with a pooling and a linear head: fine-tuning, linear probe, and training from scratch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amae_plugin.models.classifier.config import ClassifierConfig
from amae_plugin.models.registry import system_of
from amae_plugin.modules.blocks import drop_path_scales
from amae_plugin.modules.compute import compile_blocks, matrix_precision
from amae_plugin.modules.masking import (
    Noise,
    TimeFrequencyMasking,
    attendable,
    check_mask,
    gather_ids,
    noise_of,
    visible_ids,
)
from amae_plugin.modules.patching import Size2d

POOLINGS = ("mean", "cls", "avgtok", "avgcls")
_HEAD_STD = 2e-5  # of the published fine-tuning: predictions start equal


class Classifier(nn.Module):
    """Clip classification with the encoder of any system (Audio-MAE, section 3.3).

    With ``pooling="mean"`` the patch tokens that the last block gives are averaged and then normalised (``fc_norm``),
    and the encoder's own final norm is left out; with ``"cls"`` the class token is taken after it. AST's forms keep the
    encoder's norm and have a norm before the head as well (SSAST, Gong et al. 2022): ``"avgtok"`` averages the
    patch tokens, ``"avgcls"`` the class tokens, of which SSAST has two.
    Letters in shapes: B clips, T frames, F mel bands, L patches, D width, C classes.

    Raises:
        UserError: ``config.encoder`` names no system.
        ValueError: ``config.pooling`` is unknown or asks for a class token that the encoder lacks, there are no
            classes, or a ratio is outside [0, 1).
    """

    output_name = "logits"

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        if config.pooling not in POOLINGS:
            raise ValueError(f"model.pooling is {config.pooling!r}, must be one of {', '.join(POOLINGS)}")
        if config.num_classes < 1:
            raise ValueError(f"a classifier needs classes, not model.num_classes={config.num_classes}")
        self.config = config
        # Without the blocks that MAE-AST's pretraining skips: drop_path is the classifier's stochastic depth.
        settings = {**(config.encoder or {}), "layerdrop": 0.0}
        self.encoder = system_of(settings).encoder(settings)
        if config.pooling in ("cls", "avgcls") and not self.encoder.num_prefix_tokens:
            raise ValueError(
                f"model.pooling is {config.pooling}, but this encoder has no class token: choose mean or avgtok"
            )
        width = self.encoder.embed_dim
        self.fc_norm: nn.Module = nn.Identity()
        if config.pooling == "mean":
            self.encoder.norm = nn.Identity()
            self.fc_norm = nn.LayerNorm(width, eps=1e-6)
        elif config.pooling != "cls":
            self.fc_norm = nn.LayerNorm(width, eps=1e-5)
        self.batch_norm: nn.Module = (
            nn.BatchNorm1d(width, eps=1e-6, affine=False) if config.batch_norm else nn.Identity()
        )
        self.head = nn.Linear(width, config.num_classes)
        nn.init.trunc_normal_(self.head.weight, std=_HEAD_STD)
        nn.init.zeros_(self.head.bias)
        self.masking = TimeFrequencyMasking(config.mask_ratio_time, config.mask_ratio_frequency)
        drop_path_scales(torch.zeros(1, 1, 2), config.drop_path)
        self.encoder.requires_grad_(not config.frozen)

    def forward(
        self,
        source: Tensor,
        mask: Tensor | None = None,
        seed: Tensor | None = None,
        padding_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Classify clips.

        In training, time steps and bands are hidden and branches skipped at random, as configured; a frozen encoder
        computes as in evaluation.

        Args:
            source: (B, T, F) normalised log-mel of any length that the encoder's patches fit; without overlap, T and F
                are multiples of the patch.
            mask: (B, L) bool in the order of the encoder's tokens, True = hidden, the same number for every clip;
                sampled in training, nothing hidden otherwise, if None.
            seed: (B,) integers that everything random depends on, clip by clip; PyTorch's generator if None.
            padding_mask: (B, T) bool, True = beyond the clip's end. With an encoder that ``masks_padding``, tokens
                wholly there are neither attended to nor pooled; to the others padding is a part of the clip.

        Returns:
            ``logits`` (B, C) and ``features`` (B, D), what the head sees; both float32.

        Raises:
            ValueError: the patch does not divide the spectrogram, the mask is of another shape, or the clips have
                different numbers of visible patches.
        """
        padding_mask = self.encoder.heeded(padding_mask)
        patches, grid = self.encoder.patches(source, padding_mask)
        noise = noise_of(source, seed)
        visible, unused = self._visible(patches, grid, mask, noise, padding_mask)
        scales = None
        if self.encoder.training and self.config.drop_path:
            depth = len(self.encoder.blocks)
            scales = drop_path_scales(noise(2 * depth).view(-1, depth, 2), self.config.drop_path)
        with (
            matrix_precision(source.device, self.config.bf16),
            torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.frozen),
        ):
            tokens = self.encoder(patches, grid, visible, attendable(unused), scales).float()
        features = self.batch_norm(self.fc_norm(self._pool(tokens, unused)))
        return {"logits": self.head(features), "features": features}

    def outputs(self, source: Tensor) -> Tensor:
        """Classify whole spectrograms (B, T, F), nothing hidden: logits (B, C)."""
        return self(source)["logits"]

    def _pool(self, tokens: Tensor, unused: Tensor | None) -> Tensor:
        if self.config.pooling == "cls":
            return tokens[:, 0]
        if self.config.pooling == "avgcls":
            return tokens[:, : self.encoder.num_prefix_tokens].mean(1)
        return self.encoder.mean_of_patches(tokens, unused)

    def _visible(
        self, patches: Tensor, grid: Size2d, mask: Tensor | None, noise: Noise, padding_mask: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Positions (B, K) of the tokens to encode, all if None, and (B, K) which of them to leave out, if any."""
        padding = None if padding_mask is None else self.encoder.patch_padding(padding_mask)
        if mask is not None:
            check_mask(mask, patches)
            return (visible_ids(mask), None) if padding is None else gather_ids(mask & ~padding, padding)
        if not self.encoder.training or not (self.config.mask_ratio_time or self.config.mask_ratio_frequency):
            return None, padding
        grid_padding = None if padding_mask is None else self.encoder.grid_padding(padding_mask)
        hidden = self.encoder.in_token_order(self.masking(noise, grid, grid_padding), grid)
        return gather_ids(hidden, padding, self.masking.num_visible(grid))

    def train(self, mode: bool = True) -> Classifier:
        """Training or evaluation mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.config.frozen:
            self.encoder.eval()
        return self

    def depth_of(self, parameter: str) -> int:
        """How deep a parameter of that name lies: 0 before the first block, i + 1 in block i, depth + 1 after all."""
        if parameter.startswith("encoder.blocks."):
            return int(parameter.split(".")[2]) + 1
        before = parameter.startswith("encoder.") and not parameter.startswith("encoder.norm.")
        return 0 if before else len(self.encoder.blocks) + 1

    def compile_blocks(self) -> None:
        """See :func:`amae_plugin.modules.compute.compile_blocks`."""
        compile_blocks(self.encoder.blocks)
