"""Augmentations of one clip: callables ``(tensor, rng) -> tensor`` that draw everything random from *rng*.

`Roll` and `Magnitude` act on the waveform, `SpecAugment` on the log-mel spectrogram before it is normalised, `Noise` on
the normalised one; `Augmentations` holds those of a training. `mix` is the odd one out, as it takes two clips.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from amae_plugin.data.log_mel import centred

Augmentation = Callable[[Tensor, np.random.Generator], Tensor]
"""Takes (samples,) or (frames, bins) float32 and the clip's generator, returns the same; never changes its input."""


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


@dataclass(frozen=True)
class SpecAugment:
    """Set one band of frequencies and one stretch of time to 0 (Park et al. 2019; AST and Audio-MAE fine-tuning).

    Acts on the padded log-mel spectrogram before normalisation, as the published code does: there 0 is loud, about one
    standard deviation above AudioSet's mean. The widths are uniform in 0 to *frequency* - 1 bins and 0 to *time* - 1
    frames, the places uniform over those where they fit.

    Attributes:
        frequency: bins (Audio-MAE: 48; 24 for ESC-50).
        time: frames (Audio-MAE: 192; 96 for ESC-50, 48 for Speech Commands).
    """

    frequency: int = 48
    time: int = 192

    def __call__(self, log_mel: Tensor, rng: np.random.Generator) -> Tensor:
        """(frames, bins) to (frames, bins)."""
        masked = log_mel.clone()
        frames, bins = log_mel.shape
        masked[:, _stretch(bins, self.frequency, rng)] = 0.0
        masked[_stretch(frames, self.time, rng)] = 0.0
        return masked


@dataclass(frozen=True)
class Noise:
    """Add noise to the normalised spectrogram and roll its frames (Audio-MAE on Speech Commands and VoxCeleb).

    Attributes:
        amplitude: the noise is uniform in 0 to a level that is uniform in 0 to this.
        frames: the cyclic shift is uniform in up to this many frames either way.
    """

    amplitude: float = 0.1
    frames: int = 10

    def __call__(self, spectrogram: Tensor, rng: np.random.Generator) -> Tensor:
        """(frames, bins) to (frames, bins)."""
        noise = torch.from_numpy(rng.random(spectrogram.shape, dtype=np.float32))
        noisy = spectrogram + noise * (rng.random() * self.amplitude)
        return torch.roll(noisy, int(rng.integers(-self.frames, self.frames, endpoint=True)), dims=0)


@dataclass(frozen=True)
class Augmentations:
    """What is done to a training clip on its way, in order.

    Attributes:
        waveform: before mixup.
        mixup: share of clips that are mixed with another one, by :func:`mix`.
        log_mel: of the padded spectrogram, before it is normalised.
        normalized: of the normalised spectrogram.
    """

    waveform: tuple[Augmentation, ...] = ()
    mixup: float = 0.0
    log_mel: tuple[Augmentation, ...] = ()
    normalized: tuple[Augmentation, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.mixup <= 1:
            raise ValueError(f"mixup is a share of the clips, from 0 to 1, not {self.mixup}")


def mix(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Two waveforms mixed (Tokozume et al. 2018, as AST and Audio-MAE do it).

    Args:
        first: (samples,).
        second: (any number,), cut or continued with zeros to the length of *first*.
        share: of *first*, in [0, 1].

    Returns:
        (samples,), the weighted sum of both, each without its mean.
    """
    second = centred(second)[: len(first)]
    second = torch.nn.functional.pad(second, (0, len(first) - len(second)))
    return share * centred(first) + (1 - share) * second


def _stretch(size: int, widest: int, rng: np.random.Generator) -> slice:
    width = int(rng.integers(min(widest, size))) if widest else 0
    start = int(rng.integers(size - width, endpoint=True))
    return slice(start, start + width)
