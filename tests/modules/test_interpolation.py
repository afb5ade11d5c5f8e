from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from amae_plugin.modules.interpolation import interpolate


def guess(values: torch.Tensor, known: torch.Tensor, grid: tuple[int, int], frames: int) -> torch.Tensor:
    """One clip by the textbook: simple kriging, the known patches alone."""
    places = torch.cartesian_prod(*(torch.arange(n, dtype=values.dtype) for n in grid)).view(-1, 2)
    apart = (places[:, None] - places).abs()
    covariance = torch.exp(-apart[..., 0] * frames / 64 - apart[..., 1] / (2 * grid[1]))
    mean = values[known].mean(0)
    inner = covariance[known][:, known] + 0.02 * torch.eye(int(known.sum()), dtype=values.dtype)
    return mean + covariance[:, known] @ torch.linalg.inv(inner) @ (values[known] - mean)


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 5), st.sampled_from([2, 16]))
def test_every_clip_is_the_textbooks_guess(seed: int, rows: int, columns: int, frames: int) -> None:
    torch.manual_seed(seed)
    values = torch.randn(3, rows * columns, 2, dtype=torch.float64)
    known = torch.rand(3, rows * columns) < 0.4
    known[:, seed % (rows * columns)] = True
    found = interpolate(values, known, (rows, columns), frames)
    for clip in range(3):
        assert_close(found[clip], guess(values[clip], known[clip], (rows, columns), frames))


def test_unknown_values_have_no_influence() -> None:
    torch.manual_seed(0)
    values, known = torch.randn(2, 24, 2), torch.rand(2, 24) < 0.5
    changed = torch.where(known[..., None], values, 1e6)
    assert torch.equal(interpolate(values, known, (6, 4), 16), interpolate(changed, known, (6, 4), 16))


def test_known_values_are_about_kept_and_the_mean_is_far_away() -> None:
    values = torch.zeros(1, 400, 1)
    values[0, :4, 0] = torch.tensor([1.0, 3.0, 2.0, 2.0])
    known = torch.zeros(1, 400, dtype=torch.bool)
    known[0, :4] = True
    found = interpolate(values, known, (400, 1), 16)[0, :, 0]
    assert_close(found[:4], values[0, :4, 0], atol=0.15, rtol=0)
    assert_close(found[100:], torch.full((300,), 2.0))


@pytest.mark.parametrize("known", [0, 12])
def test_nothing_known_or_all(known: int) -> None:
    values = torch.full((1, 12, 1), 5.0)
    found = interpolate(values, torch.arange(12)[None] < known, (4, 3), 16)
    assert_close(found, torch.full((1, 12, 1), 5.0 if known else 0.0))
