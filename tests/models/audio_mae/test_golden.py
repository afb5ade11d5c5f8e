"""The model is the published function: numbers that the published code computed, on tiny models with random weights."""

from pathlib import Path

import numpy as np
import pytest
import torch

from amae_plugin.models.audio_mae.interop import from_official, rename

GOLDEN = Path(__file__).parents[2] / "golden"
VISIBLE = 102  # int(512 * 0.2)


class Golden:
    def __init__(self, decoder):
        self.values = dict(np.load(GOLDEN / f"audio_mae_{decoder}.npz"))
        self.source = self["spectrogram"].float()[:, 0]
        self.mask = self["mask"].bool()
        # The published code gathers visible tokens in the order of their noise, this package in the order of the grid.
        self.by_position = self["ids_restore"].argsort(1)[:, :VISIBLE].argsort(1)

    def __getitem__(self, name):
        return torch.from_numpy(self.values[name])

    def part(self, prefix):
        return {name[len(prefix) :]: self[name] for name in self.values if name.startswith(prefix)}

    def model(self, **config):
        state = {name: tensor.float() for name, tensor in self.part("state/").items()}
        heads = int(self["num_heads"]), int(self["decoder_num_heads"])
        return from_official(state, num_heads=heads[0], decoder_num_heads=heads[1], **config).eval()


def loss_of(output):
    return (output["prediction"] - output["target"]).square().mean(-1)[output["mask"]].mean()


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected.to(actual), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module", params=["shifted", "global"])
def golden(request):
    return Golden(request.param)


def test_sizes_are_read_from_the_weights(golden):
    config = golden.model().config
    for name in ("embed_dim", "depth", "num_heads", "decoder_embed_dim", "decoder_depth", "decoder_num_heads"):
        assert getattr(config, name) == int(golden[name])
    assert config.input_length == 1024
    assert config.decoder == ("global" if config.decoder_depth == 3 else "shifted")


def test_latent_and_prediction(golden):
    output = golden.model()(golden.source, golden.mask)
    assert_same(output["prediction"][0], golden["prediction"][0])
    latent = golden["latent"]
    assert_same(output["latent"][:, 0], latent[:, 0])
    tokens = latent[:, 1:].gather(1, golden.by_position[..., None].expand(-1, -1, latent.shape[-1]))
    assert_same(output["latent"][:, 1:], tokens)


@pytest.mark.parametrize(("norm_pix_loss", "name"), [(True, "loss_norm_pix"), (False, "loss_raw")])
def test_loss(golden, norm_pix_loss, name):
    output = golden.model(norm_pix_loss=norm_pix_loss)(golden.source, golden.mask)
    assert loss_of(output).item() == pytest.approx(float(golden[name]), rel=1e-4)


def test_gradients(golden):
    model = golden.model()
    loss_of(model(golden.source, golden.mask)).backward()
    parameters = dict(model.named_parameters())
    expected = golden.part("grad/")
    assert len(expected) >= 5
    for name, gradient in expected.items():
        actual = parameters[rename(name)].grad
        # Relative to the largest entry: an absolute 1e-4 would say little about gradients that are that small.
        assert (actual - gradient).abs().max() < 1e-4 * gradient.abs().max(), name


def test_the_mask_of_the_published_code_is_the_mask_of_the_same_noise(golden):
    model = golden.model()
    mask = model.masking(lambda count: golden["mask_noise"], (64, 8))
    assert torch.equal(mask, golden.mask)
