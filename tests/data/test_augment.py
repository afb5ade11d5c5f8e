import numpy as np
import torch

from amae_plugin.data.augment import Magnitude, Noise, Roll, SpecAugment


def test_roll_is_a_cyclic_shift_by_any_offset():
    waveform = torch.arange(20.0)
    offsets = set()
    for seed in range(300):
        rolled = Roll()(waveform, np.random.default_rng(seed))
        offset = int(rolled[0])
        assert torch.equal(rolled, torch.cat([waveform[offset:], waveform[:offset]]))
        offsets.add(offset)
    assert offsets == set(range(20))


def test_magnitude_is_half_to_one_and_a_half_around_one():
    rng = np.random.default_rng(0)
    waveform = torch.ones(3)
    factors = np.array([Magnitude()(waveform, rng)[0].item() for _ in range(2000)])
    assert 0.5 < factors.min() < factors.max() < 1.5
    # Beta(10, 10) has mean 1/2 and variance 1/84.
    assert abs(factors.mean() - 1) < 0.01
    assert abs(factors.var() - 1 / 84) < 0.001


def test_the_result_is_float32_and_the_input_is_kept():
    waveform = torch.rand(100)
    before = waveform.clone()
    for augmentation in (Roll(), Magnitude()):
        first = augmentation(waveform, np.random.default_rng(5))
        assert first.dtype == torch.float32
        assert torch.equal(first, augmentation(waveform, np.random.default_rng(5)))
    assert torch.equal(waveform, before)


def test_spec_augment_masks_one_band_and_one_stretch():
    rng = np.random.default_rng(0)
    frames, bins = [], []
    for _ in range(500):
        masked = SpecAugment(frequency=6, time=10)(torch.ones(40, 16), rng) == 0
        rows, columns = masked.all(dim=1).nonzero()[:, 0], masked.all(dim=0).nonzero()[:, 0]
        # Each is one stretch, and nothing else is masked.
        for places in (rows, columns):
            assert not len(places) or places[-1] - places[0] + 1 == len(places)
        assert masked.sum() == 16 * len(rows) + 40 * len(columns) - len(rows) * len(columns)
        frames.append(len(rows))
        bins.append(len(columns))
    assert set(frames) == set(range(10))
    assert set(bins) == set(range(6))


def test_spec_augment_places_are_uniform_and_masks_wider_than_the_clip_are_cut():
    rng = np.random.default_rng(0)
    masked = torch.stack([SpecAugment(frequency=0, time=8)(torch.ones(8, 2), rng) == 0 for _ in range(500)])
    assert masked[:, 0].any() and masked[:, -1].any()
    assert torch.equal(masked[..., 0], masked[..., 1])
    assert not SpecAugment(frequency=0, time=0)(torch.ones(8, 2), rng).eq(0).any()
    SpecAugment(frequency=48, time=192)(torch.ones(20, 4), rng)


def test_noise_is_small_positive_and_rolls_by_a_few_frames():
    rng = np.random.default_rng(0)
    ramp = torch.arange(100.0)[:, None].repeat(1, 4)
    shifts, levels = set(), []
    for _ in range(400):
        noisy = Noise()(ramp, rng)
        shift = int(noisy[:, 0].argmin())
        difference = torch.roll(noisy, -shift, dims=0) - ramp
        assert difference.min() > -1e-4
        levels.append(float(difference.max()))
        shifts.add((shift + 50) % 100 - 50)
    assert shifts == set(range(-10, 11))
    assert 0.09 < max(levels) <= 0.1 + 1e-4
    assert min(levels) < 0.01


def test_spectrogram_augmentations_keep_their_input_and_repeat():
    spectrogram = torch.randn(200, 128)
    before = spectrogram.clone()
    for augmentation in (SpecAugment(), Noise()):
        first = augmentation(spectrogram, np.random.default_rng(5))
        assert first.dtype == torch.float32 and first.shape == spectrogram.shape
        assert torch.equal(first, augmentation(spectrogram, np.random.default_rng(5)))
        assert not torch.equal(first, spectrogram)
    assert torch.equal(spectrogram, before)
