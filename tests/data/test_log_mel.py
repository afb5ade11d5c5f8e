import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchaudio

from amae_plugin.data.audio import resample
from amae_plugin.data.images import ImageInput
from amae_plugin.data.inversion import invert
from amae_plugin.data.log_mel import FRONT_ENDS, FrontEnd, LogMel, ModelInput, SlaneyLogMel, fit_length

MAE_AST = LogMel(window_type="povey")


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parents[1] / "golden" / "features.npz") as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive}


@pytest.fixture(scope="module")
def speech(golden):
    return golden["pcm16_16khz"].float() / 32768


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_equals_audio_mae_on_audioset(golden, speech):
    source = ModelInput().spectrogram(speech)
    assert source.shape == (1024, 128)
    assert_same(source[:260], golden["audio_mae_audioset_1024"])


def test_equals_audio_mae_on_speech_commands(golden, speech):
    speech_commands = ModelInput(target_length=128, mean=-6.845978, std=5.5654526)
    assert_same(speech_commands.spectrogram(speech[:16_000]), golden["audio_mae_speechcommands_128"])


def test_equals_mae_ast(golden, speech):
    assert_same(MAE_AST(speech), golden["mae_ast_fbank"])


def test_44khz_stereo_becomes_the_same_16khz_mono(golden):
    stereo = golden["pcm16_44khz_stereo"].float() / 32768
    assert_same(resample(stereo.mean(dim=1), 44_100, 16_000), golden["resampled_16khz_mono"])


@pytest.mark.parametrize("features", [LogMel(), MAE_AST, LogMel(sample_rate=22_050, num_mel_bins=64)])
@pytest.mark.parametrize("samples", [600, 8_001])
def test_is_kaldis_function(features, samples):
    waveform = torch.rand(samples, generator=torch.Generator().manual_seed(1)) - 0.3
    expected = torchaudio.compliance.kaldi.fbank(
        waveform[None],
        num_mel_bins=features.num_mel_bins,
        window_type=features.window_type,
        sample_frequency=features.sample_rate,
        htk_compat=True,
    )
    assert_same(features(waveform), expected)


def test_silence_is_the_floor_of_the_logarithm():
    log_mel = LogMel()(torch.zeros(16_000))
    assert log_mel.shape == (98, 128)
    assert_same(log_mel, torch.full_like(log_mel, np.log(np.finfo(np.float32).eps)))


@pytest.mark.parametrize("samples", [1, 399, 400])
def test_a_clip_shorter_than_a_window_gives_one_frame(samples):
    log_mel = LogMel()(torch.rand(samples))
    assert log_mel.shape == (1, 128)
    assert log_mel.isfinite().all()


def test_the_waveform_is_left_as_it_was():
    waveform = torch.rand(2_000)
    before = waveform.clone()
    LogMel()(waveform)
    MAE_AST(waveform)
    assert torch.equal(waveform, before)


def test_a_constant_in_the_waveform_changes_nothing(speech):
    log_mel = LogMel()(speech)
    for constant in (-0.2, 1.0):
        torch.testing.assert_close(LogMel()(speech + constant), log_mel, rtol=0, atol=1e-2)


@pytest.mark.parametrize("frames", [1, 2, 1024])
def test_samples_for_is_the_shortest_waveform_with_that_many_frames(frames):
    features = LogMel()
    samples = features.samples_for(frames)
    assert len(features(torch.zeros(samples))) == frames
    assert frames == 1 or len(features(torch.zeros(samples - 1))) == frames - 1
    assert features.frames_in(samples + np.array([0, 159, 160])).tolist() == [frames, frames, frames + 1]


@pytest.mark.parametrize("features", [LogMel(), LogMel(sample_rate=44_100), SlaneyLogMel()])
def test_frames_in_a_waveform_are_those_that_it_gives(features):
    lengths = np.array([1, features.window_samples - 1, features.window_samples, 5_000, 30_001])
    frames = [len(features(torch.zeros(length))) for length in lengths]
    assert features.frames_in(lengths).tolist() == frames
    assert [features.frames_in(length) for length in lengths] == frames


def test_a_centred_front_end_counts_frames_by_their_centres():
    features = SlaneyLogMel()
    samples = features.samples_for(608)
    assert len(features(torch.zeros(samples))) == 608 and len(features(torch.zeros(samples - 1))) == 607
    assert features.frames_in(samples + np.array([0, 159, 160])).tolist() == [608, 608, 609]


def test_a_front_end_has_its_own_windows():
    with pytest.raises(ValueError, match="'hanning', must be one of hann"):
        SlaneyLogMel(window_type="hanning")


@pytest.mark.parametrize("features", [LogMel(), SlaneyLogMel()])
def test_a_tone_is_loudest_in_the_band_between_whose_edges_it_lies(features):
    for hz in (700.0, 1900.0, 5000.0):
        tone = torch.sin(2 * torch.pi * hz * torch.arange(16_000) / 16_000)
        band = int(features(tone)[50].argmax())
        assert features.band_edges[band] - 30 < hz < features.band_edges[band + 1] + 30
    assert len(features.band_edges) == features.num_mel_bins + 1


@pytest.mark.parametrize("features", [LogMel(), SlaneyLogMel()])
def test_a_long_waveform_is_computed_in_pieces_with_the_same_result(features, speech, monkeypatch):
    expected = features(speech)
    monkeypatch.setattr("amae_plugin.data.log_mel._PIECE_FRAMES", 7)
    assert_same(features(speech), expected)


def test_fit_length_crops_at_the_position_and_pads_with_zeros_behind():
    features = torch.arange(10.0)[:, None].expand(10, 4)
    assert fit_length(features, 4, 0.0)[:, 0].tolist() == [0, 1, 2, 3]
    assert fit_length(features, 4, 0.5)[:, 0].tolist() == [3, 4, 5, 6]
    assert fit_length(features, 4, 1.0)[:, 0].tolist() == [6, 7, 8, 9]
    assert fit_length(features, 10).equal(features)
    assert fit_length(features, 12)[:, 0].tolist() == [*range(10), 0, 0]


def test_an_unknown_window_is_refused():
    with pytest.raises(ValueError, match="hanning, povey"):
        LogMel(window_type="hann")


TASK = {"num_mel_bins": 64, "target_length": 100, "mean": -6.0, "std": 3.0}
"""A task section as old checkpoints have it; the settings that it lacks are the system's."""
SYSTEM = ModelInput(MAE_AST, target_length=7, mean=1.0)


def test_settings_that_are_null_or_missing_are_the_systems():
    front_end = LogMel(num_mel_bins=64, window_type="povey")
    assert ModelInput.from_settings(TASK, SYSTEM) == ModelInput(front_end, 100, -6.0, 3.0)
    left_open = {"window_type": None, "normalization": None, "front_end": None, "remove_mean": False}
    assert ModelInput.from_settings({**TASK, **left_open}, SYSTEM) == ModelInput(front_end, 100, -6.0, 3.0)
    of_slaney = ModelInput.from_settings({**TASK, "num_mel_bins": None, "front_end": "slaney"}, SYSTEM)
    assert of_slaney.front_end == SlaneyLogMel(num_mel_bins=128)  # the model's bands
    chosen = {"window_type": "hanning", "normalization": "one_std", "front_end": "kaldi"}
    expected = ModelInput(LogMel(num_mel_bins=64), 100, -6.0, 3.0, "one_std")
    assert ModelInput.from_settings({**TASK, **chosen}, SYSTEM) == expected


def test_settings_describe_the_input_as_plain_values():
    model_input = ModelInput(LogMel(num_mel_bins=64, window_type="povey"), 100, -6.0, 3.0, "one_std")
    settings = model_input.settings()
    assert json.loads(json.dumps(settings)) == settings
    assert ModelInput.from_settings(settings, ModelInput()) == model_input


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ImageInput(size=32)),
        ({"modalities": None}, ImageInput(size=32)),
        ({"modalities": ["audio"]}, None),
        ({"modalities": ["image"], "image_size": None}, ImageInput(size=32)),
        (
            {"image_size": 64, "image_crop": "random", "image_flip": True},
            ImageInput(64, training_crop="random", training_flip=True),
        ),
        ({"modalities": ["audio", "image"], "image_frames": 1}, ImageInput(size=32, training_frames=1)),
    ],
)
def test_the_image_is_the_systems_unless_the_task_says_otherwise(settings, expected):
    system = replace(SYSTEM, image=ImageInput(size=32))
    found = ModelInput.from_settings({**TASK, **settings}, system)
    assert found.image == expected
    assert ModelInput.from_settings({**TASK, **settings, **found.settings()}, system) == found
    of_sound = ModelInput.from_settings({**TASK, **settings}, SYSTEM).image
    assert of_sound == (None if "image" not in (settings.get("modalities") or ()) else replace(expected, size=224))


@pytest.mark.parametrize("key", ["target_length", "mean", "std"])
def test_missing_settings_are_named(key):
    with pytest.raises(ValueError, match=rf"lack task\.{key}$"):
        ModelInput.from_settings({**TASK, key: None}, SYSTEM)


def test_a_model_that_normalises_its_input_itself_needs_no_statistics():
    own = ModelInput(normalization="model")
    model_input = ModelInput.from_settings({"num_mel_bins": 64, "target_length": 100}, own)
    log_mel = torch.randn(5, 64)
    assert torch.equal(model_input.normalize(log_mel), log_mel)
    assert torch.equal(model_input.denormalize(log_mel), log_mel)
    assert model_input.silence == 0


@pytest.mark.parametrize(("normalization", "deviations"), [("two_std", 2), ("one_std", 1)])
def test_normalisation_and_its_inverse(normalization, deviations):
    model_input = ModelInput(mean=-5.0, std=4.0, normalization=normalization)
    log_mel = torch.randn(50, 64)
    normalized = model_input.normalize(log_mel)
    torch.testing.assert_close(normalized, (log_mel + 5) / (4 * deviations))
    torch.testing.assert_close(model_input.denormalize(normalized), log_mel)
    assert model_input.silence == 5 / (4 * deviations)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"normalization": "three_std"}, "normalization is 'three_std', must be one of two_std, one_std, model"),
        ({"front_end": "mfcc"}, "front_end is 'mfcc', must be one of kaldi"),
        ({"mean": float("nan")}, "mean is nan, must be a finite number"),
        ({"std": 0.0}, "std is 0.0, must be above 0 and finite"),
        ({"std": -1.0}, "std is -1.0, must be above 0 and finite"),
        ({"std": float("inf")}, "std is inf, must be above 0 and finite"),
        ({"window_type": "hamming"}, "window_type is 'hamming', must be one of hanning, povey"),
    ],
)
def test_settings_that_do_not_exist_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ModelInput.from_settings({**TASK, **settings}, SYSTEM)


class Doubling(FrontEnd):
    """A front end of another kind: frames of two samples, twice as loud."""

    name = "doubling"

    def __call__(self, waveform):
        return 2 * waveform.unfold(0, 2, 2)


def test_a_front_end_is_a_class_and_an_entry(monkeypatch):
    monkeypatch.setitem(FRONT_ENDS, "doubling", Doubling)
    model_input = ModelInput.from_settings({**TASK, "front_end": "doubling"}, SYSTEM)
    assert model_input.front_end == Doubling(num_mel_bins=64)
    spectrogram = model_input.spectrogram(torch.ones(8))
    assert spectrogram[:, 0].tolist() == pytest.approx([(2 + 6) / 6] * 4 + [1] * 96)
    assert ModelInput.from_settings(model_input.settings(), SYSTEM) == model_input
    with pytest.raises(ValueError, match="'doubling' has no inverse"):
        invert(spectrogram, model_input.front_end, 8)


@pytest.mark.parametrize(
    "features", [LogMel(), MAE_AST, SlaneyLogMel(), Doubling()], ids=["kaldi", "povey", "slaney", "of its own"]
)
def test_clips_of_a_padded_batch_have_the_frames_that_they_have_alone(features):
    lengths = [8001, 2, 399, 400, 3210]
    waveforms = torch.rand(5, 8001, generator=torch.Generator().manual_seed(1)) - 0.3
    batch = features.batch(waveforms, torch.tensor(lengths))
    for waveform, length, spectrogram in zip(waveforms, lengths, batch):
        alone = features(waveform[:length])
        assert_same(spectrogram[: len(alone)], alone)
        if not isinstance(features, Doubling):
            assert len(alone) == features.frames_in(np.array(length))
