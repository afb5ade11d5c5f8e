"""M2D is the published function: numbers that the published code computed.

The archive is frequency-major, as the published code is.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from archives import GOLDEN, Archive, assert_same, assert_same_gradient, load_published, read_published
from torch import Tensor

from amae_plugin.data.log_mel import SlaneyLogMel
from amae_plugin.interop.convert import FORMATS
from amae_plugin.models.base import summed_losses
from amae_plugin.models.m2d import M2D, SYSTEM
from amae_plugin.models.m2d.published import M2DPretrained

GRID = (13, 5)  # time x frequency
UPDATES = 5  # of the run of which the archive has the decays of the first three


class Golden(Archive):
    def __init__(self) -> None:
        super().__init__("m2d")
        self.source = self["spectrogram"].transpose(1, 2)
        self.mask = time_major(self["mask"])
        self.heads = {"num_heads": 4, "decoder_num_heads": 4}

    def model(self) -> M2D:
        return load_published(self.state, **self.heads)  # type: ignore[return-value]

    def hidden(self, values: Tensor) -> Tensor:
        """Values (2, hidden, D) in the order of the noise as (2, L, D) on the grid, 0 at visible tokens."""
        ids = self["ids_restore"].argsort(1)[:, -values.shape[1] :, None].expand_as(values)
        return time_major(torch.zeros(2, 65, values.shape[2]).scatter(1, ids, values))


def time_major(tokens: Tensor) -> Tensor:
    return tokens.unflatten(1, GRID[::-1]).transpose(1, 2).flatten(1, 2)


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden()


def mean_loss(model: M2D, output: dict[str, Tensor]) -> Tensor:
    return summed_losses(model, output, output["mask"])["loss"] / output["mask"].sum()


def test_sizes_and_statistics_are_read_from_the_weights(golden: Golden) -> None:
    checkpoint = read_published(golden.state, **golden.heads)
    config = golden.model().config
    sizes = (config.embed_dim, config.depth, config.num_heads)
    decoder = (config.decoder_embed_dim, config.decoder_depth, config.decoder_num_heads)
    assert (*sizes, *decoder, config.input_length) == tuple(golden["sizes"].tolist())
    assert (config.patch_size, config.num_mel_bins) == ((16, 16), 80)
    assert (checkpoint.input.mean, checkpoint.input.std) == pytest.approx((-7.1, 4.2))
    assert checkpoint.input.front_end == SlaneyLogMel() and checkpoint.input.normalization == "one_std"
    assert not checkpoint.untrained
    assert golden.model().encoder.positions.is_sincos  # other lengths are computed, not interpolated


def test_an_encoder_of_2022_is_known_by_its_positions(golden: Golden) -> None:
    others = ("norm_stats", "target_", "decoder_", "mask_token")
    state = {name: tensor for name, tensor in golden.state.items() if not name.startswith(others)}
    assert [form.name for form in FORMATS.values() if form.recognises(state)] == ["m2d"]
    checkpoint = read_published(state, **golden.heads)
    assert all(name.startswith(("decoder.", "teacher.")) for name in checkpoint.untrained)
    assert checkpoint.input == replace(SYSTEM.default_input, target_length=208)
    features, _ = checkpoint.model().extract_features(golden.source)
    assert_same(features[:, 1:], time_major(golden["features"][:, 1:]))
    otherwise = {**state, "pos_embed": golden.model().encoder.positions.pos_embed}  # time step by time step
    assert [form.name for form in FORMATS.values() if form.recognises(otherwise)] == ["audio_mae"]


def test_prediction_target_and_loss(golden: Golden) -> None:
    model = golden.model()
    output = model(golden.source, golden.mask)
    assert_same(output["prediction"][golden.mask], golden.hidden(golden["prediction"])[golden.mask])
    assert_same(output["target"], golden.hidden(golden["target"]))
    assert mean_loss(model, output).item() == pytest.approx(float(golden["loss"]), rel=1e-4)


def test_gradients(golden: Golden) -> None:
    model = golden.model()
    mean_loss(model, model(golden.source, golden.mask)).backward()
    parameters = dict(model.named_parameters())
    expected = M2DPretrained().convert(golden.part("grad/"), bands=GRID[1])
    assert len(expected) == 7
    for name, gradient in expected.items():
        assert_same_gradient(parameters[name].grad, gradient)
    assert not any(parameter.grad is not None for parameter in model.teacher.parameters())


def test_features_of_the_whole_clip(golden: Golden) -> None:
    features, _ = golden.model().extract_features(golden.source)
    assert_same(features[:, :1], golden["features"][:, :1])
    assert_same(features[:, 1:], time_major(golden["features"][:, 1:]))


def test_the_teacher_after_three_updates(golden: Golden) -> None:
    model = golden.model()
    expected = M2DPretrained().rename_all(golden.part("target_after/"))
    before = {name: model.get_parameter(name).clone() for name in expected}
    assert len(expected) == 2
    for update, decay in enumerate(golden["decays"].tolist(), start=1):
        with torch.no_grad():
            for parameter in model.encoder.blocks.parameters():
                parameter *= 1.5
        model.after_update(update, UPDATES)
        assert model.teacher.decay.at(update, UPDATES) == pytest.approx(decay, abs=1e-12)
    for name, value in expected.items():
        assert_same(model.get_parameter(name), value)
        moved = (value - before[name]).abs().max()
        torch.testing.assert_close(
            model.get_parameter(name) - before[name], value - before[name], rtol=0.01, atol=0.01 * float(moved) + 1e-8
        )


def test_the_front_end(golden: Golden) -> None:
    with np.load(GOLDEN / "m2d_features.npz") as archive:
        clips = {name.removeprefix("log_mel/") for name in archive if name.startswith("log_mel/")}
        assert len(clips) == 4
        for clip in clips:
            log_mel = SlaneyLogMel()(torch.from_numpy(archive[f"waveform/{clip}"]))
            torch.testing.assert_close(log_mel, torch.from_numpy(archive[f"log_mel/{clip}"]), rtol=0, atol=6e-4)
