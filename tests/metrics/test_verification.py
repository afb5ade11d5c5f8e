from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amae_plugin.metrics.verification import cosine_scores, equal_error_rate


def test_golden_equal_error_rate():
    with np.load(Path(__file__).parents[1] / "golden" / "metrics.npz") as golden:
        rate = equal_error_rate(golden["trial_scores"], golden["trial_labels"])
        assert rate == pytest.approx(float(golden["equal_error_rate"]), abs=1e-9)


@pytest.mark.parametrize(
    ("scores", "same", "rate"),
    [
        ([0.9, 0.8, 0.2, 0.1], [1, 1, 0, 0], 0.0),
        ([0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1], 1.0),
        ([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0], 0.5),
        ([0.5, 0.5, 0.5, 0.5], [1, 0, 1, 0], 0.5),  # nothing told apart: half way between none and all
        ([0.9, 0.5, 0.4, 0.1, 0.1, 0.6], [1, 1, 1, 0, 0, 0], 1 / 3),
    ],
)
def test_equal_error_rate_by_hand(scores, same, rate):
    assert equal_error_rate(scores, same) == pytest.approx(rate)


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), trials=st.integers(2, 60))
def test_swapping_the_kinds_mirrors_the_rate(seed, trials):
    rng = np.random.default_rng(seed)
    scores, same = rng.normal(size=trials), np.arange(trials) % 2
    rate = equal_error_rate(scores, same)
    assert 0 <= rate <= 1
    assert equal_error_rate(-scores, 1 - same) == pytest.approx(rate)


def test_cosine_scores():
    features = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0], [-5.0, 0.0]])
    scores = cosine_scores(features, [[0, 1], [0, 2], [0, 3], [1, 1]])
    assert scores == pytest.approx([0.0, 0.5**0.5, -1.0, 1.0])
    with pytest.raises(ValueError, match="clip 1"):
        cosine_scores([[1.0, 0.0], [0.0, 0.0]], [[0, 1]])


@pytest.mark.parametrize(
    ("scores", "same", "hint"),
    [
        ([0.1, 0.2], [1, 1], "both kinds"),
        ([0.1, 0.2], [1, 2], "0 or 1"),
        ([0.1, np.nan], [1, 0], "1 of 2 scores"),
        ([0.1], [1, 0], "must be"),
    ],
)
def test_what_cannot_be_measured_is_refused(scores, same, hint):
    with pytest.raises(ValueError, match=hint):
        equal_error_rate(scores, same)
