"""Windows cover a clip, and no part of it counts more than another."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amae_plugin.inference.windows import Windows

layouts = st.builds(Windows.cover, st.integers(1, 200), st.integers(1, 64))


@given(layouts)
def test_windows_cover_the_clip_and_overlap_by_half(windows):
    starts, steps, width = windows.starts, windows.steps, windows.width
    assert starts[0] == 0
    assert max(starts) + width == max(steps, width)
    assert all(0 < after - before <= max(1, width // 2) for before, after in itertools.pairwise(starts))
    assert windows.counts.tolist() == [sum(start <= step < start + width for start in starts) for step in range(steps)]
    assert windows.counts.min() >= 1


@given(layouts)
def test_the_mean_over_windows_is_the_mean_over_steps(windows):
    values = torch.randn(len(windows.starts), 3, generator=torch.Generator().manual_seed(0))
    merged = windows.merge(values[:, None].expand(-1, windows.width, -1))
    assert merged.shape == (windows.steps, 3)
    torch.testing.assert_close(windows.mean(values), merged.mean(0))
    assert float(windows.weights.sum()) == pytest.approx(1, abs=1e-5)


def test_a_step_has_the_mean_of_the_windows_that_hear_it():
    windows = Windows.cover(7, 4)
    assert windows.starts == (0, 2, 3)
    values = torch.arange(12.0).view(3, 1, 4, 1)
    expected = [0, 1, (2 + 4) / 2, (3 + 5 + 8) / 3, (6 + 9) / 2, (7 + 10) / 2, 11]
    assert windows.merge(values).squeeze().tolist() == pytest.approx(expected)


def test_padding_is_left_out():
    windows = Windows.cover(3, 4)
    assert windows.starts == (0,)
    assert windows.merge(torch.arange(4.0).view(1, 4, 1)).flatten().tolist() == [0, 1, 2]
