"""Cluster masks: squares of 3 to 5 tokens, placed until enough tokens are hidden."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from amae_plugin.modules.masking import ClipNoise, ClusterMasking, build_masking, take_tokens, visible_ids

sides = st.integers(1, 40)
grids = st.tuples(sides, sides)
ratios = st.floats(0, 0.999)
seeds = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5)


def masks(ratio: float, grid: tuple[int, int], clips: list[int]) -> Tensor:
    return ClusterMasking(ratio)(ClipNoise(torch.tensor(clips)), grid)


@given(ratio=ratios, grid=grids, clips=seeds)
def test_every_clip_has_exactly_the_promised_number_of_hidden_tokens(
    ratio: float, grid: tuple[int, int], clips: list[int]
) -> None:
    mask = masks(ratio, grid, clips)
    tokens = grid[0] * grid[1]
    assert mask.shape == (len(clips), tokens)
    assert mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [tokens - max(1, int(tokens * (1 - ratio)))] * len(clips)
    assert visible_ids(mask, ClusterMasking(ratio).num_visible(grid)).shape == visible_ids(mask).shape


def test_published_number_of_hidden_tokens() -> None:
    assert masks(0.78125, (64, 8), [1, 2, 3]).sum(1).tolist() == [400] * 3


def squares_one_by_one(seed: int, grid: tuple[int, int], hidden: int) -> tuple[Tensor, Tensor]:
    """Squares placed in the order of their random times: those that fit, and those with the one that is too many."""
    noise = ClipNoise(torch.tensor([seed]))
    side = 3 + int(noise(1) * 3)
    times = noise((grid[0] + 4) * (grid[1] + 4)).view(grid[0] + 4, grid[1] + 4)
    before, mask = torch.zeros(grid, dtype=torch.bool), torch.zeros(grid, dtype=torch.bool)
    for place in times.flatten().argsort().tolist():
        row, column = place // times.shape[1] - 4, place % times.shape[1] - 4
        before = mask.clone()
        mask[max(0, row) : max(0, row + side), max(0, column) : max(0, column + side)] = True
        if mask.sum() >= hidden:
            break
    return before, mask


@given(ratio=st.floats(0.05, 0.95), grid=st.tuples(st.integers(1, 20), st.integers(1, 12)), seed=st.integers(0, 2**40))
def test_hidden_tokens_are_squares_placed_one_after_the_other(ratio: float, grid: tuple[int, int], seed: int) -> None:
    mask = masks(ratio, grid, [seed]).view(grid)
    hidden = int(mask.sum())
    if hidden:
        fit, too_many = squares_one_by_one(seed, grid, hidden)
        assert (mask | ~fit).all()
        assert (too_many | ~mask).all()


def test_the_side_of_a_clips_squares_is_3_4_or_5_equally_often() -> None:
    # 5 tokens are hidden, the last ones of the first square: one row of it, or one and a part of another.
    mask = masks(4.5 / 1600, (40, 40), list(range(6000))).view(-1, 40, 40)
    whole = mask[
        mask[:, 1:-1, 1:-1].sum((1, 2)) == 5
    ]  # the edge, which larger squares reach more often, cuts no square
    counts = whole.sum(2).amax(1).bincount(minlength=6)
    assert len(whole) > 4000
    assert (counts / len(whole)).tolist() == pytest.approx([0, 0, 0, 1 / 3, 1 / 3, 1 / 3], abs=0.05)


def test_tokens_at_the_edge_are_hidden_as_often_as_others() -> None:
    hidden = masks(0.75, (16, 8), list(range(4000))).float().mean(0)
    assert hidden.mean().item() == pytest.approx(0.75)
    assert (hidden - 0.75).abs().max() < 0.04


@given(clips=st.lists(st.integers(0, 2**63 - 1), min_size=2, max_size=5, unique=True))
def test_a_clip_has_the_same_mask_in_any_batch(clips: list[int]) -> None:
    together = masks(0.75, (16, 8), clips)
    for index, clip in enumerate(clips):
        assert torch.equal(masks(0.75, (16, 8), [clip])[0], together[index])


def test_masks_of_known_seeds_never_change() -> None:
    assert visible_ids(masks(0.7, (8, 4), [0, 1, 2**63 - 1])).tolist() == [
        [1, 2, 3, 5, 6, 7, 28, 29, 30],
        [0, 1, 2, 4, 5, 6, 8, 27, 31],
        [1, 2, 3, 5, 6, 7, 8, 9, 10],
    ]


def test_tokens_are_taken_clip_by_clip() -> None:
    tokens = torch.arange(24.0).view(2, 4, 3)
    taken = take_tokens(tokens, torch.tensor([[3, 0], [1, 1]]))
    assert torch.equal(taken, torch.stack([tokens[0, [3, 0]], tokens[1, [1, 1]]]))


def test_the_strategy_is_chosen_by_name_and_checks_its_ratio() -> None:
    assert isinstance(build_masking("cluster", 0.5, 0.1, 0.1), ClusterMasking)
    assert build_masking("cluster", 0.5, 0.1, 0.1).num_visible((8, 8)) == 32
    with pytest.raises(ValueError, match="at least 0 and below 1, not"):
        ClusterMasking(1.0)
