"""Mixtures of clips, for SSLAM's second stage (Alex et al., ICLR 2025, and its published code).

A mixture is the louder of two clips in every value of the spectrogram, except in two stretches of time that stay those
of the first clip. Its second clip is the one before it in the batch.

Letters in shapes: B clips, L patches (time-major), P values in a patch, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from amae_plugin.modules.embedding import Size2d
from amae_plugin.modules.masking import Noise, take_tokens, visible_ids

_STRETCH = (15, 64)  # share of the clip that a stretch takes


class Mixtures(NamedTuple):
    """Mixtures of the clips of a batch.

    Attributes:
        patches: (B, L, P), of the mixtures.
        second: (B, K, P), of the second clips, where they are mixed in.
        places: (B, K), positions of these patches.
    """

    patches: Tensor
    second: Tensor
    places: Tensor

    @classmethod
    def draw(cls, patches: Tensor, grid: Size2d, noise: Noise) -> Mixtures:
        """Mix clips (B, L, P).

        Args:
            patches: of the first clips; the second clips are these, each one place further.
            grid: number of patches in time and frequency, L in total.
            noise: source of the stretches, which are drawn for each clip.
        """
        others = patches.roll(1, dims=0)
        width = grid[0] * _STRETCH[0] // _STRETCH[1]
        first, second = noise(2)[..., None].unbind(1)
        starts = (first * (grid[0] // 2)).long()
        later = starts + width + (second * (grid[0] - 2 * width - starts)).long()
        columns = torch.arange(grid[0], device=patches.device)
        kept = ((columns >= starts) & (columns < starts + width)) | ((columns >= later) & (columns < later + width))
        kept = kept.repeat_interleave(grid[1], dim=1)
        places = visible_ids(kept, (grid[0] - 2 * width) * grid[1])
        mixed = torch.where(kept[..., None], patches, torch.maximum(patches, others))
        return cls(mixed, take_tokens(others, places), places)

    def retained(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the target (B, L, D) that keeps both sources: their mean, in the stretches the first clip alone.

        Args:
            first: (B, L, D), the teacher's features of the first clips.
            second: (B, K, D), of the second clips' patches.
        """
        return (first + first.scatter(1, self.places[..., None].expand_as(second), second)) / 2


def beside(first: Tensor, second: Tensor) -> Tensor:
    """Put what belongs to a clip (B, ...) and to its mixture (B, ...) side by side: (2 B, ...)."""
    return torch.stack([first, second], dim=1).flatten(0, 1)


def twice(of_clones: Tensor, clips: int) -> Tensor:
    """Repeat what belongs to the clones (N, ...) of a number of clips for those of their mixtures: (2 N, ...)."""
    return of_clones.unflatten(0, (clips, -1)).repeat_interleave(2, dim=0).flatten(0, 1)
