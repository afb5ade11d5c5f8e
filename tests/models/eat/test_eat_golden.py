"""EAT is the published function: numbers that the published code computed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from archives import Archive, assert_same, assert_same_gradient, load_published
from torch import Tensor

from amae_plugin.models.eat import EAT
from amae_plugin.models.eat.published import EATPretrained
from amae_plugin.modules.masking import take_tokens
from amae_plugin.modules.moving_average import LinearDecay

CLONES, UPDATES = 3, 100  # the archive's


class Golden(Archive):
    def __init__(self) -> None:
        super().__init__("eat")
        self.source, self.mask = self["spectrogram"], self["mask"]
        self.teacher = {f"_ema.{name}": tensor for name, tensor in self.part("teacher/").items()}

    def model(self, **changes: object) -> EAT:
        changes = {"utterance_weight": len(self.mask), **changes}  # the published loss is a sum over the clones
        return load_published({**self.state, **self.teacher}, changes, num_heads=4)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden()


def losses(model: EAT, output: dict[str, Tensor]) -> dict[str, Tensor]:
    """The means of the objectives over their own summands."""
    by_token = model.token_losses(output)
    return {"frame": by_token["frame"].sum() / output["mask"].sum(), "utterance": by_token["utterance"].mean()}


def test_sizes_are_read_from_the_weights(golden: Golden) -> None:
    config = golden.model().config
    assert [config.embed_dim, config.depth, config.num_heads, config.decoder_depth] == golden["sizes"][:4].tolist()
    assert (config.decoder_kernel, config.decoder_groups, config.patch_size) == (3, 16, (16, 16))


def test_latent_prediction_and_target(golden: Golden) -> None:
    output = golden.model()(golden.source, golden.mask)
    for name in ("prediction", "target"):
        assert_same(output[name], golden[name])
    # The published code has the visible patches in the order of an unstable sort, this package in that of the grid.
    order = torch.cdist(golden["latent"], output["latent"]).argmin(dim=-1)
    assert (order.sort(dim=1).values == torch.arange(order.shape[1])).all() and not order[:, 0].any()
    assert_same(take_tokens(output["latent"], order), golden["latent"])


def test_noise_hides_patches_in_training_only(golden: Golden) -> None:
    model = golden.model().train()
    noisy = model(golden.source, golden.mask, seed=torch.tensor([1, 2]))["prediction"]
    assert (noisy - golden["prediction"]).abs().max() > 1e-2
    model.decoder.noise_std = 0.0
    assert_same(model(golden.source, golden.mask)["prediction"], golden["prediction"])


def test_losses(golden: Golden) -> None:
    model = golden.model()
    means = losses(model, model(golden.source, golden.mask))
    assert means["frame"].item() == pytest.approx(float(golden["loss_regression"]), rel=1e-4)
    assert means["utterance"].item() * len(golden.mask) == pytest.approx(float(golden["loss_utterance"]), rel=1e-4)


def test_gradients(golden: Golden) -> None:
    model = golden.model()
    means = losses(model, model(golden.source, golden.mask))
    sum(model.loss_weights[name] * mean for name, mean in means.items()).backward()
    parameters = dict(model.named_parameters())
    expected = EATPretrained().rename_all(golden.part("grad/"))
    assert len(expected) == 6
    for name, gradient in expected.items():
        assert_same_gradient(parameters[name].grad, gradient)


def test_features(golden: Golden) -> None:
    assert_same(golden.model().extract_features(golden.source)[0], golden["features"])


def test_the_teacher_after_three_updates(golden: Golden) -> None:
    model = golden.model()
    model.teacher.decay = replace(model.teacher.decay, updates=UPDATES)
    for update in (1, 2, 3):
        with torch.no_grad():
            for parameter in model.encoder.parameters():
                parameter *= 1.01
        model.after_update(update, 400_000)
    assert model.teacher.decay.at(3, 400_000) == pytest.approx(float(golden["decay_after"]), abs=1e-12)
    expected = EATPretrained().rename_all({f"_ema.{k}": v for k, v in golden.part("teacher_after/").items()})
    assert len(expected) == 2
    for name, tensor in expected.items():
        assert not torch.allclose(tensor, EATPretrained().rename_all(golden.teacher)[name], rtol=0, atol=1e-6)
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-6, atol=1e-7)


def test_the_decay_grows_as_published(golden: Golden) -> None:
    assert golden.model().teacher.decay == LinearDecay(0.9998, 0.99999, 100_000)
