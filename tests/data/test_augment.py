import numpy as np
import torch

from amae_plugin.data.augment import Magnitude, Roll


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
