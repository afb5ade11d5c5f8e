from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amae_plugin.data.dataset import Sampling, clip_seed
from amae_plugin.data.labels import Labels
from amae_plugin.data.sampling import balanced_weights, class_subset, read_weights
from amae_plugin.errors import UserError

CLASSES = 5
SINGLE = st.lists(st.integers(0, CLASSES - 1).map(lambda i: [i]), max_size=60)
SEVERAL = st.lists(st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=3, unique=True), max_size=40)
PER_MILLE = st.integers(1, 1000)


def labelled(rows: Sequence[Sequence[int]], classes: int = CLASSES) -> Labels:
    """Labels of clips from the classes of each."""
    ids = np.array([i for row in rows for i in row], np.int32)
    offsets = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64)
    return Labels(tuple(f"class {i}" for i in range(classes)), ids, offsets)


def kept(rows: Sequence[Sequence[int]], subset: np.ndarray) -> list[int]:
    """How many clips of each class are in a subset."""
    return [sum(i in rows[clip] for clip in subset) for i in range(CLASSES)]


def ceil_share(per_mille: int, clips: int) -> int:
    return -(-per_mille * clips // 1000)


@settings(max_examples=60)
@given(rows=SINGLE, per_mille=PER_MILLE, seed=st.integers(0, 2**40))
def test_a_subset_keeps_the_share_of_every_class_rounded_up(rows: list[list[int]], per_mille: int, seed: int) -> None:
    labels = labelled(rows)
    subset = class_subset(labels, per_mille / 1000, seed)
    assert kept(rows, subset) == [ceil_share(per_mille, count) for count in labels.counts()]


@settings(max_examples=60)
@given(rows=SEVERAL, per_mille=PER_MILLE, seed=st.integers(0, 2**40))
def test_a_subset_of_clips_with_several_labels_keeps_at_least_that_share(
    rows: list[list[int]], per_mille: int, seed: int
) -> None:
    labels = labelled(rows)
    subset = class_subset(labels, per_mille / 1000, seed)
    shares = [ceil_share(per_mille, count) for count in labels.counts()]
    assert all(there >= share for there, share in zip(kept(rows, subset), shares))
    assert len(subset) <= sum(shares)


@settings(max_examples=60)
@given(rows=SEVERAL, per_mille=PER_MILLE, seed=st.integers(0, 2**40))
def test_a_subset_is_sorted_and_unique_and_the_same_again(rows: list[list[int]], per_mille: int, seed: int) -> None:
    labels = labelled(rows)
    subset = class_subset(labels, per_mille / 1000, seed)
    assert subset.dtype == np.int64
    assert (np.diff(subset) > 0).all()
    assert np.isin(subset, np.arange(len(rows))).all()
    assert np.array_equal(subset, class_subset(labels, per_mille / 1000, seed))


def test_shares_of_a_class_are_not_rounded_up_by_the_error_of_a_product() -> None:
    assert 0.07 * 100 > 7
    assert len(class_subset(labelled([[0]] * 100), 0.07, 1)) == 7
    assert len(class_subset(labelled([[0]] * 101), 0.07, 1)) == 8


def test_the_whole_is_a_subset() -> None:
    assert class_subset(labelled([[0, 1], [2], [0]]), 1.0, 1).tolist() == [0, 1, 2]


def test_every_clip_of_a_class_is_as_likely_in_a_subset() -> None:
    labels = labelled([[0]] * 10 + [[1]] * 4)
    chosen = np.concatenate([class_subset(labels, 0.3, seed) for seed in range(1000)])
    counts = np.bincount(chosen, minlength=14)
    assert counts[:10].sum() == 3000 and counts[10:].sum() == 2000
    # Five standard deviations of the binomial distribution.
    assert np.abs(counts[:10] - 300).max() < 5 * np.sqrt(1000 * 0.3 * 0.7)
    assert np.abs(counts[10:] - 500).max() < 5 * np.sqrt(1000 * 0.5 * 0.5)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, float("nan")])
def test_a_fraction_that_is_none_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        class_subset(labelled([[0]]), fraction, 1)


def test_without_weights_every_clip_is_heard_once_in_each_epoch() -> None:
    sampling = Sampling(np.array([2, 5, 7]))
    assert sampling.draw(0).tolist() == sampling.draw(3).tolist() == [2, 5, 7]


WEIGHTS = st.lists(st.sampled_from([0.0, 1e-3, 0.5, 1.0, 1e6]), min_size=1, max_size=30).filter(any)


@settings(max_examples=60)
@given(weights=WEIGHTS, samples=st.integers(1, 100), seed=st.integers(0, 2**40), epoch=st.integers(0, 1000))
def test_draws_are_as_many_as_asked_from_the_pool_and_never_of_weight_0(
    weights: list[float], samples: int, seed: int, epoch: int
) -> None:
    pool = np.arange(len(weights)) * 3 + 1
    clips = Sampling(pool, np.array(weights), samples, seed).draw(epoch)
    assert clips.shape == (samples,) and clips.dtype == np.int64
    assert set(clips) <= set(pool[np.array(weights) > 0])


def test_draws_depend_on_seed_and_epoch_alone() -> None:
    def draw(seed: int, epoch: int) -> list[int]:
        return Sampling(np.arange(1000), np.ones(1000, np.float32), 50, seed).draw(epoch).tolist()

    sampling = Sampling(np.arange(1000), np.ones(1000, np.float32), 50, 1)
    sampling.draw(7)
    assert sampling.draw(2).tolist() == draw(1, 2)
    assert len({tuple(draw(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_clips_are_drawn_as_often_as_their_weights_say() -> None:
    weights = np.array([1, 0, 2, 5, 0, 12], np.float32)
    sampling = Sampling(np.array([3, 4, 5, 6, 7, 8]), weights, 10_000)
    counts = np.bincount(np.concatenate([sampling.draw(epoch) for epoch in range(4)]), minlength=9)[3:]
    shares = weights / weights.sum()
    assert (np.abs(counts - 40_000 * shares) <= 5 * np.sqrt(40_000 * shares * (1 - shares))).all()


def test_draws_without_repetition() -> None:
    weights = np.array([1, 0, 2, 5, 0, 12], np.float32)
    draws = [Sampling(np.arange(6), weights, 3, repeats=False).draw(epoch) for epoch in range(4000)]
    assert all(len(set(drawn)) == 3 and weights[drawn].min() > 0 for drawn in draws)
    shares = weights / weights.sum()
    first = np.bincount([drawn[0] for drawn in draws], minlength=6)
    assert (np.abs(first - 4000 * shares) <= 5 * np.sqrt(4000 * shares * (1 - shares))).all()


def test_weights_and_samples_belong_together_and_fit_the_pool() -> None:
    pool = np.arange(3)
    with pytest.raises(ValueError, match="belong together"):
        Sampling(pool, np.ones(3))
    with pytest.raises(ValueError, match="belong together"):
        Sampling(pool, samples=3)
    with pytest.raises(ValueError, match=r"\(4,\) weights do not fit \(3,\) clips"):
        Sampling(pool, np.ones(4), 3)


@settings(max_examples=60)
@given(rows=SEVERAL.filter(bool))
def test_a_clip_weighs_the_sum_over_its_classes(rows: list[list[int]]) -> None:
    counts = [sum(i in row for row in rows) for i in range(CLASSES)]
    weights = balanced_weights(labelled(rows))
    assert weights.dtype == np.float32
    assert weights == pytest.approx([sum(1000 / (counts[i] + 0.01) for i in row) for row in rows])


def test_balanced_draws_hear_every_class_as_often() -> None:
    rows = [[0]] * 90 + [[1]] * 9 + [[2]]
    labels = labelled(rows, classes=3)
    clips = Sampling(np.arange(100), balanced_weights(labels), 9000).draw(1)
    # A class of one clip is drawn 1% less often.
    assert np.bincount(labels.ids[clips]) / 9000 == pytest.approx([1 / 3] * 3, abs=0.03)


def test_weights_are_read(tmp_path: Path) -> None:
    for dtype in (np.float32, np.float64, np.int64, np.uint8):
        np.save(tmp_path / "train.weights.npy", np.array([0, 1, 3], dtype))
        assert read_weights(tmp_path / "train.weights.npy", 3).tolist() == [0, 1, 3]


@pytest.mark.parametrize("content", [None, b"", b"0.5\n0.5\n", b"\x93NUMPY\x01\x00"])
def test_weights_that_cannot_be_read_say_what_writes_them(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "train.weights.npy"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(path)) + r": cannot read the weights .*`amae weights` writes"):
        read_weights(path, 2)


def test_weights_in_other_files_of_numpy_cannot_be_read(tmp_path: Path) -> None:
    objects, archive, cut = (tmp_path / f"{name}.weights.npy" for name in ("objects", "archive", "cut"))
    np.save(objects, np.array([1, None]), allow_pickle=True)
    with archive.open("wb") as file:
        np.savez(file, weights=np.ones(2))
    np.save(cut, np.ones(100))
    cut.write_bytes(cut.read_bytes()[:-8])
    for path in (objects, archive, cut):
        with pytest.raises(UserError, match=re.escape(str(path)) + ": cannot read the weights"):
            read_weights(path, 2)


@pytest.mark.parametrize("shape", [(3,), (2, 1), ()])
def test_weights_of_another_manifest_say_what_to_run(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "train.weights.npy"
    np.save(path, np.ones(shape))
    expected = f"{path} holds an array of shape {shape}, but the manifest beside it has 2 clips; run `amae weights`"
    with pytest.raises(UserError, match=re.escape(expected)):
        read_weights(path, 2)


@pytest.mark.parametrize(
    "weights", [[1.0, -1e-9], [0.0, 0.0], [1.0, np.nan], [1.0, np.inf], [True, True], [1j, 1.0], ["1", "2"]]
)
def test_weights_that_are_none_are_refused_by_name(tmp_path: Path, weights: list[object]) -> None:
    path = tmp_path / "train.weights.npy"
    np.save(path, np.array(weights))
    with pytest.raises(UserError, match=re.escape(str(path)) + ": weights must be numbers, finite, not negative"):
        read_weights(path, 2)


def test_a_seed_is_a_63_bit_integer_that_depends_on_each_argument() -> None:
    seeds = {clip_seed(seed, epoch, index) for seed in range(-3, 12) for epoch in range(15) for index in range(200)}
    assert len(seeds) == 15 * 15 * 200
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert clip_seed(1, 2, 3) != clip_seed(3, 2, 1) != clip_seed(2, 1, 3)
    assert len({clip_seed(*numbers) for numbers in itertools.product((0, 1, 2**32, -1, 2**64 - 2), repeat=4)}) == 5**4


def test_neighbouring_clips_have_unrelated_seeds() -> None:
    bits = np.array([[clip_seed(1, 1, index) >> bit & 1 for bit in range(63)] for index in range(4000)])
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.05
    flips = (bits[1:] != bits[:-1]).mean(axis=0)
    assert np.abs(flips - 0.5).max() < 0.05


def test_seeds_stay_the_same_from_release_to_release() -> None:
    # A change here changes every run that is resumed.
    assert clip_seed(1, 1, 0) == 5_828_223_018_625_649_104
    assert clip_seed(2**40, 300, 1_999_999) == 3_514_519_019_480_116_804
    assert clip_seed(-7, 3, 5, stream=2) == 153_166_357_479_909_878
