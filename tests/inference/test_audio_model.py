"""What a model gives for audio of any length is what its network gives for the windows of it."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from small_systems import ENCODERS, INPUT_SAMPLES

from amae_plugin import load_model
from amae_plugin.checkpoints import Checkpoint
from amae_plugin.data.log_mel import LogMel, ModelInput, fit_length
from amae_plugin.errors import UserError
from amae_plugin.inference.clips import open_waveform

HANNING = LogMel(num_mel_bins=64)
POVEY = LogMel(num_mel_bins=64, window_type="povey")
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(params=ENCODERS)
def system(request):
    return request.param


def source_of(samples, name):
    """The first window of a clip as a system's network takes it (1, 64, 64), and the mask of its padding."""
    if name.startswith("mae_ast"):  # which has a front end of its own and normalises its input itself
        log_mel = POVEY(torch.from_numpy(samples))
        source = fit_length(log_mel, 64, position=0.0)
    else:
        log_mel = HANNING(torch.from_numpy(samples))
        source = ModelInput(mean=-6.0, std=4.0).normalize(fit_length(log_mel, 64, position=0.0))
    return source[None], (torch.arange(64) >= len(log_mel))[None]


def by_step(name, tokens):
    """Patch tokens (1, L, D) as means over frequency (steps, D)."""
    if name.endswith("frames"):
        return tokens[0]
    return tokens[0].unflatten(0, (4, 4)).mean(1)


@torch.no_grad()
def directly(path, name, samples):
    """Time steps of one window by the system's own ``extract_features``."""
    network = Checkpoint.read(path).model()
    source, padding = source_of(samples, name)
    tokens, _ = network.extract_features(source, padding if padding.any() else None)
    return by_step(name, tokens[:, network.encoder.num_prefix_tokens :])


def test_a_clip_that_fills_the_input(system, pretrained, sound):
    samples = sound(INPUT_SAMPLES)
    model = load_model(pretrained[system], device="cpu")
    expected = directly(pretrained[system], system, samples)
    steps, timestamps = model.embed_timestamps(samples, 16_000)
    torch.testing.assert_close(steps, expected, **TOLERANCE)
    torch.testing.assert_close(model.embed(samples, 16_000), expected.mean(0), **TOLERANCE)
    assert len(expected) == (32 if system.endswith("frames") else 4)
    assert expected.std(0).min() > 1e-3  # the steps are not alike
    # The first step begins with the clip and ends with its last analysis window.
    frames = 64 // len(expected)
    hop = frames * 0.01
    middle = ((frames - 1) * 0.01 + 0.025) / 2
    np.testing.assert_allclose(timestamps, middle + hop * np.arange(len(expected)))
    assert model.step_samples == hop * 16_000


@pytest.mark.parametrize("samples", [400, 5000, INPUT_SAMPLES - 1])
def test_a_shorter_clip_is_embedded_without_the_padding(system, pretrained, sound, samples):
    clip = sound(samples)
    model = load_model(pretrained[system], device="cpu", batch_size=3)
    frames = 1 + (samples - 400) // 160
    steps = -(-frames // (2 if system.endswith("frames") else 16))
    expected = directly(pretrained[system], system, clip)[:steps]
    alone = model.embed_timestamps(clip, 16_000)[0]
    torch.testing.assert_close(alone, expected, **TOLERANCE)
    # Nor does it depend on clips of other lengths in the batch.
    batch = [sound(INPUT_SAMPLES, 1), clip, sound(2000, 2), sound(30_000, 3)]
    together = model.embed_timestamps(batch, 16_000)
    torch.testing.assert_close(together[1][0], expected, **TOLERANCE)
    torch.testing.assert_close(model.embed(batch, 16_000)[1], expected.mean(0), **TOLERANCE)


def test_a_longer_clip_is_heard_in_overlapping_windows(system, pretrained, sound):
    """100 frames: 7 columns of patches or 50 of frames, in windows that begin at 0, 32 and with the last 64 frames."""
    samples = sound(400 + 99 * 160)
    width, hop, steps = (32, 2, 50) if system.endswith("frames") else (4, 16, 7)
    starts = [0, width // 2, steps - width]
    sums, counts = torch.zeros(steps, 32), torch.zeros(steps, 1)
    for start in starts:
        window = directly(pretrained[system], system, samples[start * hop * 160 :][:INPUT_SAMPLES])
        sums[start : start + width] += window
        counts[start : start + width] += 1
    model = load_model(pretrained[system], device="cpu", batch_size=2)
    found, timestamps = model.embed_timestamps(samples, 16_000)
    torch.testing.assert_close(found, sums / counts, **TOLERANCE)
    torch.testing.assert_close(model.embed(samples, 16_000), (sums / counts).mean(0), **TOLERANCE)
    assert len(timestamps) == steps
    assert np.ptp(np.diff(timestamps)) < 1e-9


def test_the_class_token_describes_a_clip_if_asked(pretrained, sound):
    samples = sound(400 + 95 * 160)  # two windows, which overlap by half and so count alike
    model, usual = (load_model(pretrained["eat"], device="cpu", **kind) for kind in ({"pooling": "cls"}, {}))
    windows = torch.from_numpy(np.stack([samples[:INPUT_SAMPLES], samples[32 * 160 :]]))
    source = torch.stack([model.input.spectrogram(window) for window in windows])
    expected = model.model.extract_features(source)[0][:, 0].mean(dim=0)
    torch.testing.assert_close(model.embed(samples, 16_000), expected.detach(), **TOLERANCE)
    assert torch.equal(model.embed_timestamps(samples, 16_000)[0], usual.embed_timestamps(samples, 16_000)[0])
    assert not torch.allclose(usual.embed(samples, 16_000), expected, atol=0.01)


def test_bands_side_by_side_or_averaged(system, pretrained, sound):
    samples = sound(INPUT_SAMPLES + 5000)
    joined, mean = (load_model(pretrained[system], device="cpu", pooling=p) for p in ("time_concat", "token_mean"))
    bands = joined.encoder.num_bands
    assert joined.embed_dim == joined.clip_dim == bands * mean.embed_dim
    for layers in (joined.embed(samples, 16_000), joined.extract_features(samples, 16_000)):
        expected = (mean.embed if layers.ndim == 1 else mean.extract_features)(samples, 16_000)
        torch.testing.assert_close(layers.unflatten(-1, (bands, -1)).mean(-2), expected, **TOLERANCE)


def test_hidden_states(system, pretrained, sound):
    samples = sound(INPUT_SAMPLES + 5000)
    model = load_model(pretrained[system], device="cpu")
    states = model.extract_features(samples, 16_000)
    steps = model.embed_timestamps(samples, 16_000)[0]
    assert states.shape == (4, *steps.shape) == (model.num_layers, *steps.shape)
    torch.testing.assert_close(states[-1], steps)
    for layer in (0, 2, -1):
        assert torch.equal(model.extract_features(samples, 16_000, layer=layer), states[layer])
    assert all(not torch.allclose(one, other, atol=1e-2) for one, other in itertools.pairwise(states))
    with pytest.raises(UserError, match="layer 4: this encoder has the layers 0 to 3"):
        model.extract_features(samples, 16_000, layer=4)


def test_a_hidden_state_is_the_block_of_the_one_before(pretrained, sound):
    """Where a step is one token and there are no others, the blocks can be applied to the states themselves."""
    model = load_model(pretrained["mae_ast_frames"], device="cpu")
    for samples in (INPUT_SAMPLES, 4000):
        states = model.extract_features(sound(samples), 16_000)
        for block, before, after in zip(model.encoder.blocks, states, states[1:]):
            with torch.no_grad():
                torch.testing.assert_close(block(before[None])[0], after, **TOLERANCE)


def test_files_arrays_and_batches(pretrained, sound, tmp_path):
    samples = [sound(length, seed) for seed, length in enumerate((9000, 40_000, 12_000))]
    paths = [tmp_path / f"{index}.wav" for index in range(3)]
    for path, clip in zip(paths, samples):
        soundfile.write(path, clip, 16_000, subtype="FLOAT")
    model = load_model(pretrained["audio_mae"], device="cpu")
    each = torch.stack([model.embed(clip, 16_000) for clip in samples])
    assert each.shape == (3, 32)
    assert each.dtype == torch.float32
    for found in (model.embed(samples, 16_000), model.embed(paths), model.embed(tuple(map(str, paths)))):
        torch.testing.assert_close(found, each, **TOLERANCE)
    torch.testing.assert_close(model.embed(str(paths[1])), each[1])
    stereo = torch.from_numpy(np.stack([samples[0], samples[0]]))
    torch.testing.assert_close(model.embed(stereo, 16_000), each[0], **TOLERANCE)
    torch.testing.assert_close(model.embed(stereo[None].expand(2, -1, -1), 16_000), each[[0, 0]], **TOLERANCE)
    assert model.embed([]).shape == (0, 32)
    assert model.embed_timestamps([]) == model.extract_features([]) == []


@pytest.mark.parametrize("kind", ["pretrained", "classifiers"])
def test_the_size_of_batches_makes_no_difference(request, system, sound, kind):
    path = request.getfixturevalue(kind)[system]
    clips = [sound(length, seed) for seed, length in enumerate((9000, 60_000, 400, 25_000))]
    expected = load_model(path, device="cpu", batch_size=1).embed(clips, 16_000)
    for batch_size in (2, 5, 100):
        model = load_model(path, device="cpu", batch_size=batch_size)
        torch.testing.assert_close(model.embed(clips, 16_000), expected, **TOLERANCE)


def test_nothing_is_random(pretrained, sound):
    model = load_model(pretrained["mae_ast"], device="cpu")  # which has dropout and LayerDrop
    samples = sound(30_000)
    expected = model.embed(samples, 16_000)
    model.train()
    assert not any(module.training for module in model.modules())
    assert torch.equal(model.embed(samples, 16_000), expected)
    assert not expected.requires_grad


def test_long_audio_needs_no_more_memory_at_a_time_and_gives_the_same(pretrained, sound, monkeypatch):
    samples = np.tile(sound(100_000), 3)
    model = load_model(pretrained["ssast"], device="cpu")
    expected = model.embed(samples, 16_000)
    monkeypatch.setattr("amae_plugin.data.log_mel._PIECE_FRAMES", 100)
    torch.testing.assert_close(model.embed(samples, 16_000), expected, **TOLERANCE)


# Classifiers


@pytest.mark.parametrize("name", [*ENCODERS, "ast", "audio_mae_cls"])
@pytest.mark.parametrize("samples", [4000, INPUT_SAMPLES])
def test_predictions_are_those_of_validation(classifiers, sound, name, samples):
    clip = sound(samples)
    network = Checkpoint.read(classifiers[name]).model()
    source, padding = source_of(clip, name)
    with torch.no_grad():
        output = network(source, padding_mask=padding)
    expected = output["logits"].double().softmax(1)[0]
    model = load_model(classifiers[name], device="cpu")
    predictions = model.predict(clip, 16_000)
    assert [p.label for p in predictions] == [["bark", "meow", "moo"][i] for i in expected.argsort(descending=True)]
    np.testing.assert_allclose([p.probability for p in predictions], expected.sort(descending=True).values, rtol=1e-5)
    assert model.predict(clip, 16_000, top_k=2) == predictions[:2]
    batch = model.predict([clip, sound(30_000)], 16_000, top_k=1)
    assert [len(found) for found in batch] == [1, 1]
    assert batch[0][0].label == predictions[0].label
    torch.testing.assert_close(model.embed(clip, 16_000), output["features"][0], **TOLERANCE)


def test_predictions_of_a_longer_clip_are_averaged(classifiers, sound):
    samples = sound(400 + 99 * 160)
    network = Checkpoint.read(classifiers["audio_mae"]).model()
    sources = torch.cat([source_of(samples[step * 16 * 160 :][:INPUT_SAMPLES], "audio_mae")[0] for step in (0, 2, 3)])
    with torch.no_grad():
        output = network(sources)
    # Of the 7 steps, windows hear 0-3, 2-5 and 3-6: steps 0 and 1 have one window, 2, 4 and 5 two, 3 three, 6 one.
    weights = torch.tensor([1 + 1 + 1 / 2 + 1 / 3, 1 / 2 + 1 / 3 + 1 / 2 + 1 / 2, 1 / 3 + 1 / 2 + 1 / 2 + 1]) / 7
    model = load_model(classifiers["audio_mae"], device="cpu", batch_size=2)
    found = {p.label: p.probability for p in model.predict(samples, 16_000, top_k=None)}
    expected = (weights[:, None] * output["logits"].softmax(1)).sum(0)
    np.testing.assert_allclose([found[name] for name in ("bark", "meow", "moo")], expected, rtol=1e-4)
    features = (weights[:, None] * output["features"]).sum(0)
    torch.testing.assert_close(model.embed(samples, 16_000), features, **TOLERANCE)


@pytest.mark.parametrize("name", [*ENCODERS, "ast", "audio_mae_cls"])
def test_time_steps_of_a_classifier(classifiers, sound, name):
    model = load_model(classifiers[name], device="cpu")
    samples = sound(INPUT_SAMPLES)
    network = Checkpoint.read(classifiers[name]).model()
    with torch.no_grad():
        tokens = network.encoder(*network.encoder.patches(source_of(samples, name)[0]))
        patches = tokens[:, network.encoder.num_prefix_tokens :]
        if name == "ast":
            expected = patches[0].unflatten(0, (5, 5)).mean(1)
        else:
            expected = by_step(name.removesuffix("_cls"), patches)
        if network.config.pooling == "mean":
            expected = network.fc_norm(expected)
    steps, timestamps = model.embed_timestamps(samples, 16_000)
    torch.testing.assert_close(steps, expected, **TOLERANCE)
    torch.testing.assert_close(model.extract_features(samples, 16_000, layer=-1), expected, **TOLERANCE)
    if name == "ast":
        np.testing.assert_allclose(np.diff(timestamps), 0.1)
        long = sound(400 + 64 * 160)  # one frame more than the input: the last patch begins at frame 50 now
        assert len(model.embed_timestamps(long, 16_000)[0]) == 6


def test_probabilities_of_several_labels_do_not_exclude_each_other(tmp_path, write_checkpoint, sound):
    path = write_checkpoint(tmp_path / "x.pt", ["a", "b"], loss="bce", multi_label=True)
    network = Checkpoint.read(path).model()
    clip = sound(INPUT_SAMPLES)
    with torch.no_grad():
        expected = network(source_of(clip, "audio_mae")[0])["logits"].sigmoid()[0]
    found = dict(load_model(path, device="cpu").predict(clip, 16_000))
    assert [found["a"], found["b"]] == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.parametrize("name", ["audio_mae", "mae_ast_frames", "ast"])
def test_a_file_in_pieces_gives_what_the_whole_file_gives(name, pretrained, classifiers, sound, tmp_path, monkeypatch):
    model = load_model({**pretrained, "ast": classifiers["ast"]}[name], device="cpu", batch_size=3)
    soundfile.write(tmp_path / "a.wav", sound(50_000), 16_000, subtype="FLOAT")
    whole = model.embed_timestamps(tmp_path / "a.wav")
    expected = model.embed(tmp_path / "a.wav"), *whole, model.extract_features(tmp_path / "a.wav")
    monkeypatch.setattr("amae_plugin.inference.clips._LONG_SECONDS", 3)
    monkeypatch.setattr("amae_plugin.inference.clips._PIECE_SECONDS", 0.7)
    monkeypatch.setattr("amae_plugin.inference.clips.load_waveform", None)
    found = model.embed(tmp_path / "a.wav"), *model.embed_timestamps(tmp_path / "a.wav")
    for one, other in zip((*found, model.extract_features(tmp_path / "a.wav")), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert next(model.embeddings([open_waveform(tmp_path / "a.wav")], timestamps=False)).steps.shape == (0, 32)


# What cannot be done


def test_a_pretraining_model_knows_no_classes(pretrained, sound):
    with pytest.raises(UserError, match=r"audio_mae\.pt: a pretraining checkpoint, which knows no classes; fine-tune"):
        load_model(pretrained["audio_mae"], device="cpu").predict(sound(9000), 16_000)


def test_a_classifier_without_names_still_embeds(tmp_path, write_checkpoint, sound):
    path = write_checkpoint(tmp_path / "x.pt", ["a", "b"])
    content = torch.load(path)
    torch.save({**content, "task_state": {}}, path)
    model = load_model(path, device="cpu")
    assert model.embed(sound(9000), 16_000).shape == (32,)
    with pytest.raises(UserError, match=r"x\.pt: does not hold the names of its classes"):
        model.predict(sound(9000), 16_000)


def test_clips_that_cannot_be_used_are_named(pretrained, sound, tmp_path):
    model = load_model(pretrained["audio_mae"], device="cpu")
    with pytest.raises(UserError, match=r"cannot use .*none\.wav: No such file"):
        model.embed(tmp_path / "none.wav")
    with pytest.raises(UserError, match=r"cannot use audio\[1\]: is silent"):
        model.embed([sound(9000), np.zeros(9000)], 16_000)
    with pytest.raises(UserError, match="samples need their sample rate"):
        model.embed(sound(9000))


def test_values_that_are_not_finite_are_refused(tmp_path, write_checkpoint, sound):
    path = write_checkpoint(tmp_path / "x.pt", None)
    content = torch.load(path)
    content["model"]["encoder.cls_token"][0, 0, 0] = float("nan")
    torch.save(content, path)
    with pytest.raises(UserError, match=r"x\.pt: the model gives values that are not finite numbers.*; its training"):
        load_model(path, device="cpu").embed(sound(9000), 16_000)


def test_settings_and_devices_that_make_no_sense(pretrained, classifiers, tmp_path):
    content = torch.load(pretrained["audio_mae"])
    del content["cfg"]["task"]["std"]
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt: its settings lack task\.std"):
        load_model(tmp_path / "x.pt")
    content = torch.load(pretrained["mae_ast"])
    del content["cfg"]["task"]["std"]
    torch.save(content, tmp_path / "y.pt")
    assert load_model(tmp_path / "y.pt").input.normalization == "model"
    with pytest.raises(UserError, match="device gpu: must be auto, cpu, cuda or cuda:N"):
        load_model(pretrained["audio_mae"], device="gpu")
    with pytest.raises(UserError, match="device cuda:99: PyTorch finds no such GPU"):
        load_model(pretrained["audio_mae"], device="cuda:99")
    for path in (pretrained["mae_ast"], classifiers["eat"]):
        with pytest.raises(UserError, match=r"\.pt: no pooling cls; there is mean"):
            load_model(path, device="cpu", pooling="cls")
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        load_model(pretrained["audio_mae"], batch_size=0)


def test_three_lines_import_neither_fairseq_nor_hydra_and_the_package_alone_not_even_torch(pretrained, sound, tmp_path):
    soundfile.write(tmp_path / "a.wav", sound(20_000), 16_000)
    script = f"""
import sys
import amae_plugin
print(sorted({{"torch", "numpy", "fairseq", "hydra"}} & set(sys.modules)))
from amae_plugin import load_model
model = load_model({str(pretrained["audio_mae"])!r})
print(tuple(model.embed({str(tmp_path / "a.wav")!r}).shape))
print(sorted({{"fairseq", "hydra", "omegaconf", "sklearn", "matplotlib", "torch._dynamo"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["[]", "(32,)", "[]"], done.stderr
