"""Base of the masked autoencoders whose targets are the patches, as they are or normalised (He et al. 2022)."""

import torch
from torch import Tensor
from typing_extensions import override

from amae_plugin.models.base import PretrainingModel
from amae_plugin.modules.embedding import Size2d
from amae_plugin.modules.interpolation import interpolate


class MaskedAutoencoder(PretrainingModel):
    """Model that predicts patches, with ``normalizes_targets`` each normalised by its own mean and variance.

    Attributes:
        usual_std: standard deviation of the input's values in all, the guess for patches that nothing is known about.
    """

    usual_std: float

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
            patches, grid = self.encoder.patches(source)
            known = ~mask
            if padding_mask is not None:
                frames = padding_mask.unflatten(1, (grid[0], -1))
                known = known & ~frames.any(dim=-1).repeat_interleave(grid[1], dim=1)
            prediction = self.denormalize(prediction, patches, known, grid, self.encoder.patch_size[0])
        return super().reconstruct(source, prediction, mask)

    def denormalize(
        self, prediction: Tensor, patches: Tensor, known: Tensor, grid: Size2d, patch_frames: float
    ) -> Tensor:
        """Give predictions (B, L, P) of normalised targets a level and a spread, which they lack.

        Both are interpolated from the known patches, so the others have no influence; see :func:`interpolate` for the
        arguments.
        """
        var, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        # Relative to the usual value, whose logarithm is 0: the guess if no patch is known.
        statistics = torch.cat([mean, ((var + 1e-6).sqrt() / self.usual_std).log()], dim=-1)
        mean, log_std = interpolate(statistics, known, grid, patch_frames).split(1, dim=-1)
        return prediction * (log_std.exp() * self.usual_std) + mean
