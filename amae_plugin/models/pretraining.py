"""What every system's pretraining model offers, so that one task, one criterion and one command fit them all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from amae_plugin.models.encoder import Encoder
from amae_plugin.modules.compute import compile_blocks, matrix_precision
from amae_plugin.modules.masking import Masking, attendable


class PretrainingModel(nn.Module, ABC):
    """Hides most tokens of a spectrogram and predicts them.

    Letters in shapes: B clips, T frames, F mel bands, L tokens (in the encoder's order), P values in a token, D encoder
    width.

    Attributes:
        config: the system's, with at least ``num_mel_bins`` and ``bf16``.
        encoder: what a classifier takes over.
        loss_weights: of the objectives that :meth:`token_losses` gives, by name; the loss is the sum of their means
            over hidden tokens, so weighted.
        masking: what samples the masks.
    """

    config: Any
    encoder: Encoder
    loss_weights: Mapping[str, float]
    masking: Masking

    @abstractmethod
    def forward(
        self,
        source: Tensor,
        mask: Tensor | None = None,
        seed: Tensor | None = None,
        padding_mask: Tensor | None = None,
    ) -> dict[str, Any]:
        """Predict every token from the visible ones.

        Args:
            source: (B, T, F) log-mel as the system expects it; T and F are multiples of the patch.
            mask: (B, L) bool, True = hidden; sampled if None.
            seed: (B,) integers that the sampled masks depend on, clip by clip; PyTorch's generator if None.
            padding_mask: (B, T) bool, True = beyond the clip's end. Only systems whose encoder ``masks_padding`` take
                note of it; to the others padding is a part of the clip.

        Returns:
            At least ``prediction`` (B, L, P) of the reconstruction, ``target`` (B, L, P), both float32, and ``mask``
            (B, L); of systems with a discriminative objective also ``classification`` (B, L, P).

        Raises:
            ValueError: the patch does not divide the spectrogram, or the mask does not fit it.
        """

    @abstractmethod
    def token_losses(self, output: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Losses (B, L) of an output of :meth:`forward`, unweighted and 0 where nothing is hidden, by objective."""

    @abstractmethod
    def reconstruct(
        self, source: Tensor, prediction: Tensor, mask: Tensor, padding_mask: Tensor | None = None
    ) -> Tensor:
        """Spectrogram (B, T, F) with the visible tokens of ``source`` and the predicted hidden ones.

        Of the hidden ones, nothing of ``source`` is used.

        Args:
            source: (B, T, F), what :meth:`forward` got.
            prediction: (B, L, P) of :meth:`forward` in evaluation mode.
            mask: (B, L) bool, True = hidden.
            padding_mask: (B, T) bool, True = beyond the clip's end; says nothing about the clip.
        """

    @property
    def normalizes_targets(self) -> bool:
        """Whether each patch is predicted without its own mean and variance, which :meth:`reconstruct` guesses."""
        return False

    @property
    def draws(self) -> bool:
        """Whether the objectives predict a spectrogram, of which there can be a picture."""
        return "reconstruction" in self.loss_weights

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """The transformer blocks, where nearly all the time goes."""
        return tuple(self.encoder.blocks)

    def extract_features(self, source: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Encode a whole spectrogram, nothing hidden.

        Args:
            source: (B, T, F), as :meth:`forward` takes it.
            padding_mask: (B, T) bool, True = beyond the clip's end; tokens wholly there are not attended to.

        Returns:
            Features (B, prefix + L, D) after the final norm, the encoder's class tokens first, and their padding mask
            (B, prefix + L) if one was given.
        """
        patches, grid = self.encoder.patches(source, padding_mask)
        padding = None if padding_mask is None else self.patch_padding(padding_mask)
        with matrix_precision(source.device, self.config.bf16):
            features = self.encoder(patches, grid, padding_mask=attendable(padding))
        return features.float(), self.encoder.with_prefix(padding)

    def patch_padding(self, padding_mask: Tensor) -> Tensor:
        """See :meth:`Encoder.patch_padding`."""
        return self.encoder.patch_padding(padding_mask)

    def compile_blocks(self) -> None:
        """See :func:`amae_plugin.modules.compute.compile_blocks`."""
        compile_blocks(self.blocks)


def summed_losses(model: PretrainingModel, output: Mapping[str, Tensor], scored: Tensor) -> dict[str, Tensor]:
    """The objectives summed over scored tokens: scalars by name, and ``loss``, their weighted sum.

    Args:
        model: whose output it is.
        output: of its ``forward``.
        scored: (B, L) bool, which of the hidden tokens count.
    """
    sums = {name: (losses * scored).sum() for name, losses in model.token_losses(output).items()}
    total = torch.stack([model.loss_weights[name] * value for name, value in sums.items()]).sum()
    return {"loss": total, **sums}
