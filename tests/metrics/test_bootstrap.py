from __future__ import annotations

import numpy as np
import pytest

from amae_plugin.metrics.bootstrap import multi_label_intervals, rate_interval, single_label_intervals
from amae_plugin.metrics.classification import multi_label, single_label
from amae_plugin.metrics.significance import mcnemar


def resampled(seed: int, clips: int) -> np.ndarray:
    """The clips of a resample, each as often as it was drawn."""
    return np.repeat(np.arange(clips), np.random.default_rng(seed).multinomial(clips, np.full(clips, 1 / clips)))


@pytest.mark.parametrize("seed", range(5))
def test_a_resample_is_measured_as_its_clips_are(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 6, (40, 5)).astype(float)  # many are equal
    drawn = resampled(seed, 40)
    labels = rng.integers(0, 4, 40)  # no clip is of the last class
    found = single_label_intervals(scores, labels, [seed])
    assert {name: low for name, (low, high) in found.items() if low == high} == pytest.approx(
        single_label(scores[drawn], labels[drawn]).headline
    )
    targets = rng.random((40, 5)) < [0.5, 0.1, 0.03, 0.9, 0.0]
    found = multi_label_intervals(scores, targets, [seed])
    assert {name: low for name, (low, high) in found.items()} == pytest.approx(
        multi_label(scores[drawn], targets[drawn]).headline
    )


@pytest.mark.filterwarnings("error")
def test_classes_that_are_told_apart_without_an_error() -> None:
    targets = np.eye(3)[np.arange(30) % 3]
    assert multi_label_intervals(targets, targets.astype(bool), range(5))["d_prime"] == (np.inf, np.inf)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("all_of_them", [True, False])
def test_classes_with_all_clips_or_none_have_no_interval(all_of_them: bool) -> None:
    found = multi_label_intervals(np.eye(3), np.full((3, 3), all_of_them), range(5))
    assert np.isnan([found["mAUC"], found["d_prime"]]).all()
    np.testing.assert_equal(tuple(found["mAP"]), (1.0, 1.0) if all_of_them else (np.nan, np.nan))


def test_the_interval_of_a_share_is_that_of_the_binomial_distribution() -> None:
    targets = np.arange(400) >= 80  # 80% are right
    low, high = single_label_intervals(np.tile([0.0, 1.0], (400, 1)), targets.astype(int), range(2000))["accuracy"]
    assert (low, high) == pytest.approx((0.76, 0.839), abs=0.005)
    errors = rate_interval(~targets, np.ones(400), range(2000))
    assert errors == pytest.approx((1 - high, 1 - low))


def test_mcnemar() -> None:
    first = np.repeat([True, True, False, False], [50, 1, 9, 5])
    second = np.repeat([True, False, True, False], [50, 1, 9, 5])
    # Of 10 clips that one of them alone gets right, 1 or fewer, or 9 or more: 22 of 1,024 cases.
    assert mcnemar(first, second) == mcnemar(second, first) == pytest.approx(22 / 1024)
    assert mcnemar(first, first) == 1
