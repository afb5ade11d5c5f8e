from dataclasses import dataclass
from unittest.mock import Mock, call

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from amae_plugin.data.augment import (
    AUGMENTATIONS,
    Augmentation,
    Magnitude,
    Mixup,
    Noise,
    ResizedCrop,
    Roll,
    SpecAugment,
    build_augmentations,
    read_choice,
)

mix = Mixup().mix


def test_roll_is_a_cyclic_shift_by_any_offset():
    waveform = torch.arange(20.0)
    offsets = set()
    for seed in range(300):
        rolled = Roll().waveform(waveform, np.random.default_rng(seed))
        offset = int(rolled[0])
        assert torch.equal(rolled, torch.cat([waveform[offset:], waveform[:offset]]))
        offsets.add(offset)
    assert offsets == set(range(20))


def test_magnitude_is_half_to_one_and_a_half_around_one():
    rng = np.random.default_rng(0)
    waveform = torch.ones(3)
    factors = np.array([Magnitude().waveform(waveform, rng)[0].item() for _ in range(2000)])
    assert 0.5 < factors.min() < factors.max() < 1.5
    # Beta(10, 10) has mean 1/2 and variance 1/84.
    assert abs(factors.mean() - 1) < 0.01
    assert abs(factors.var() - 1 / 84) < 0.001


def test_the_result_is_float32_and_the_input_is_kept():
    waveform = torch.rand(100)
    before = waveform.clone()
    for augmentation in (Roll(), Magnitude()):
        first = augmentation.waveform(waveform, np.random.default_rng(5))
        assert first.dtype == torch.float32
        assert torch.equal(first, augmentation.waveform(waveform, np.random.default_rng(5)))
    assert torch.equal(waveform, before)


def test_spec_augment_masks_one_band_and_one_stretch():
    rng = np.random.default_rng(0)
    frames, bins = [], []
    for _ in range(500):
        masked = SpecAugment(frequency=6, time=10).log_mel(torch.ones(40, 16), rng) == 0
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
    masked = torch.stack([SpecAugment(frequency=0, time=8).log_mel(torch.ones(8, 2), rng) == 0 for _ in range(500)])
    assert masked[:, 0].any() and masked[:, -1].any()
    assert torch.equal(masked[..., 0], masked[..., 1])
    assert not SpecAugment(frequency=0, time=0).log_mel(torch.ones(8, 2), rng).eq(0).any()
    SpecAugment(frequency=48, time=192).log_mel(torch.ones(20, 4), rng)


def test_limits_below_1_are_shares_of_the_clip():
    augment, rng = SpecAugment(frequency=0.2, time=0.4), np.random.default_rng(0)
    masked = torch.stack([augment.log_mel(torch.ones(50, 128), rng) == 0 for _ in range(500)])
    bands, frames = masked.all(1).sum(1), masked.all(2).sum(1)
    assert (bands.max(), frames.max()) == (25, 19)  # below 25.6 and 20
    assert bands.min() == frames.min() == 0


def test_spec_augment_acts_before_or_after_normalisation():
    for after in (False, True):
        augment, rng = SpecAugment(8, 8, after_normalization=after), np.random.default_rng(1)
        changed = [bool((stage(torch.ones(40, 16), rng) == 0).any()) for stage in (augment.log_mel, augment.normalized)]
        assert changed == [not after, after]


def test_noise_is_small_positive_and_rolls_by_a_few_frames():
    rng = np.random.default_rng(0)
    ramp = torch.arange(100.0)[:, None].repeat(1, 4)
    shifts, levels = set(), []
    for _ in range(400):
        noisy = Noise().normalized(ramp, rng)
        shift = int(noisy[:, 0].argmin())
        difference = torch.roll(noisy, -shift, dims=0) - ramp
        assert difference.min() > -1e-4
        levels.append(float(difference.max()))
        shifts.add((shift + 50) % 100 - 50)
    assert shifts == set(range(-10, 11))
    assert 0.09 < max(levels) <= 0.1 + 1e-4
    assert min(levels) < 0.01


@pytest.mark.parametrize(("shares", "starts"), [((0.7, 0.9), (13, 2)), ((1.2, 1.4), (5, 0)), ((1.5, 0.6), (0, 6))])
def test_a_resized_crop_is_that_of_the_published_code(shares, starts):
    clip = torch.randn(40, 16)
    # Of the published code, which has the bins first and draws for them first.
    canvas = torch.zeros(1, 16, 60)
    canvas[:, :, 10:50] = clip.T
    height, width = min(int(shares[1] * 16), 16), min(int(shares[0] * 40), 60)
    piece = canvas[:, starts[1] : starts[1] + height, starts[0] : starts[0] + width]
    expected = torch.nn.functional.interpolate(piece[None], (16, 40), mode="bicubic", align_corners=True)[0, 0].T
    rng = Mock(uniform=Mock(side_effect=shares), integers=Mock(side_effect=starts))
    torch.testing.assert_close(ResizedCrop().normalized(clip, rng), expected)
    assert rng.uniform.call_args_list == 2 * [call(0.6, 1.5)]
    assert rng.integers.call_args_list == [call(60 - width, endpoint=True), call(16 - height, endpoint=True)]


def test_resized_crops_have_all_sizes_and_places():
    clip = (1 + torch.linspace(0, 1, 80)).expand(100, 80)  # silence is 0
    rng = np.random.default_rng(0)
    crops = [ResizedCrop().normalized(clip, rng) for _ in range(300)]
    middles = [crop.median(dim=0).values for crop in crops]
    bins = [1 + round(float(middle[60] - middle[20]) / 40 * 79**2) for middle in middles]  # of the pieces
    assert (min(bins), max(bins)) == (48, 80) and len(set(bins)) > 25
    assert bins.count(80) > 100  # larger shares take them all
    silent = [(float(crop[0, 40]) < 0.1, float(crop[-1, 40]) < 0.1) for crop in crops]
    assert set(silent) == {(False, False), (False, True), (True, False), (True, True)}
    whole = ResizedCrop(1, 1, 1).normalized(clip, rng)
    torch.testing.assert_close(whole, clip)


def test_spectrogram_augmentations_keep_their_input_and_repeat():
    spectrogram = torch.randn(200, 128)
    before = spectrogram.clone()
    for augment in (SpecAugment().log_mel, Noise().normalized, ResizedCrop().normalized):
        first = augment(spectrogram, np.random.default_rng(5))
        assert first.dtype == torch.float32 and first.shape == spectrogram.shape
        assert torch.equal(first, augment(spectrogram, np.random.default_rng(5)))
        assert not torch.equal(first, spectrogram)
    assert torch.equal(spectrogram, before)


def waveform(samples, seed):
    """Noise with a mean that is far from 0."""
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed)) + 3


@given(st.integers(1, 50), st.integers(1, 50), st.floats(0, 1), st.integers(0, 1000))
def test_mixed_waveforms_are_the_weighted_sum_of_both_without_their_means(first, second, share, seed):
    one, other = waveform(first, seed), waveform(second, seed + 1)
    mixed = mix(one, other, share)
    expected = share * (one.double() - one.double().mean())
    overlap = min(first, second)
    expected[:overlap] += (1 - share) * (other.double() - other.double().mean())[:overlap]
    assert mixed.dtype == torch.float32 and mixed.shape == (first,)
    torch.testing.assert_close(mixed.double(), expected, rtol=0, atol=1e-5)


def test_a_longer_partner_is_cut_and_a_shorter_one_ends_in_silence():
    silence = torch.full((4,), 7.0)
    # The mean is that of the whole partner, -1.
    assert mix(silence, torch.tensor([0.0, 1, 2, 3, -4, -8]), 0.25).tolist() == [0.75, 1.5, 2.25, 3.0]
    assert mix(silence, torch.tensor([1.0, 3.0]), 0.25).tolist() == [-0.75, 0.75, 0.0, 0.0]


def test_shares_of_1_and_0_are_one_clip_and_the_other():
    one, other = waveform(9, 0), waveform(9, 1)
    torch.testing.assert_close(mix(one, other, 1.0), one - one.mean())
    torch.testing.assert_close(mix(one, other, 0.0), other - other.mean())


def test_mixing_keeps_its_inputs():
    one, other = waveform(9, 0), waveform(9, 1)
    mix(one, other, 0.4)
    assert torch.equal(one, waveform(9, 0)) and torch.equal(other, waveform(9, 1))


def test_mixing_does_not_depend_on_the_number_of_threads():
    pairs = [(waveform(160_000, seed), waveform(160_000, seed + 1)) for seed in range(0, 16, 2)]
    threads = torch.get_num_threads()
    mixed = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            mixed.append([mix(one, other, 0.4) for one, other in pairs])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*mixed))


def test_mixtures_are_the_share_of_the_clips():
    rng = np.random.default_rng(0)
    weights = np.array([Mixup(share=0.3).draw_weight(rng) for _ in range(3000)])
    # Limits are five standard deviations; Beta(10, 10) has variance 1/84.
    assert abs(np.mean(weights < 1) - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 3000)
    assert abs(weights[weights < 1].mean() - 0.5) < 5 * np.sqrt(1 / 84 / 900)
    assert {Mixup(share=0.0).draw_weight(rng) for _ in range(100)} == {1.0}


@pytest.mark.parametrize("augmentation", AUGMENTATIONS.values())
def test_an_augmentation_leaves_the_other_stages_as_they_are(augmentation):
    tensor = torch.randn(200, 128)
    before = tensor.clone()
    one = augmentation()
    changed = [
        method
        for method in ("waveform", "log_mel", "normalized")
        if not torch.equal(getattr(one, method)(tensor, np.random.default_rng(3)), tensor)
    ]
    assert torch.equal(tensor, before)
    mixes = {one.draw_weight(np.random.default_rng(seed)) < 1 for seed in range(20)} != {False}
    assert len(changed) + mixes == 1


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ()),
        ([], ()),
        ({}, ()),
        ("roll,magnitude", (Roll(), Magnitude())),
        (["magnitude", "roll"], (Magnitude(), Roll())),
        ({"roll": None, "magnitude": {}}, (Roll(), Magnitude())),
        ({"mixup": {"share": 0.3}, "noise": {"frames": 0}}, (Mixup(share=0.3), Noise(frames=0))),
        (["roll", {"spec_augment": {"time": 96}}, {"noise": None}], (Roll(), SpecAugment(time=96), Noise())),
    ],
)
def test_ways_to_name_augmentations(choice, expected):
    assert build_augmentations(read_choice(choice)) == expected
    assert build_augmentations(read_choice(OmegaConf.create({"chosen": choice}).chosen)) == expected


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (["shuffle"], "no shuffle; there are roll, magnitude, mixup, spec_augment, noise, resized_crop"),
        ({"mixup": {"ratio": 0.5}}, "mixup has no parameter ratio; it has share, alpha"),
        ({"roll": {"by": 3}}, "roll has no parameter by; it has none"),
        ({"magnitude": {"alpha": 0}}, "magnitude: alpha=0 must be above 0"),
        ({"mixup": {"share": -0.1}}, "mixup: share=-0.1 must be a share of the clips, from 0 to 1"),
        ({"mixup": {"share": 1.1}}, "mixup: share=1.1 must be a share"),
        ({"mixup": {"share": float("nan")}}, "mixup: share=nan must be a share"),
        ({"mixup": {"alpha": 0}}, "mixup: alpha=0 must be above 0"),
        ({"spec_augment": {"time": -1}}, "spec_augment: time=-1 must be 0 or more"),
        ({"spec_augment": {"frequency": 2.5}}, "frequency=2.5 must be a whole number, or a share below 1"),
        ({"noise": {"amplitude": -0.1}}, "noise: amplitude=-0.1 must be 0 or more, and finite"),
        ({"noise": {"amplitude": float("inf")}}, "noise: amplitude=inf must be 0 or more, and finite"),
        ({"noise": {"frames": -1}}, "noise: frames=-1 must be a whole number, 0 or more"),
        ({"noise": {"frames": 2.5}}, "noise: frames=2.5 must be a whole number, 0 or more"),
        ({"resized_crop": {"smallest": 0}}, "smallest=0 and largest=1.5 must be above 0 and in this order"),
        ({"resized_crop": {"largest": 0.5}}, "smallest=0.6 and largest=0.5 must be above 0 and in this order"),
        ({"resized_crop": {"largest": float("nan")}}, "largest=nan must be above 0"),
        ({"resized_crop": {"length": 0.9}}, "resized_crop: length=0.9 must be 1 or more"),
        ({"noise": {"frames": "many"}}, "noise: could not convert string to float: 'many'"),
        ({"mixup": 0.5}, "^mixup: 0.5 must be parameters by name, as in {roll: {}, mixup: {share: 0.5}}$"),
        ({"mixup": False}, "^mixup: False must be parameters by name"),
        (["roll", {"mixup": [0.5]}], r"^mixup: \[0.5\] must be parameters by name"),
        (["roll", ["mixup"]], r"^\['mixup'\] is neither a name nor names with parameters, as in {roll: {}, mixup"),
        (5, "^5 is neither a name nor names with parameters"),
        (True, "^True is neither a name nor names with parameters"),
    ],
)
def test_names_and_parameters_that_do_not_exist_or_fit_are_refused(choice, message):
    for chosen in (choice, OmegaConf.create({"chosen": choice}).chosen):
        with pytest.raises(ValueError, match=message):
            build_augmentations(read_choice(chosen))


@dataclass(frozen=True)
class Louder(Augmentation):
    by: float = 1.0

    def normalized(self, spectrogram, rng):
        return spectrogram + self.by


def test_an_augmentation_is_a_class_and_an_entry(monkeypatch):
    monkeypatch.setitem(AUGMENTATIONS, "louder", Louder)
    assert build_augmentations(read_choice({"louder": {"by": 2.0}})) == (Louder(2.0),)
