from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amae_plugin.metrics.band_errors import BandErrors, join_visible


def test_errors_are_those_of_hidden_values_in_decibels() -> None:
    original = torch.zeros(4, 3)
    hidden = torch.tensor([[1, 0, 0], [1, 0, 1], [0, 0, 0], [0, 0, 1]], dtype=torch.bool)
    nepers = math.log(10)  # of 10 dB
    guessed = torch.tensor([[0.3, 9, 9], [-0.4, 9, 0], [9, 9, 9], [9, 9, 2]]) * nepers
    errors = BandErrors.of(original, guessed, hidden)
    assert errors.counts.tolist() == [2, 0, 2]
    np.testing.assert_allclose(errors.rms(), [math.sqrt(12.5), math.nan, math.sqrt(200)], rtol=1e-6)
    assert errors.range_rms(0, 2) == pytest.approx(math.sqrt(12.5))
    assert math.isnan(errors.range_rms(1, 2))
    assert errors.total_rms == pytest.approx(math.sqrt(425 / 4))


def test_errors_of_clips_are_those_of_all_their_hidden_values() -> None:
    torch.manual_seed(0)
    original, guessed, hidden = torch.randn(9, 3), torch.randn(9, 3), torch.rand(9, 3) < 0.5
    halves = [BandErrors.of(original[part], guessed[part], hidden[part]) for part in (slice(4), slice(4, 9))]
    together = BandErrors.of(original, guessed, hidden)
    assert BandErrors.pool(halves).total_rms == pytest.approx(together.total_rms)


@settings(max_examples=50)
@given(st.integers(0, 2**31), st.integers(1, 30), st.floats(0, 1))
def test_straight_lines_are_numpys(seed: int, frames: int, share: float) -> None:
    torch.manual_seed(seed)
    log_mel, hidden = torch.randn(frames, 4, dtype=torch.float64), torch.rand(frames, 4) < share
    hidden[0, 0] = False
    found = join_visible(log_mel, hidden).numpy()
    for band in range(4):
        seen = np.flatnonzero(~hidden[:, band].numpy())
        if len(seen):
            expected = np.interp(np.arange(frames), seen, log_mel[:, band].numpy()[seen])
        else:
            expected = np.full(frames, float(log_mel[~hidden].mean()))
        np.testing.assert_allclose(found[:, band], expected)
