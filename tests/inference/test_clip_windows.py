"""Windows cover a clip, and no part of it counts more than another."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amae_plugin.inference.windows import Windows

layouts = st.tuples(st.integers(1, 200), st.integers(1, 64)).map(
    lambda sizes: Windows.cover(*sizes, hop=max(1, sizes[1] // 2))
)


@given(st.integers(1, 200), st.integers(1, 64), st.data())
def test_windows_start_a_hop_apart_and_the_last_ends_with_the_clip(steps, width, data):
    hop = data.draw(st.integers(1, width))
    starts = Windows.cover(steps, width, hop).starts
    assert starts[0] == 0 and starts[-1] + width == max(steps, width)
    assert all(after - before == hop for before, after in itertools.pairwise(starts[:-1]))
    assert all(0 < after - before <= hop for before, after in itertools.pairwise(starts))


@given(layouts)
def test_windows_cover_the_clip(windows):
    starts, steps, width = windows.starts, windows.steps, windows.width
    assert starts[0] == 0
    assert max(starts) + width == max(steps, width)
    assert windows.counts.tolist() == [sum(start <= step < start + width for start in starts) for step in range(steps)]


@given(layouts)
def test_each_step_is_taken_from_the_window_in_which_it_is_farthest_from_an_edge(windows):
    number, step = torch.meshgrid(torch.arange(len(windows.starts)), torch.arange(windows.width), indexing="ij")
    taken = windows.central(torch.stack([number, step], dim=2))
    assert len(taken) == windows.steps
    for place, (window, within) in enumerate(taken.tolist()):
        assert windows.starts[window] + within == place
        edges = [min(place - start, start + windows.width - 1 - place) for start in windows.starts]
        assert min(within, windows.width - 1 - within) == max(edges)


@given(layouts)
def test_the_mean_over_windows_is_the_mean_over_steps(windows):
    values = torch.randn(len(windows.starts), 3, generator=torch.Generator().manual_seed(0))
    merged = windows.merge(values[:, None].expand(-1, windows.width, -1))
    assert merged.shape == (windows.steps, 3)
    torch.testing.assert_close(windows.mean(values), merged.mean(0))
    assert float(windows.weights.sum()) == pytest.approx(1, abs=1e-5)


def test_a_step_has_the_mean_of_the_windows_that_hear_it():
    windows = Windows.cover(7, 4, hop=2)
    assert windows.starts == (0, 2, 3)
    values = torch.arange(12.0).view(3, 1, 4, 1)
    expected = [0, 1, (2 + 4) / 2, (3 + 5 + 8) / 3, (6 + 9) / 2, (7 + 10) / 2, 11]
    assert windows.merge(values).squeeze().tolist() == pytest.approx(expected)


def test_padding_is_left_out():
    windows = Windows.cover(3, 4, hop=2)
    assert windows.starts == (0,)
    assert windows.merge(torch.arange(4.0).view(1, 4, 1)).flatten().tolist() == [0, 1, 2]


@given(st.integers(1, 200), st.integers(1, 64))
def test_adjacent_windows_give_every_step_once_from_the_first_window_that_has_it(steps, width):
    windows = Windows.cover(steps, width, hop=width)
    numbers = torch.arange(len(windows.starts)).repeat_interleave(width).view(-1, width)
    places = torch.tensor(windows.starts)[:, None] + torch.arange(width)
    first = windows.first(torch.stack([numbers, places], dim=2))
    assert torch.equal(first[:, 1], torch.arange(steps))
    assert torch.equal(first[:, 0], torch.arange(steps) // width)
