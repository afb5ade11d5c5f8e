import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from amae_plugin.models.mae_ast.input_norm import InputNorm


def noise(*shape):
    return -4 + 3 * torch.randn(shape, generator=torch.Generator().manual_seed(1))


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_it_is_half_of_pytorchs_batch_norm_in_training_and_evaluation():
    ours, theirs = InputNorm(), nn.BatchNorm2d(1, affine=False)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for step in range(3):
        source = noise(4, 20, 16) + step
        assert_close(ours(source), theirs(source[:, None])[:, 0] / 2)
        for name, expected in theirs.state_dict().items():
            assert_close(ours.state_dict()[name], expected)
    assert_close(ours.eval()(source), theirs.eval()(source[:, None])[:, 0] / 2)
    assert ours.num_batches_tracked == 3


@given(frames=st.lists(st.integers(1, 20), min_size=1, max_size=4), value=st.sampled_from([0.0, 1e6, float("nan")]))
def test_padding_counts_nothing_and_becomes_the_mean(frames, value):
    source = noise(len(frames), 20, 16)
    padding = torch.arange(20) >= torch.tensor(frames)[:, None]
    padded, valid_only = InputNorm(), InputNorm()
    x = padded(source.masked_fill(padding[..., None], value), padding)
    expected = valid_only(source[~padding][None])
    assert_close(x[~padding], expected[0])
    assert not x[padding].any()
    for name, running in valid_only.state_dict().items():
        assert_close(padded.state_dict()[name], running)


def test_nothing_but_padding_gives_finite_statistics():
    norm = InputNorm()
    assert not norm(noise(2, 4, 3), torch.ones(2, 4, dtype=torch.bool)).any()
    assert norm.running_var.isfinite().all()


@pytest.mark.parametrize("training", [True, False])
def test_statistics_change_in_training_only(training):
    norm = InputNorm().train(training)
    norm(noise(2, 4, 3))
    assert (norm.running_mean != 0).item() is training


def test_the_inverse_is_that_of_evaluation():
    norm = InputNorm()
    source = noise(2, 20, 16)
    norm(source)
    assert_close(norm.inverse(norm.eval()(source)), source)
