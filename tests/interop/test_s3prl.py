"""The s3prl upstream: every layer, every clip on its own, gradients where they are wanted."""

from __future__ import annotations

import pytest
import torch

from amae_plugin import load_model
from amae_plugin.errors import UserError
from amae_plugin.interop.s3prl import amae_local


@pytest.fixture(scope="module")
def path(tmp_path_factory, write_checkpoint):
    return str(write_checkpoint(tmp_path_factory.mktemp("s3prl") / "x.pt", None))


@pytest.fixture(scope="module")
def wavs():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(length, generator=generator) - 0.5 for length in (30_000, 8000, 800)]


def test_hidden_states_do_not_depend_on_the_rest_of_the_batch(path, wavs):
    expert = amae_local(ckpt=path, refresh=False)
    assert expert.get_downsample_rates("hidden_states") == 2560
    with torch.no_grad():
        states = expert(wavs)["hidden_states"]
    assert [tuple(state.shape) for state in states] == [(3, 12, 32)] * 2
    model = load_model(path, device="cpu")
    for index, wav in enumerate(wavs):
        expected = model.extract_features(wav, 16_000)
        with torch.no_grad():
            alone = expert([wav])["hidden_states"]
        for state, single, layer in zip(states, alone, expected):
            steps = -(-len(wav) // 2560)  # as many as s3prl counts, the last one again if need be
            assert single.shape[1] == steps
            torch.testing.assert_close(single[0, : len(layer)], layer)
            assert (single[0, len(layer) :] == layer[-1]).all()
            torch.testing.assert_close(state[index, :steps], single[0], rtol=1e-4, atol=1e-5)
            assert not state[index, steps:].any()


def test_a_weighted_sum_can_be_trained_on_them_and_so_can_the_encoder(path, wavs):
    expert = amae_local(path)
    weights = torch.ones(2, requires_grad=True)

    def loss():
        states = torch.stack(expert(wavs)["hidden_states"])
        return (weights[:, None, None, None] * states).square().sum()

    expert.train()
    loss().backward()
    assert weights.grad.abs().min() > 0
    encoder = expert.model.encoder
    assert all(parameter.grad is not None for parameter in encoder.blocks.parameters())
    with torch.no_grad():
        states = torch.stack(expert(wavs)["hidden_states"])
    weights.grad = None
    (weights[:, None, None, None] * states).square().sum().backward()
    assert weights.grad.abs().min() > 0


def test_samples_of_another_scale_are_refused(path, wavs):
    for scaled in (wavs[1] * 32768, (wavs[1] * 32768).long()):
        with pytest.raises(UserError, match=r"wavs\[1\]: its samples .* full scale"):
            amae_local(path)([wavs[0], scaled])
