"""The model is the published function: numbers that the published code computed, on tiny models with random weights."""

from pathlib import Path

import numpy as np
import pytest
import torch

from amae_plugin.models.mae_ast.interop import convert, from_official

GOLDEN = Path(__file__).parents[2] / "golden"


class Golden:
    def __init__(self, tokens):
        self.values = dict(np.load(GOLDEN / f"mae_ast_{tokens}.npz"))
        self.source = self["spectrogram"].float()
        self.patch_size = int(self["kernel_time"]), int(self["kernel_freq"])
        self.mask = torch.zeros(2, 128, dtype=torch.bool).scatter(1, self["masked"], True)

    def __getitem__(self, name):
        return torch.from_numpy(np.asarray(self.values[name]))

    def part(self, prefix):
        return {name[len(prefix) :]: self[name] for name in self.values if name.startswith(prefix)}

    def model(self, **config):
        state = {name: tensor.float() for name, tensor in self.part("state/").items()}
        undisturbed = {"dropout": 0.0, "attention_dropout": 0.0, "dropout_input": 0.0, "layerdrop": 0.0}
        return from_official(state, self.patch_size, int(self["num_heads"]), **{**undisturbed, **config})


def mean_losses(model, output):
    return {name: loss.sum() / output["mask"].sum() for name, loss in model.token_losses(output).items()}


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected.to(actual), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module", params=["patch", "frame"])
def golden(request):
    return Golden(request.param)


def test_sizes_are_read_from_the_weights(golden):
    config = golden.model().config
    assert (config.embed_dim, config.depth, config.num_heads, config.mlp_ratio) == (48, 3, 4, 2.0)
    assert (config.decoder_embed_dim, config.decoder_depth, config.decoder_num_heads) == (48, 2, 4)
    assert config.decoder_mlp_ratio == 2.0
    assert (config.reconstruction_weight, config.info_nce_weight) == (10.0, 1.0)


def test_predictions_and_targets(golden):
    output = golden.model()(golden.source, golden.mask)
    # Published values are of masked tokens only, in the order in which the grid has them.
    assert_same(output["prediction"][0][output["mask"][0]], golden["reconstruction"][0])
    assert_same(output["target"][0][output["mask"][0]], golden["target"][0])
    assert torch.equal(output["mask"], golden.mask)


def test_losses(golden):
    model = golden.model()
    output = model(golden.source, golden.mask)
    losses = mean_losses(model, output)
    assert losses["reconstruction"].item() == pytest.approx(float(golden["loss_reconstruction"]), rel=1e-4)
    assert losses["info_nce"].item() == pytest.approx(float(golden["loss_info_nce"]), rel=1e-4)
    total = sum(model.loss_weights[name] * loss for name, loss in losses.items())
    assert total.item() == pytest.approx(float(golden["loss_total_lambda10"]), rel=1e-4)


@pytest.mark.parametrize(
    ("weights", "name"),
    [({"info_nce_weight": 0.0}, "loss_reconstruction"), ({"reconstruction_weight": 0.0}, "loss_info_nce")],
)
def test_one_objective_alone_has_the_same_loss(golden, weights, name):
    model = golden.model(**weights)
    (loss,) = mean_losses(model, model(golden.source, golden.mask)).values()
    assert loss.item() == pytest.approx(float(golden[name]), rel=1e-4)


def test_gradients(golden):
    model = golden.model()
    losses = mean_losses(model, model(golden.source, golden.mask))
    sum(model.loss_weights[name] * loss for name, loss in losses.items()).backward()
    parameters = dict(model.named_parameters())
    expected = convert(golden.part("grad/"), golden.patch_size)
    assert len(expected) == 3
    for name, gradient in expected.items():
        actual = parameters[name].grad
        assert actual.shape == gradient.shape
        # Relative to the largest entry: an absolute 1e-4 would say little about gradients that are that small.
        assert (actual - gradient).abs().max() < 1e-4 * gradient.abs().max(), name


def test_one_batch_updates_the_running_statistics_and_the_features_after_it(golden):
    model = golden.model()
    norm = model.encoder.input_norm
    expected = norm.running_mean.clone(), norm.running_var.clone()
    norm.running_mean.zero_()
    norm.running_var.fill_(1.0)
    norm.num_batches_tracked.zero_()
    model.train()(golden.source, golden.mask)
    assert_same(norm.running_mean, expected[0])
    assert_same(norm.running_var, expected[1])
    assert norm.num_batches_tracked == 1
    features, padding = model.eval().extract_features(golden.source[:1])
    assert padding is None
    assert_same(features, golden["features_eval_after_one_batch"])
