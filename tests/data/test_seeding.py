import numpy as np

from amae_plugin.data.seeding import clip_seed


def test_is_a_63_bit_integer_that_depends_on_each_argument():
    seeds = {clip_seed(seed, epoch, index) for seed in range(-3, 12) for epoch in range(15) for index in range(200)}
    assert len(seeds) == 15 * 15 * 200
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert clip_seed(1, 2, 3) != clip_seed(3, 2, 1) != clip_seed(2, 1, 3)


def test_neighbouring_clips_have_unrelated_seeds():
    bits = np.array([[clip_seed(1, 1, index) >> bit & 1 for bit in range(63)] for index in range(4000)])
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.05
    flips = (bits[1:] != bits[:-1]).mean(axis=0)
    assert np.abs(flips - 0.5).max() < 0.05


def test_stays_the_same_from_release_to_release():
    # A change here changes every run that is resumed.
    assert clip_seed(1, 1, 0) == 3_150_992_677_718_134_148
    assert clip_seed(2**40, 300, 1_999_999) == 3_625_109_084_930_214_971
