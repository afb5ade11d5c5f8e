"""Waveform to log-mel spectrogram, as Audio-MAE and MAE-AST compute it with Kaldi's filter bank."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from amae_plugin.data._torchaudio import kaldi

_EPSILON = torch.finfo(torch.float32).eps  # Kaldi's floor under the logarithm
PREEMPHASIS = 0.97
"""How much of the sample before is subtracted from each (Kaldi's default)."""

LOW_HZ = 20.0
"""Where the lowest mel band begins (Kaldi's default)."""

FLOOR = math.log(_EPSILON)
"""The log-mel value of digital silence."""

DB_PER_NEPER = 10 / math.log(10)
"""Decibels in a unit of log-mel values, which are natural logarithms of a power."""

WINDOWS: dict[str, Callable[[int], Tensor]] = {
    "hanning": functools.partial(torch.hann_window, periodic=False),
    "povey": lambda size: torch.hann_window(size, periodic=False).pow(0.85),
}
"""Analysis windows, by name: a function of their length in samples."""


@dataclass(frozen=True)
class LogMel:
    """Kaldi's log-mel filter bank without dither; the defaults are Audio-MAE's (section 4.1).

    The same function as ``torchaudio.compliance.kaldi.fbank``, which builds its window and mel filters anew on every
    call; here they are made once. Kaldi's ``htk_compat`` has no counterpart, as it only orders an energy column that
    neither system uses. MAE-AST's front end is ``LogMel(window_type="povey", remove_mean=False)``.

    Attributes:
        sample_rate: of the waveform, in Hz.
        num_mel_bins: number of mel bands between 20 Hz and half the sample rate.
        window_type: ``"hanning"`` or ``"povey"`` (Hann to the power of 0.85, Kaldi's default).
        window_ms: length of the analysis window.
        shift_ms: from one frame to the next.
        remove_mean: subtract the mean of the whole waveform first.
    """

    sample_rate: int = 16_000
    num_mel_bins: int = 128
    window_type: str = "hanning"
    window_ms: float = 25.0
    shift_ms: float = 10.0
    remove_mean: bool = True

    def __post_init__(self) -> None:
        if self.window_type not in WINDOWS:
            raise ValueError(f"window_type is '{self.window_type}', must be one of {', '.join(sorted(WINDOWS))}")

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> LogMel:
        """The front end that the task section of a recipe or a checkpoint describes; what it lacks is the default."""
        names = ("num_mel_bins", "window_type", "remove_mean")
        return cls(**{name: settings[name] for name in names if settings.get(name) is not None})

    @property
    def window_samples(self) -> int:
        """Samples in an analysis window."""
        return int(self.sample_rate * self.window_ms / 1000)

    @property
    def shift_samples(self) -> int:
        """Samples from one frame to the next."""
        return int(self.sample_rate * self.shift_ms / 1000)

    @property
    def fft_size(self) -> int:
        """Samples of the Fourier transform: those of a window and zeros, to a power of two."""
        return 1 << math.ceil(math.log2(self.window_samples))

    @property
    def window(self) -> Tensor:
        """The analysis window: (window_samples,)."""
        return _window(self.window_type, self.window_samples)

    @property
    def mel_filters(self) -> Tensor:
        """Weights of the power spectrum's bins in the bands: (fft_size // 2 + 1, num_mel_bins)."""
        return _mel_filters(self.num_mel_bins, self.fft_size, self.sample_rate)

    def samples_for(self, frames: int) -> int:
        """The shortest waveform that gives this many frames."""
        return self.window_samples + (frames - 1) * self.shift_samples

    def __call__(self, waveform: Tensor) -> Tensor:
        """(samples,) float32 on the CPU to (frames, num_mel_bins), natural logarithm of the power.

        There are ``1 + (samples - window_samples) // shift_samples`` frames: windows that do not fit are dropped. A
        waveform shorter than one window is continued with zeros to one window and gives one frame.
        """
        if self.remove_mean:
            waveform = centred(waveform)
        size = self.window_samples
        if len(waveform) < size:
            waveform = torch.nn.functional.pad(waveform, (0, size - len(waveform)))
        frames = waveform.unfold(0, size, self.shift_samples)
        frames = frames - frames.mean(dim=1, keepdim=True)
        emphasised = frames.clone()
        emphasised[:, 1:].sub_(frames[:, :-1], alpha=PREEMPHASIS)
        emphasised[:, 0].mul_(1 - PREEMPHASIS)  # Kaldi takes the sample before a frame to be its first
        emphasised.mul_(self.window)
        spectrum = torch.fft.rfft(emphasised, n=self.fft_size)
        power = spectrum.real.square().add_(spectrum.imag.square())
        # The product of a single row depends in its last bit on the number of threads as well; that of two does not.
        rows = power if len(power) > 1 else power.expand(2, -1)
        mel = rows @ self.mel_filters
        return mel[: len(power)].clamp_(min=_EPSILON).log_()


def centred(waveform: Tensor) -> Tensor:
    """(samples,) float32 on the CPU without its mean."""
    # Not torch's mean, whose last bit depends on the number of threads, so on whether a worker computes it.
    return waveform - float(waveform.numpy().mean())


def fit_length(features: Tensor, target_length: int, position: float = 0.5, padding: float = 0.0) -> Tensor:
    """Crop or pad log-mel features to a length in frames.

    Args:
        features: (frames, num_mel_bins).
        target_length: frames wanted.
        position: of the piece that is kept of a longer clip, in [0, 1]: 0 its beginning, 0.5 its centre, 1 its end.
        padding: follows a shorter clip. Audio-MAE's code pads with 0 before it normalises, so that padding is not 0
            afterwards.

    Returns:
        (target_length, num_mel_bins).
    """
    spare = len(features) - target_length
    if spare > 0:
        start = min(int(position * (spare + 1)), spare)
        return features[start : start + target_length]
    return torch.nn.functional.pad(features, (0, 0, 0, -spare), value=padding)


def normalize(features: Tensor, mean: float, std: float) -> Tensor:
    """``(features - mean) / (2 std)``, which gives a standard deviation of 0.5 (AST, Audio-MAE)."""
    return (features - mean) / (2 * std)


@functools.lru_cache(maxsize=8)
def _window(window_type: str, size: int) -> Tensor:
    return WINDOWS[window_type](size)


@functools.lru_cache(maxsize=8)
def _mel_filters(num_mel_bins: int, fft_size: int, sample_rate: int) -> Tensor:
    """(fft_size // 2 + 1, num_mel_bins); the Nyquist bin has no weight in Kaldi."""
    filters, _ = kaldi.get_mel_banks(num_mel_bins, fft_size, float(sample_rate), LOW_HZ, 0.0, 100.0, -500.0, 1.0)
    return torch.nn.functional.pad(filters, (0, 1)).T.contiguous()
