"""SSAST and AST are the published functions: numbers that the published code computed.

The archives are frequency-major, as the published code is.
"""

from __future__ import annotations

import pytest
import torch
from archives import Archive, assert_same, assert_same_gradient, load_published
from torch import Tensor

from amae_plugin.models.classifier import Classifier, ClassifierConfig
from amae_plugin.models.ssast import SSAST
from amae_plugin.models.ssast.published import SSASTPretrained


class Golden(Archive):
    def __init__(self, tokens: str):
        super().__init__(f"ssast_{tokens}")
        self.source = self["spectrogram"].float()
        self.grid = 256 // self.number("tshape"), 128 // self.number("fshape")
        band_by_band = torch.zeros(2, 128, dtype=torch.bool).scatter_(1, self["mask_ids"], True)
        self.mask = band_by_band.unflatten(1, self.grid[::-1]).transpose(1, 2).flatten(1)

    def model(self) -> SSAST:
        return load_published(self.state, num_heads=self.number("num_heads"))  # type: ignore[return-value]


def found_patches(output: dict[str, Tensor]) -> Tensor:
    """Hidden patches (B, L) whose prediction has the highest probability among the clip's hidden patches."""
    mask, lowest = output["mask"], torch.finfo(torch.float32).min
    scores = output["target"] @ output["classification"].transpose(1, 2)  # (B, patches, predictions)
    log_probability = scores.masked_fill(~mask[:, None, :], lowest).log_softmax(dim=-1)
    best = log_probability.masked_fill(~mask[:, :, None], lowest).argmax(dim=1)
    return mask & (best == torch.arange(mask.shape[1]))


@pytest.fixture(scope="module", params=["patch", "frame"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def test_sizes_are_read_from_the_weights(golden: Golden) -> None:
    config = golden.model().config
    assert config.patch_size == (int(golden["tshape"]), int(golden["fshape"]))
    assert (config.input_length, config.num_mel_bins) == (256, 128)
    assert (config.embed_dim, config.depth, config.num_heads) == (192, int(golden["depth"]), int(golden["num_heads"]))
    assert config.masking == ("random" if config.patch_size == (2, 128) else "cluster")


def mean_losses(model: SSAST, output: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: loss.sum() / output["mask"].sum() for name, loss in model.token_losses(output).items()}


def joint_loss(model: SSAST, output: dict[str, Tensor]) -> Tensor:
    return sum(model.loss_weights[name] * loss for name, loss in mean_losses(model, output).items())


def test_losses_and_accuracy(golden: Golden) -> None:
    model = golden.model()
    output = model(golden.source, golden.mask)
    losses = mean_losses(model, output)
    assert losses["info_nce"].item() == pytest.approx(float(golden["loss_info_nce"]), rel=1e-4)
    assert losses["reconstruction"].item() == pytest.approx(float(golden["loss_mse"]), rel=1e-4)
    accuracy = found_patches(output).sum().item() / golden.mask.sum().item()
    assert accuracy == pytest.approx(float(golden["accuracy"]), abs=1e-6)
    joint = float(golden["loss_info_nce"]) + 10 * float(golden["loss_mse"])
    assert joint_loss(model, output).item() == pytest.approx(joint, rel=1e-4)


def test_gradients_of_the_joint_loss_from_one_forward_pass(golden: Golden) -> None:
    model = golden.model()
    passes = []
    model.encoder.blocks[0].register_forward_hook(lambda *_: passes.append(1))
    joint_loss(model, model(golden.source, golden.mask)).backward()
    assert len(passes) == 1
    parameters = dict(model.named_parameters())
    expected = SSASTPretrained().convert(golden.part("grad/"), model.config)
    assert len(expected) == 2
    for name, gradient in expected.items():
        # Gradients of a block were stored in half precision, which has 11 bits.
        assert_same_gradient(parameters[name].grad, gradient, 6e-4 if "blocks" in name else 1e-4)


# Built for the length of fine-tuning, whose positions are then made when the weights are loaded, or for that of
# pretraining, so that they are made when they are used.
BUILT_FOR = [
    ("patch", "128_10_10", 128),
    ("patch", "256_16_16", 256),
    ("patch", "400_16_16", 400),
    ("patch", "400_16_16", 256),
    ("frame", "128_128_1", 128),
    ("frame", "256_128_2", 256),
    ("frame", "400_128_2", 400),
    ("frame", "400_128_2", 256),
]


def finetuned(golden: Golden, pooling: str, input_length: int, stride: tuple[int, int]) -> Classifier:
    pretrained = golden.model()
    config = {**vars(pretrained.config), "input_length": input_length, "patch_stride": stride}
    model = Classifier(
        ClassifierConfig(encoder={"_name": "amae_ssast", **config}, num_classes=5, pooling=pooling)
    ).eval()
    model.encoder.load_state_dict(pretrained.encoder.state_dict())
    model.head.weight.data.copy_(golden["finetune/head_weight"].float())
    return model


@pytest.mark.parametrize(("pooling", "published"), [("avgtok", "avgtok"), ("avgcls", "cls")])
@pytest.mark.parametrize(("tokens", "form", "built_for"), BUILT_FOR)
def test_logits_of_the_fine_tuned_form(tokens: str, form: str, built_for: int, pooling: str, published: str) -> None:
    golden = Golden(tokens)
    frames, frequency_stride, time_stride = map(int, form.split("_"))
    model = finetuned(golden, pooling, built_for, (time_stride, frequency_stride))
    source = torch.cat([golden.source, golden.source], dim=1)[:, :frames]
    assert_same(model(source)["logits"], golden[f"finetune/{form}/logits_{published}"])
