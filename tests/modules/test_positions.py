import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amae_plugin.modules.embedding import (
    GridPositions,
    LearnedPositions,
    SequencePositions,
    resize_grid,
    sincos_1d,
    sincos_2d,
)

sides = st.integers(1, 24)


def test_one_dimension_is_the_textbook_formula():
    table = sincos_1d(torch.tensor([0, 3, 500]), 8)
    for row, position in zip(table.tolist(), (0, 3, 500)):
        angles = [position / 10000 ** (2 * i / 8) for i in range(4)]
        assert row == pytest.approx([math.sin(a) for a in angles] + [math.cos(a) for a in angles], abs=1e-9)


@given(grid=st.tuples(sides, sides))
def test_each_half_of_the_width_tells_one_coordinate_on_any_grid(grid):
    table = sincos_2d(grid, 16).view(*grid, 16)
    frequency, time = table[..., :8], table[..., 8:]
    assert torch.equal(time, time[:, :1].expand_as(time))  # the same in a row of tokens, which share their time
    assert torch.equal(frequency, frequency[:1].expand_as(frequency))
    assert torch.equal(time[:, 0], sincos_1d(torch.arange(grid[0]), 8).float())
    assert torch.equal(frequency[0], sincos_1d(torch.arange(grid[1]), 8).float())


@given(grid=st.tuples(sides, sides))
def test_no_two_tokens_have_the_same_position(grid):
    assert len(sincos_2d(grid, 16).unique(dim=0)) == grid[0] * grid[1]


def test_a_width_that_cannot_be_split_in_four_is_refused():
    with pytest.raises(ValueError, match="multiple of 4, not 10"):
        sincos_2d((2, 2), 10)


@given(built=st.tuples(sides, sides), asked=st.tuples(sides, sides))
def test_another_grid_than_the_built_one_gets_the_table_of_its_own(built, asked):
    positions = GridPositions(built, 8)
    table = positions(asked)
    assert table.shape == (1, 1 + asked[0] * asked[1], 8)
    assert not table[0, 0].any()
    assert torch.equal(table[0, 1:], sincos_2d(asked, 8))
    assert positions(asked) is table  # computed once


def loaded(grid, table):
    positions = GridPositions(grid, table.shape[-1])
    positions.load_state_dict({"pos_embed": torch.cat([torch.zeros(1, table.shape[-1]), table])[None]})
    return positions


def test_a_loaded_table_is_kept_and_other_grids_are_interpolated_from_it():
    ramp = torch.arange(16.0).repeat_interleave(8)[:, None].expand(-1, 8).contiguous()  # grows with time only
    positions = loaded((16, 8), ramp)
    assert torch.equal(positions((16, 8))[0, 1:], ramp)
    stretched = positions((32, 8))[0, 1:].view(32, 8, 8)
    inner = stretched[4:-4]
    expected = (torch.arange(4, 28) + 0.5) / 2 - 0.5  # centres of the finer grid in units of the coarser
    # Bicubic interpolation with PyTorch's coefficient follows a straight line to a twentieth of a step.
    torch.testing.assert_close(inner, expected[:, None, None].expand_as(inner), rtol=0, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_sine_cosine_table_is_recognised_after_it_was_stored_in_half_precision(dtype):
    positions = loaded((8, 4), sincos_2d((8, 4), 16).to(dtype).float())
    assert torch.equal(positions((12, 4))[0, 1:], sincos_2d((12, 4), 16))


def test_tables_of_other_grids_are_forgotten_when_a_table_is_loaded():
    positions = GridPositions((4, 4), 8)
    before = positions((6, 4))
    positions.load_state_dict({"pos_embed": torch.randn(1, 17, 8)})
    assert not torch.allclose(positions((6, 4)), before)


def test_a_table_first_asked_for_in_inference_mode_serves_training_afterwards():
    positions = GridPositions((4, 4), 8)
    with torch.inference_mode():
        positions((6, 4))
    weight = torch.ones(1, 25, 8, requires_grad=True)
    (positions((6, 4)) * weight).sum().backward()
    assert torch.equal(weight.grad, positions((6, 4)))


def test_a_sequence_has_sines_and_cosines_in_turn():
    table = SequencePositions(8)(501, torch.device("cpu"))
    assert table.shape == (1, 501, 8)
    assert table.dtype == torch.float32
    for position in (0, 3, 500):
        angles = [position / 10000 ** (2 * i / 8) for i in range(4)]
        expected = [value for angle in angles for value in (math.sin(angle), math.cos(angle))]
        assert table[0, position].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_sequence_may_grow_and_shrink():
    positions, device = SequencePositions(8), torch.device("cpu")
    long = SequencePositions(8)(40, device)
    for length in (3, 40, 7):
        assert torch.equal(positions(length, device), long[:, :length])
    assert list(positions.state_dict()) == []


def test_a_sequence_first_asked_for_in_inference_mode_serves_training_afterwards():
    positions, device = SequencePositions(8), torch.device("cpu")
    with torch.inference_mode():
        positions(6, device)
    weight = torch.ones(1, 6, 8, requires_grad=True)
    (positions(6, device) * weight).sum().backward()
    assert torch.equal(weight.grad, positions(6, device))


def test_a_sequence_needs_an_even_width():
    with pytest.raises(ValueError, match="even width, not 7"):
        SequencePositions(7)


@given(own=st.tuples(sides, sides), asked=st.tuples(sides, sides))
def test_learned_positions_keep_the_middle_of_a_side_that_becomes_shorter(own, asked):
    table = torch.arange(own[0] * own[1], dtype=torch.float32).view(1, 1, *own)
    resized = resize_grid(table, asked)
    assert resized.shape == (1, 1, *asked)
    shorter = (min(own[0], asked[0]), min(own[1], asked[1]))
    if shorter == asked:
        top, left = own[0] // 2 - asked[0] // 2, own[1] // 2 - asked[1] // 2
        assert torch.equal(resized, table[:, :, top : top + asked[0], left : left + asked[1]])


def test_learned_positions_are_interpolated_along_a_side_that_becomes_longer():
    ramp = torch.arange(8.0).view(1, 1, 1, 8).expand(1, 2, 3, 8)
    resized = resize_grid(ramp, (3, 16))
    centres = ((torch.arange(16) + 0.5) / 2 - 0.5).clamp(0, 7)
    torch.testing.assert_close(resized, centres.expand(1, 2, 3, 16))
    torch.testing.assert_close(resize_grid(ramp, (1, 16)), centres.expand(1, 2, 1, 16))


def test_learned_positions_of_another_grid_are_resized_when_they_are_loaded_and_when_they_are_used():
    pretrained, longer = LearnedPositions((2, 8), 4, 2), LearnedPositions((3, 12), 4, 2)
    used = pretrained((3, 12))
    own, own_shape = pretrained.pos_embed, torch.tensor([2, 8])
    state = pretrained.state_dict()
    longer.load_state_dict(state)
    assert torch.equal(longer.pos_embed, used)
    assert torch.equal(longer.pos_embed[:, :2], own[:, :2])
    assert torch.equal(longer.table_grid, torch.tensor([3, 12]))
    assert torch.equal(state["table_grid"], own_shape)  # what is loaded stays as it was
    assert torch.equal(longer((3, 12)), longer.pos_embed)
    used.sum().backward()
    assert own.grad.isfinite().all()


def test_learned_positions_whose_grid_is_not_known_are_loaded_as_they_are_or_refused():
    positions = LearnedPositions((2, 8), 4, 2)
    with pytest.raises(RuntimeError, match="size mismatch for pos_embed"):
        positions.load_state_dict({"pos_embed": torch.zeros(1, 20, 4), "table_grid": torch.tensor([2, 8])})
    with pytest.raises(RuntimeError, match="table_grid"):
        positions.load_state_dict({"pos_embed": torch.zeros(1, 18, 4)})
