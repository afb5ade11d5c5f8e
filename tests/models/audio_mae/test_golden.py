"""Audio-MAE is the published function: numbers that the published code computed."""

from __future__ import annotations

import pytest
import torch
from archives import Archive, assert_same, assert_same_gradient, load_published
from torch import Tensor

from amae_plugin.models.audio_mae import AudioMAE
from amae_plugin.models.audio_mae.published import AudioMAEPretrained

VISIBLE = 102  # int(512 * 0.2)


class Golden(Archive):
    def __init__(self, decoder: str):
        super().__init__(f"audio_mae_{decoder}")
        self.source = self["spectrogram"].float()[:, 0]
        self.mask = self["mask"].bool()
        # The published code gathers visible tokens in the order of their noise, this package in the order of the grid.
        self.by_position = self["ids_restore"].argsort(1)[:, :VISIBLE].argsort(1)

    def model(self, **changes: object) -> AudioMAE:
        heads = {"num_heads": self.number("num_heads"), "decoder_num_heads": self.number("decoder_num_heads")}
        return load_published(self.state, changes, **heads)  # type: ignore[return-value]


def mean_loss(output: dict[str, Tensor]) -> Tensor:
    return (output["prediction"] - output["target"]).square().mean(-1)[output["mask"]].mean()


@pytest.fixture(scope="module", params=["shifted", "global"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def test_sizes_are_read_from_the_weights(golden: Golden) -> None:
    config = golden.model().config
    for name in ("embed_dim", "depth", "num_heads", "decoder_embed_dim", "decoder_depth", "decoder_num_heads"):
        assert getattr(config, name) == golden.number(name)
    assert config.input_length == 1024
    assert config.decoder == ("global" if config.decoder_depth == 3 else "shifted")


def test_latent_and_prediction(golden: Golden) -> None:
    output = golden.model()(golden.source, golden.mask)
    assert_same(output["prediction"][0], golden["prediction"][0])
    latent = golden["latent"]
    assert_same(output["latent"][:, 0], latent[:, 0])
    tokens = latent[:, 1:].gather(1, golden.by_position[..., None].expand(-1, -1, latent.shape[-1]))
    assert_same(output["latent"][:, 1:], tokens)


@pytest.mark.parametrize(("norm_pix_loss", "name"), [(True, "loss_norm_pix"), (False, "loss_raw")])
def test_loss(golden: Golden, norm_pix_loss: bool, name: str) -> None:
    output = golden.model(norm_pix_loss=norm_pix_loss)(golden.source, golden.mask)
    assert mean_loss(output).item() == pytest.approx(float(golden[name]), rel=1e-4)


def test_gradients(golden: Golden) -> None:
    model = golden.model()
    mean_loss(model(golden.source, golden.mask)).backward()
    parameters = dict(model.named_parameters())
    expected = AudioMAEPretrained().rename_all(golden.part("grad/"))
    assert len(expected) >= 5
    for name, gradient in expected.items():
        assert_same_gradient(parameters[name].grad, gradient)


def test_the_mask_of_the_published_code_is_the_mask_of_the_same_noise(golden: Golden) -> None:
    mask = golden.model().masking(lambda count: golden["mask_noise"], (64, 8))
    assert torch.equal(mask, golden.mask)
