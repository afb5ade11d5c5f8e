"""What only M2D does: its teacher's view, features of joined bands, heads, and its other published files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from archives import Archive, assert_same, load_published, read_published
from fairseq.logging import metrics
from torch import nn

from amae_plugin import load_model
from amae_plugin.cli.main import main
from amae_plugin.data.log_mel import SlaneyLogMel
from amae_plugin.errors import UserError
from amae_plugin.fairseq_plugin.pretraining import AmaeM2D, AmaeMaskedPrediction
from amae_plugin.interop.convert import recognise
from amae_plugin.models.classifier import Classifier, ClassifierConfig
from amae_plugin.models.m2d import M2D, M2DConfig
from amae_plugin.models.published import PublishedFile

SIZES = {
    "input_length": 64,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 3,
    "decoder_embed_dim": 16,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
}
ENCODER = {"_name": "amae_m2d", **SIZES}


def tiny(kind: type[M2D] = M2D, **changes: object) -> M2D:
    torch.manual_seed(0)
    return kind(M2DConfig.from_settings({**SIZES, **changes}))


def test_the_teacher_sees_the_hidden_patches_without_the_visible_ones() -> None:
    model, source = tiny(), torch.randn(2, 64, 80)
    mask = torch.zeros(2, 20, dtype=torch.bool)
    mask[0, :12] = mask[1, 8:] = True
    target = model(source, mask)["target"]
    changed = source.clone()
    changed[1, :16] += 1.0  # of the second clip, the first five patches, which are visible
    assert torch.equal(model(changed, mask)["target"], target)
    assert not target[~mask].any() and target[mask].any(dim=-1).all()
    assert not target.requires_grad
    assert not torch.equal(model.teacher.blocks[0].mlp.fc1.weight, model.encoder.blocks[0].mlp.fc1.weight)


def test_a_teacher_that_collapses_is_logged_and_stops_the_run() -> None:
    model, criterion = tiny(AmaeM2D), AmaeMaskedPrediction(SimpleNamespace(), score_padding=True)
    sample = {"net_input": {"source": torch.randn(2, 64, 80)}, "nsentences": 2, "ntokens": 128}
    with metrics.aggregate() as logged:
        AmaeMaskedPrediction.reduce_metrics([criterion(model, sample)[2]] * 2)
    assert 0.1 < logged["target_variance"].val < 10
    nn.init.zeros_(model.teacher.norm.weight)
    with metrics.aggregate() as logged, pytest.raises(UserError, match="collapsed: its teacher gives every token"):
        AmaeMaskedPrediction.reduce_metrics([criterion(model, sample)[2]])
    assert logged["target_variance"].val == 0


@pytest.fixture(scope="module")
def checkpoint(write_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("m2d") / "m2d.pt"
    return write_checkpoint(path, None, encoder={**ENCODER, "num_mel_bins": 64, "teacher_decay": (0.5, 0.5)})


def test_the_bands_of_a_time_step_stay_side_by_side(checkpoint: Path) -> None:
    samples = 0.1 * np.random.default_rng(0).standard_normal(63 * 160).astype(np.float32)
    model = load_model(checkpoint, device="cpu")
    assert model.input.front_end == SlaneyLogMel(num_mel_bins=64) and model.embed_dim == 4 * 24
    source = model.input.spectrogram(torch.from_numpy(samples))
    tokens = model.model.extract_features(source[None])[0][0, 1:]
    expected = tokens.detach().unflatten(0, (4, 4)).flatten(1)
    steps, timestamps = model.embed_timestamps(samples, 16_000)
    assert_same(steps, expected)
    assert timestamps.tolist() == pytest.approx([(16 * step + 7.5) * 0.01 for step in range(4)])
    assert_same(model.embed(samples, 16_000), expected.mean(0))
    assert_same(model.extract_features(samples, 16_000, layer=-1), expected)


def test_windows_and_padding_keep_the_bands_apart(checkpoint: Path) -> None:
    samples = 0.1 * np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
    model = load_model(checkpoint, device="cpu")
    clips = [samples, samples[:4000], samples[: 63 * 160]]  # longer than the input, shorter, and as long
    together = model.embed(clips, 16_000)
    assert together.shape == (3, 96)
    for clip, embedding in zip(clips, together):
        assert_same(model.embed(clip, 16_000), embedding)
    steps, _ = model.embed_timestamps(clips[1], 16_000)
    padded = model.input.spectrogram(torch.from_numpy(clips[1]))[None]
    frames = (torch.arange(64) >= 26)[None]
    tokens, _ = model.model.extract_features(padded, frames)
    assert_same(steps, tokens[0, 1:].detach().unflatten(0, (4, 4)).flatten(1)[:2])


def test_the_teacher_embeds_if_asked(checkpoint: Path, write_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(8000), 16_000)
    embedded = {}
    for name, options in {"encoder": [], "teacher": ["--teacher"]}.items():
        out = tmp_path / f"{name}.npz"
        arguments = ["embed", str(checkpoint), str(tmp_path / "a.wav"), "--out", str(out), "--device", "cpu", *options]
        assert main(arguments) == 0
        embedded[name] = np.load(out)["embeddings"][0]
    assert embedded["teacher"].shape == (96,) and not np.allclose(*embedded.values())
    network = load_model(checkpoint, "cpu").model
    network.teacher.copy_to(network.encoder)
    by_teacher = load_model(checkpoint, "cpu", teacher=True)
    assert torch.equal(by_teacher.model.encoder.norm.weight, network.teacher.norm.weight)
    assert np.allclose(by_teacher.embed(str(tmp_path / "a.wav")), embedded["teacher"])
    for classes in (None, ["a", "b"]):
        other = write_checkpoint(tmp_path / "other.pt", classes)
        with pytest.raises(UserError, match="has no teacher"):
            load_model(other, teacher=True)


@pytest.mark.parametrize(("pooling", "width"), [("time_concat", 120), ("token_mean", 24)])
def test_the_poolings_of_fine_tuning(pooling: str, width: int) -> None:
    settings = {"mask_ratio_time": 0.0, "mask_ratio_frequency": 0.0, "batch_norm": True}
    model = Classifier(ClassifierConfig(encoder=ENCODER, num_classes=3, pooling=pooling, **settings)).eval()
    source = torch.randn(2, 64, 80)
    tokens = model.encoder(*model.encoder.patches(source))[:, 1:]
    features = tokens.unflatten(1, (4, 5)).flatten(2).mean(1) if pooling == "time_concat" else tokens.mean(1)
    output = model(source)
    assert output["features"].shape == (2, width)
    assert_same(output["features"], features / (1 + 1e-5) ** 0.5)
    assert model.head.weight.std() < 1e-4


def test_joined_bands_need_all_bands() -> None:
    with pytest.raises(ValueError, match="time_concat, which needs all bands"):
        Classifier(ClassifierConfig(encoder=ENCODER, num_classes=3, pooling="time_concat"))
    settings = ClassifierConfig(encoder=ENCODER, num_classes=3, pooling="time_concat", mask_ratio_frequency=0.0)
    with pytest.raises(ValueError, match="takes no mask"):
        Classifier(settings)(torch.randn(1, 64, 80), torch.zeros(1, 20, dtype=torch.bool))


def test_joined_bands_of_hidden_time_steps() -> None:
    settings = {"mask_ratio_time": 0.75, "mask_ratio_frequency": 0.0, "drop_path": 0.0}
    model = Classifier(ClassifierConfig(encoder=ENCODER, num_classes=3, pooling="time_concat", **settings)).train()
    source, seed = torch.randn(3, 64, 80), torch.arange(3)
    # Three of four time steps are hidden: each clip's features are those of the one that is left.
    tokens = [
        model.encoder(*model.encoder.patches(source), torch.arange(5 * step, 5 * step + 5).expand(3, 5))[:, 1:]
        for step in range(4)
    ]
    candidates = torch.stack([each.flatten(1) for each in tokens], dim=1)
    distances = (candidates - model(source, seed=seed)["features"][:, None]).abs().amax(dim=-1)
    assert (distances.amin(dim=1) < 1e-5).all() and (distances < 1e-5).sum() == 3


def test_a_file_of_the_encoder_alone(tmp_path: Path) -> None:
    state = {
        name: value
        for name, value in Archive("m2d").state.items()
        if not name.startswith(("decoder_", "mask_token", "target_"))
    }
    checkpoint = read_published(state, num_heads=4)
    assert {name.split(".")[0] for name in checkpoint.untrained} == {"decoder", "teacher"}
    torch.save(state, tmp_path / "encoder.pt")
    assert recognise(PublishedFile.read(tmp_path / "encoder.pt")).name == "m2d"


@pytest.mark.parametrize("joined", [True, False])
def test_a_fine_tuned_file_of_the_published_code(joined: bool) -> None:
    golden = Archive("m2d")
    width = 48 * (5 if joined else 1)
    generator = torch.Generator().manual_seed(0)
    head = {
        "head.norm.running_mean": torch.randn(width, generator=generator),
        "head.norm.running_var": torch.rand(width, generator=generator) + 0.5,
        "head.norm.num_batches_tracked": torch.tensor(3),
        "head.mlp.mlp.0.weight": torch.randn(7, width, generator=generator),
        "head.mlp.mlp.0.bias": torch.randn(7, generator=generator),
    }
    encoder = {
        f"ar.runtime.backbone.{name}": value
        for name, value in golden.state.items()
        if not name.startswith(("decoder_", "mask_token", "target_"))
    }
    others = {"ar.runtime.to_spec.stft.wsin": torch.zeros(2)}
    content = {f"module.{name}": value for name, value in {**encoder, **head, **others}.items()}
    checkpoint = read_published(content, num_heads=4)
    assert checkpoint.extra_state["conversion"]["left_out"] == list(others)
    model = load_published(content, num_heads=4)
    tokens = golden["features"][:, 1:].unflatten(1, (5, 13))  # frequency-major
    features = tokens.transpose(1, 2).flatten(2).mean(1) if joined else tokens.flatten(1, 2).mean(1)
    normed = (features - head["head.norm.running_mean"]) / (head["head.norm.running_var"] + 1e-5).sqrt()
    expected = normed @ head["head.mlp.mlp.0.weight"].T + head["head.mlp.mlp.0.bias"]
    torch.testing.assert_close(model(golden["spectrogram"].transpose(1, 2))["logits"], expected, rtol=1e-4, atol=1e-3)
