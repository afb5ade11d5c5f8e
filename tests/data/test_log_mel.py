from pathlib import Path

import numpy as np
import pytest
import torch
import torchaudio

from amae_plugin.data.audio import resample
from amae_plugin.data.log_mel import LogMel, fit_length, normalize

MAE_AST = LogMel(window_type="povey", remove_mean=False)


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
    source = normalize(fit_length(LogMel()(speech), 1024), -4.2677393, 4.5689974)
    assert source.shape == (1024, 128)
    assert_same(source[:260], golden["audio_mae_audioset_1024"])


def test_equals_audio_mae_on_speech_commands(golden, speech):
    source = normalize(fit_length(LogMel()(speech[:16_000]), 128), -6.845978, 5.5654526)
    assert_same(source, golden["audio_mae_speechcommands_128"])


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
        (waveform - waveform.mean() if features.remove_mean else waveform)[None],
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


@pytest.mark.parametrize("frames", [1, 2, 1024])
def test_samples_for_is_the_shortest_waveform_with_that_many_frames(frames):
    features = LogMel()
    samples = features.samples_for(frames)
    assert len(features(torch.zeros(samples))) == frames
    assert frames == 1 or len(features(torch.zeros(samples - 1))) == frames - 1


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


def test_the_front_end_of_settings():
    settings = {"num_mel_bins": 64, "window_type": "povey", "remove_mean": False, "target_length": 100}
    assert LogMel.from_settings(settings) == LogMel(num_mel_bins=64, window_type="povey", remove_mean=False)
    assert LogMel.from_settings({"num_mel_bins": 64}) == LogMel(num_mel_bins=64)
