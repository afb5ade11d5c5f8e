"""Waveform augmentations: callables ``(waveform, rng) -> waveform`` that draw everything random from *rng*."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import numpy as np
import torch
from torch import Tensor

Augmentation = Callable[[Tensor, np.random.Generator], Tensor]
"""Takes (samples,) float32 and the clip's generator, returns (samples,) float32; never changes its input."""


@dataclass(frozen=True)
class Roll:
    """Cyclic shift of the waveform by a uniform offset (Audio-MAE, pretraining and fine-tuning recipes)."""

    def __call__(self, waveform: Tensor, rng: np.random.Generator) -> Tensor:
        """(samples,) to (samples,)."""
        return torch.roll(waveform, int(rng.integers(len(waveform))))


@dataclass(frozen=True)
class Magnitude:
    """Multiply the waveform by Beta(*alpha*, *alpha*) + 0.5, so by 0.5 to 1.5 (Audio-MAE: alpha 10)."""

    alpha: float = 10.0

    def __call__(self, waveform: Tensor, rng: np.random.Generator) -> Tensor:
        """(samples,) to (samples,)."""
        return waveform * (rng.beta(self.alpha, self.alpha) + 0.5)
