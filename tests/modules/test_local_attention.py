import itertools
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.models.swin_transformer_v2_cr import SwinTransformerV2CrBlock
from torch import nn

from amae_plugin.modules.local_attention import WindowBlock, padded_grid, permute_tokens, plan_windows

CPU = torch.device("cpu")
grids = st.tuples(st.integers(1, 13), st.integers(1, 13))
windows = st.tuples(st.integers(1, 5), st.integers(1, 5))
shifts = st.tuples(st.integers(0, 4), st.integers(0, 4))


def fitted(grid, window, shift):
    """Window and shift as they apply to a grid: no larger than it, and unshifted where one window covers a side."""
    window = tuple(min(w, g) for w, g in zip(window, grid))
    return window, tuple(0 if w == g else s % w for w, g, s in zip(window, grid, shift))


@given(grid=grids, window=windows)
def test_windows_divide_the_padded_grid_with_the_least_padding(grid, window):
    window, _ = fitted(grid, window, (0, 0))
    for padded, length, side in zip(padded_grid(grid, window), grid, window):
        assert padded % side == 0
        assert length <= padded < length + side


@given(grid=grids, window=windows, shift=shifts)
def test_the_window_order_is_a_permutation_of_the_padded_grid(grid, window, shift):
    plan = plan_windows(grid, window, shift, CPU)
    rows, columns = padded_grid(grid, window)
    assert sorted(plan.order.tolist()) == list(range(rows * columns))
    assert (rows * columns) % plan.window_length == 0


@given(grid=grids, window=windows, shift=shifts)
def test_windows_hold_the_tokens_of_the_cyclically_shifted_grid(grid, window, shift):
    plan = plan_windows(grid, window, shift, CPU)
    rows, columns = padded_grid(grid, window)
    window, shift = fitted(grid, window, shift)
    expected = []
    for top, left in itertools.product(range(0, rows, window[0]), range(0, columns, window[1])):
        for row, column in itertools.product(range(window[0]), range(window[1])):
            source = (top + row + shift[0]) % rows, (left + column + shift[1]) % columns
            expected.append(source[0] * columns + source[1])
    assert plan.order.tolist() == expected


def may_meet(one, other, columns, grid, window):
    """Whether two tokens of one window were as close in the grid as a window is long, and are both real or both not."""
    places = [divmod(token, columns) for token in (one, other)]
    real = [row < grid[0] and column < grid[1] for row, column in places]
    near = all(abs(a - b) < side for a, b, side in zip(*places, window))
    return real[0] == real[1] and (near or not real[0])


@given(grid=grids, window=windows, shift=shifts)
def test_only_real_neighbours_meet(grid, window, shift):
    plan = plan_windows(grid, window, shift, CPU)
    _, columns = padded_grid(grid, window)
    window, _ = fitted(grid, window, shift)
    tokens = plan.order.view(-1, plan.window_length).tolist()
    for index, members in enumerate(tokens):
        for (i, one), (j, other) in itertools.product(enumerate(members), repeat=2):
            meets = plan.separation is None or plan.separation[index, i, j] == 0
            real = all(token // columns < grid[0] and token % columns < grid[1] for token in (one, other))
            if real:  # what the padding sees among itself does not matter
                assert meets == may_meet(one, other, columns, grid, window)
            elif one // columns < grid[0] and one % columns < grid[1]:
                assert not meets


def test_nothing_is_separated_where_nothing_wraps():
    assert plan_windows((64, 8), (4, 4), (0, 0), CPU).separation is None
    assert plan_windows((4, 8), (4, 4), (2, 0), CPU).separation is None  # one window covers the shifted side
    assert plan_windows((64, 8), (4, 4), (2, 0), CPU).separation.shape == (32, 16, 16)


def test_distances_are_log_spaced_in_time_and_frequency():
    plan = plan_windows((4, 6), (2, 3), (0, 0), CPU)
    distances = plan.distances.view(6, 6, 2)
    # Token 5 of a 2 x 3 window is one row below token 0 and two columns beyond it.
    logs = torch.tensor([1.0, 2.0]).log1p()
    torch.testing.assert_close(distances[5, 0], logs)
    torch.testing.assert_close(distances[0, 5], -logs)
    assert not distances.diagonal().any()


@given(length=st.integers(1, 20), data=st.data())
def test_permuting_moves_tokens_and_their_gradients(length, data):
    order = torch.tensor(data.draw(st.permutations(range(length))))
    x = torch.randn(2, length, 3, requires_grad=True)
    weight = torch.randn(2, length, 3)
    moved = permute_tokens(x, order)
    assert torch.equal(moved, x[:, order])
    (moved * weight).sum().backward()
    assert torch.equal(x.grad[:, order], weight)


def timm_block(dim, heads, grid, window, shift):
    """timm's block of the same function; its shift is set afterwards since it would shift both ways or none."""
    theirs = SwinTransformerV2CrBlock(dim, heads, grid, window, norm_layer=partial(nn.LayerNorm, eps=1e-6))
    theirs.shift_size = shift
    mask = theirs.get_attn_mask()
    theirs.register_buffer("attn_mask", mask, persistent=False)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    return theirs.eval()


def ours_from(theirs, dim, heads):
    state = theirs.state_dict()
    state["attn.tau"] = (-state.pop("attn.logit_scale")).exp()
    ours = WindowBlock(dim, heads).eval()
    ours.load_state_dict(state)
    return ours


@pytest.mark.parametrize("shift", [(0, 0), (2, 0), (2, 2), (0, 2)])
@pytest.mark.parametrize("grid", [(12, 8), (16, 4)])
def test_window_block_is_timms_with_the_same_weights(grid, shift):
    torch.manual_seed(0)
    dim, heads, window = 24, 3, (4, 4)
    shift = fitted(grid, window, shift)[1]
    theirs = timm_block(dim, heads, grid, window, shift)
    ours = ours_from(theirs, dim, heads)
    plan = plan_windows(grid, window, shift, CPU)
    x = torch.randn(2, grid[0] * grid[1], dim)
    result = permute_tokens(ours(permute_tokens(x, plan.order), plan), plan.order.argsort())
    expected = theirs(x.view(2, *grid, dim)).flatten(1, 2)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
