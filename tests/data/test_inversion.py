from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from amae_plugin.data.inversion import invert
from amae_plugin.data.log_mel import DB_PER_NEPER, FLOOR, LogMel

FRONT_ENDS = [
    LogMel(),
    LogMel(window_type="povey"),
    LogMel(num_mel_bins=64),
]


@pytest.fixture(scope="module")
def waveform() -> torch.Tensor:
    """2.3 s of harmonics that glide, with noise above."""
    archive = np.load(Path(__file__).parents[1] / "golden" / "features.npz")
    return torch.from_numpy(archive["pcm16_16khz"].astype(np.float32) / 32768)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Log-spectral distance in dB."""
    return float(((one - other) * DB_PER_NEPER).square().mean().sqrt())


@pytest.mark.parametrize("features", FRONT_ENDS, ids=["Audio-MAE", "MAE-AST", "64 bands"])
def test_the_sound_has_the_spectrogram_that_it_was_made_from(features: LogMel, waveform: torch.Tensor) -> None:
    log_mel = features(waveform)
    # Measured: 1.0 dB and less. Without de-emphasis it is 11 dB, half a frame too late 3 dB, with magnitudes for powers
    # 8 dB, with phases as they come 14 dB.
    assert distance(features(invert(log_mel, features, len(waveform))), log_mel) < 1.3


def test_a_tone_comes_back_as_loud_as_it_was() -> None:
    features = LogMel()
    tone = 0.3 * torch.sin(2 * torch.pi * 1000 * torch.arange(16_000) / 16_000)
    sound = invert(features(tone), features, len(tone))
    assert sound.square().mean().sqrt() == pytest.approx(float(tone.square().mean().sqrt()), rel=0.03)
    assert torch.fft.rfft(sound).abs().argmax() == 1000


@pytest.mark.parametrize("samples", [400, 559, 560, 1000, 16_159])
def test_the_sound_is_as_long_as_the_clip(samples: int, waveform: torch.Tensor) -> None:
    features = LogMel()
    sound = invert(features(waveform[:samples]), features, samples)
    assert sound.shape == (samples,) and bool(sound.isfinite().all())
    assert distance(features(sound), features(waveform[:samples])) < 2.5


@pytest.mark.parametrize("gain", [1e-4, 1e4])
def test_loudness_makes_no_difference(gain: float, waveform: torch.Tensor) -> None:
    features = LogMel()
    log_mel = features(waveform[:8000] * gain)
    assert distance(features(invert(log_mel, features, 8000)), log_mel) < 1.3


def test_silence_is_silent() -> None:
    features = LogMel()
    log_mel = torch.full((50, 128), FLOOR)
    assert invert(log_mel, features, 8000).abs().max() < 1e-6
    log_mel[:25, 60] = 0.0
    sound = invert(log_mel, features, features.samples_for(50)).abs()
    assert sound[5000:].max() < 1e-3 * sound[:4000].max()


def test_the_same_sound_every_time_and_no_touch_of_the_global_generator(waveform: torch.Tensor) -> None:
    features = LogMel()
    log_mel = features(waveform[:8000])
    state = torch.get_rng_state()
    assert torch.equal(invert(log_mel, features, 8000), invert(log_mel, features, 8000))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(invert(log_mel, features, 8000, seed=1), invert(log_mel, features, 8000))
