"""MAE-AST is the published function: numbers that the published code computed."""

from __future__ import annotations

import pytest
import torch
from archives import Archive, assert_same, assert_same_gradient, load_published

from amae_plugin.models.mae_ast import MAEAST
from amae_plugin.models.mae_ast.published import MAEASTPretrained

UNDISTURBED = {"dropout": 0.0, "attention_dropout": 0.0, "dropout_input": 0.0, "layerdrop": 0.0}


class Golden(Archive):
    def __init__(self, tokens: str):
        super().__init__(f"mae_ast_{tokens}")
        self.source = self["spectrogram"].float()
        self.patch_size = self.number("kernel_time"), self.number("kernel_freq")
        self.mask = torch.zeros(2, 128, dtype=torch.bool).scatter(1, self["masked"], True)

    def model(self, **criterion: float) -> MAEAST:
        content = {"model": self.state, "cfg": {"criterion": criterion}}
        sizes = {"patch_size": self.patch_size, "num_heads": self.number("num_heads")}
        return load_published(content, UNDISTURBED, **sizes).train()  # type: ignore[return-value]


def mean_losses(model, output):
    return {name: loss.sum() / output["mask"].sum() for name, loss in model.token_losses(output).items()}


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
    [({"classification_weight": 0.0}, "loss_reconstruction"), ({"reconstruction_weight": 0.0}, "loss_info_nce")],
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
    expected = MAEASTPretrained().convert(golden.part("grad/"), golden.patch_size)
    assert len(expected) == 3
    for name, gradient in expected.items():
        assert_same_gradient(parameters[name].grad, gradient)


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
