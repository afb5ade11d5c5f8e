"""CAV-MAE is the published function: numbers that the published code computed.

The archive is frequency-major in the sound's tokens and patches, as the published code is.
"""

from __future__ import annotations

import pytest
from archives import Archive, assert_same, assert_same_gradient, load_published, read_published
from torch import Tensor

from amae_plugin.models.base import summed_losses
from amae_plugin.models.cav_mae import CAVMAE
from amae_plugin.models.cav_mae.published import CAVMAEPretrained
from amae_plugin.models.classifier import Classifier

BANDS = 8  # of patches
BOTH = ("audio", "image")


class Golden(Archive):
    def __init__(self) -> None:
        super().__init__("cav_mae")
        self.source, self.image = self["spectrogram"], self["image"]
        self.masks = {"mask": time_major(self["mask_audio"]), "image_mask": self["mask_image"]}
        self.heads = {"num_heads": 4, "decoder_num_heads": 3}

    def model(self) -> CAVMAE:
        return load_published(self.state, **self.heads)  # type: ignore[return-value]

    @property
    def fine_tuned(self) -> dict[str, Tensor]:
        """The published state dict of a classifier, which has no decoder."""
        encoder = {name: value for name, value in self.state.items() if not name.startswith(("decoder", "mask"))}
        return {**encoder, **self.part("head/")}

    def classifier(self, modalities: tuple[str, ...]) -> Classifier:
        section = read_published(self.fine_tuned, num_heads=4).encoder_settings
        changes = {"encoder": {**section, "modalities": list(modalities)}}
        return load_published(self.fine_tuned, changes, num_heads=4)  # type: ignore[return-value]


def time_major(tokens: Tensor) -> Tensor:
    return tokens.unflatten(1, (BANDS, -1)).transpose(1, 2).flatten(1, 2)


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden()


def mean_losses(model: CAVMAE, output: dict[str, Tensor]) -> dict[str, Tensor]:
    count = output["mask"].sum()
    return {name: value / count for name, value in summed_losses(model, output, output["mask"]).items()}


def test_sizes_are_read_from_the_weights(golden: Golden) -> None:
    checkpoint, config = read_published(golden.state, **golden.heads), golden.model().config
    decoder = (config.decoder_embed_dim, config.decoder_depth, config.decoder_num_heads)
    own = config.depth - config.shared_depth
    found = (config.embed_dim, config.num_heads, *decoder, config.input_length, config.image_size, own)
    assert found == tuple(golden["sizes"].tolist())
    assert (config.shared_depth, config.patch_size, config.image_patch_size) == (2, (16, 16), 16)
    assert (config.num_mel_bins, config.modalities) == (128, BOTH)
    taken = checkpoint.input
    assert (taken.mean, taken.std, taken.normalization) == (-5.081, 4.4849, "one_std")
    assert taken.target_length == 256
    assert checkpoint.system.input(checkpoint.encoder_settings).image.size == 64
    assert not checkpoint.untrained
    encoder, decoder = golden.model().encoder, golden.model().decoder
    for part in (encoder, encoder.image, decoder, decoder.image):
        assert part.positions.is_sincos  # other lengths and sizes are computed, not interpolated


def test_predictions_and_losses(golden: Golden) -> None:
    model = golden.model()
    output = model(golden.source, golden.image, **golden.masks)
    expected = time_major(golden["prediction_audio"]).unflatten(2, (16, 16)).transpose(2, 3).flatten(2)
    assert_same(output["prediction"], expected)
    assert_same(output["image_prediction"], golden["prediction_image"])
    losses = mean_losses(model, output)
    for ours, published in {
        "loss": "loss",
        "reconstruction": "loss_reconstruction_audio",
        "image_reconstruction": "loss_reconstruction_image",
    }.items():
        assert losses[ours].item() == pytest.approx(float(golden[published]), rel=1e-4)
    contrastive = float(golden["loss_contrastive_weighted"]) / model.loss_weights["contrastive"]
    assert losses["contrastive"].item() == pytest.approx(contrastive, rel=1e-4)


def test_gradients(golden: Golden) -> None:
    model = golden.model()
    mean_losses(model, model(golden.source, golden.image, **golden.masks))["loss"].backward()
    gradients = golden.part("grad/")
    names = CAVMAEPretrained().names(golden.state)
    assert len(gradients) == 8
    for published, expected in gradients.items():
        if published == "patch_embed_a.proj.weight":
            expected = expected.transpose(2, 3)
        assert_same_gradient(model.get_parameter(names[published]).grad, expected)


def test_features_of_each_modality_alone(golden: Golden) -> None:
    model = golden.model()
    sound, image = time_major(golden["features_audio"]), golden["features_image"]
    assert_same(model.extract_features(golden.source)[0], sound)
    assert_same(model.extract_image_features(golden.image), image)
    assert_same(model.features(golden.source), sound.mean(1))
    assert_same(model.image_features(golden.image), image.mean(1))


@pytest.mark.parametrize(
    ("name", "modalities", "given"),
    [
        ("multimodal", BOTH, BOTH),
        ("audioonly", ("audio",), ("audio",)),
        ("audioonly", ("audio",), BOTH),
        ("videoonly", ("image",), ("image",)),
        ("videoonly", ("image",), BOTH),
        ("missingaudioonly", BOTH, ("audio",)),
        ("missingvideoonly", BOTH, ("image",)),
    ],
)
def test_logits(golden: Golden, name: str, modalities: tuple[str, ...], given: tuple[str, ...]) -> None:
    source = golden.source if "audio" in given else None
    image = golden.image if "image" in given else None
    output = golden.classifier(modalities)(source, image=image)
    assert_same(output["logits"], golden[f"logits/{name}"])
