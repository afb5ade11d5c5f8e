import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amae_plugin.metrics.classification import d_prime, multi_label, single_label


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parents[1] / "golden" / "metrics.npz") as archive:
        return dict(archive)


def test_golden_multi_label(golden):
    metrics = multi_label(golden["scores"], golden["targets"])
    assert metrics.average_precision == pytest.approx(golden["per_class_ap"], rel=1e-9)
    assert metrics.auc == pytest.approx(golden["per_class_auc"], rel=1e-9)
    assert metrics.mean_average_precision == pytest.approx(float(golden["mAP"]), rel=1e-9)
    assert metrics.mean_auc == pytest.approx(float(golden["mAUC"]), rel=1e-9)
    assert metrics.d_prime == pytest.approx(float(golden["d_prime"]), rel=1e-9)
    assert np.isfinite([metrics.average_precision, metrics.auc]).all()


def test_golden_single_label(golden):
    metrics = single_label(golden["scores"], golden["single_label_targets"])
    assert metrics.accuracy == pytest.approx(float(golden["accuracy"]))
    assert np.trace(metrics.confusion) == round(metrics.accuracy * metrics.confusion.sum())
    assert metrics.confusion.sum(axis=1).tolist() == np.bincount(golden["single_label_targets"], minlength=12).tolist()


def test_single_label_by_hand():
    # Classes 0 and 1 have clips, 2 is chosen once without having any, 3 is never met.
    targets = [0, 0, 0, 1]
    chosen = [0, 0, 2, 1]
    metrics = single_label(np.eye(4)[chosen], targets)
    assert metrics.accuracy == 0.75
    assert metrics.confusion.tolist() == [[2, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert metrics.f1[:2] == pytest.approx([0.8, 1.0])
    assert np.isnan(metrics.f1[2:]).all()
    assert metrics.macro_f1 == pytest.approx(0.9)


def test_a_class_without_positives_is_left_out_of_the_means():
    targets = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1]])
    scores = np.array([[0.9, 0.5, 0.1], [0.2, 0.9, 0.2], [0.1, 0.1, 0.3]])
    metrics = multi_label(scores, targets)
    assert np.isnan(metrics.average_precision).tolist() == [False, True, False]
    assert np.isnan(metrics.auc).tolist() == [False, True, True]
    assert metrics.average_precision[0] == pytest.approx((1 + 2 / 3) / 2)
    assert metrics.mean_average_precision == pytest.approx((5 / 6 + 1) / 2)
    assert metrics.mean_auc == pytest.approx(0.5)
    assert metrics.d_prime == pytest.approx(0.0)


def test_when_no_class_has_positives_nothing_is_defined():
    metrics = multi_label(np.random.default_rng(0).random((5, 2)), np.zeros((5, 2)))
    assert math.isnan(metrics.mean_average_precision)
    assert math.isnan(metrics.mean_auc)
    assert math.isnan(metrics.d_prime)
    assert np.isnan([metrics.average_precision, metrics.auc]).all()


def test_perfect_ranking():
    metrics = multi_label([[2.0], [1.0]], [[True], [False]])
    assert (metrics.mean_average_precision, metrics.mean_auc, metrics.d_prime) == (1.0, 1.0, math.inf)
    assert d_prime(0.5) == 0.0


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.5, 4.0]))
def test_only_the_order_of_scores_matters(seed, scale):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(30, 3))
    targets = rng.random((30, 3)) < 0.3
    before, after = multi_label(scores, targets), multi_label(1 / (1 + np.exp(-scale * scores)), targets)
    np.testing.assert_allclose(before.average_precision, after.average_precision)
    np.testing.assert_allclose(before.auc, after.auc)


@pytest.mark.parametrize(
    ("measure", "scores", "targets", "hint"),
    [
        (single_label, np.zeros((3, 2)), [0, 1], r"targets must be \(3,\)"),
        (single_label, np.zeros((2, 2)), [0, 2], r"in \[0, 2\)"),
        (single_label, np.zeros((2, 2)), [0, -1], r"in \[0, 2\)"),
        (single_label, np.zeros((0, 2)), [], "not empty"),
        (single_label, np.full((2, 2), np.nan), [0, 1], "2 of 2 clips"),
        (multi_label, np.zeros((2, 2)), np.zeros((2, 3)), "targets must be"),
        (multi_label, np.zeros((2, 2)), np.full((2, 2), 0.3), "0 or 1"),
        (multi_label, np.zeros(2), np.zeros(2), "clips, classes"),
    ],
)
def test_what_cannot_be_measured_is_refused(measure, scores, targets, hint):
    with pytest.raises(ValueError, match=hint):
        measure(scores, targets)
