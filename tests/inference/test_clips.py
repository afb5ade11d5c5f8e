"""What can be shown to a model, and what is refused in one sentence."""

from __future__ import annotations

import os

import numpy as np
import pytest
import soundfile
import torch

from amae_plugin.cli.clips import conclude
from amae_plugin.data.audio import AudioError, load_clip
from amae_plugin.data.log_mel import LogMel
from amae_plugin.data.manifest import Clip
from amae_plugin.errors import UserError
from amae_plugin.inference.clips import ClipFiles, LongClip, load_waveform, open_waveform

NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, 8000).astype(np.float32)


@pytest.fixture
def wav(tmp_path):
    def write(samples, rate=16_000, name="a.wav", **kwargs):
        soundfile.write(tmp_path / name, samples, rate, **kwargs)
        return tmp_path / name

    return write


def test_a_file_comes_as_the_training_decodes_it(wav):
    path = wav(np.stack([NOISE, NOISE[::-1]], 1), 22_050)
    expected = load_clip(Clip(str(path)))
    assert torch.equal(load_waveform(path), expected)
    assert torch.equal(load_waveform(str(path)), expected)


@pytest.mark.parametrize("rate", [16_000, 8_000, 44_100.0])
def test_samples_come_as_the_same_samples_in_a_file(wav, rate):
    stereo = np.stack([NOISE, NOISE[::-1]])
    expected = load_waveform(wav(stereo.T, int(rate), subtype="FLOAT"))
    for samples in (stereo, stereo.astype(np.float64), torch.from_numpy(stereo)):
        assert torch.equal(load_waveform(samples, rate), expected)
    mono = load_waveform(wav(NOISE, int(rate), subtype="FLOAT"))
    assert torch.equal(load_waveform(NOISE, rate), mono)
    assert torch.equal(load_waveform(NOISE[None], rate), mono)


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_integers_are_divided_by_their_full_scale(wav, dtype):
    samples = (NOISE * np.iinfo(dtype).max).astype(dtype)
    path = wav(samples, subtype={np.int16: "PCM_16", np.int32: "PCM_32"}[dtype])
    assert torch.equal(load_waveform(samples, 16_000), load_waveform(path))
    assert load_waveform(samples, 16_000).abs().max() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("samples", "rate", "reason"),
    [
        (NOISE[:0], 16_000, "holds no samples"),
        (np.zeros(16_000), 16_000, "is silent: all its samples are equal"),
        (np.full(16_000, 0.25), 16_000, "is silent"),
        (np.stack([NOISE, -NOISE]), 16_000, "is silent"),  # one channel takes the other away
        (np.zeros(44_100), 44_100, "is silent"),
        (np.where(np.arange(8000) == 77, np.nan, NOISE), 16_000, "holds samples that are not finite"),
        (np.where(np.arange(8000) == 77, np.inf, NOISE), 16_000, "holds samples that are not finite"),
        (NOISE[:399], 16_000, "lasts 24.9 ms, which is less than one analysis window, 25 ms"),
        (NOISE[:199], 8_000, "lasts 24.9 ms"),
        (NOISE, 0, "its sample rate is given as 0 Hz"),
        (NOISE, -8000, "its sample rate is given as -8000 Hz"),
        (NOISE, float("nan"), "its sample rate is given as nan Hz"),
        (NOISE, torch.tensor(0), "its sample rate is given as 0 Hz"),
    ],
)
def test_samples_that_cannot_be_used(samples, rate, reason):
    with pytest.raises(AudioError, match=f"^cannot use the third: {reason}"):
        load_waveform(samples, rate, name="the third")


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (
            (NOISE * 32767).astype(np.int64),
            "its samples are int64, whose full scale no audio has; divide them",
        ),
        (torch.from_numpy(NOISE * 32767).long(), "its samples are int64, whose full scale no audio has"),
        (
            NOISE * 32768,
            r"its samples reach 163\d\d.\d, but their full scale must be 1; divide them",
        ),
        (NOISE.astype(np.float64) * 2**31, r"its samples reach 1.07\d+e\+09, but their full scale must be 1"),
        (torch.from_numpy(NOISE * 127).to(torch.bfloat16), "its samples reach 63.5, but their full scale must be 1"),
        (np.rint(NOISE * 20), "its samples reach 10, but their full scale must be 1"),  # no fractions
        ((NOISE * 32767).astype(np.int32), r"its samples are int32 but reach only 16,\d\d\d, as those of 16 bits do"),
        ([0.1, [0.2]], "no array of samples"),
        (NOISE.astype(complex), "its samples are complex128, must be floating-point numbers or signed integers"),
        ((NOISE * 255).astype(np.uint8), "its samples are uint8, must be"),
    ],
)
def test_samples_of_another_scale_are_refused(samples, message):
    with pytest.raises(UserError, match=f"^the third: {message}"):
        load_waveform(samples, 16_000, name="the third")


@pytest.mark.parametrize("seconds", [600, 0])
def test_files_of_another_scale_are_refused(monkeypatch, tmp_path, seconds):
    monkeypatch.setattr("amae_plugin.inference.clips._LONG_SECONDS", seconds)
    soundfile.write(tmp_path / "a.wav", NOISE * 32768, 16_000, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"a\.wav: its samples reach 163\d\d.*, but their full scale must be 1"):
        open_waveform(tmp_path / "a.wav")


def test_samples_of_24_bits_in_32_are_pointed_out():
    with pytest.warns(
        UserWarning, match=r"the array: its samples are int32 but reach only 4,\d.* if they have 24 bits"
    ):
        load_waveform((NOISE * 2**23).astype(np.int32), 16_000)


@pytest.mark.parametrize("samples", [NOISE * 4, NOISE.astype(np.float16), torch.from_numpy(NOISE).to(torch.bfloat16)])
def test_samples_beyond_full_scale_and_of_other_precisions_are_taken(samples):
    factor = float(np.abs(np.asarray(torch.as_tensor(samples).float())).max()) / np.abs(NOISE).max()
    expected = torch.from_numpy(NOISE) * round(factor)
    torch.testing.assert_close(load_waveform(samples, 16_000), expected, rtol=1e-2, atol=1e-3)


def test_the_shortest_clip_gives_one_frame():
    assert len(LogMel()(load_waveform(NOISE[:400], 16_000))) == 1


@pytest.mark.parametrize(
    ("audio", "rate", "message"),
    [
        (NOISE, None, r"the array: samples need their sample rate, such as sample_rate=16000"),
        ("a.wav", 16_000, r"a.wav: sample_rate=16000 is for arrays"),
        (
            NOISE.reshape(2, 2, -1),
            16_000,
            r"its shape is \(2, 2, 2000\), must be \(samples,\) or \(channels, samples\)",
        ),
        (NOISE.reshape(-1, 2), 16_000, r"its shape is \(4000, 2\)"),
        (NOISE > 0, 16_000, r"its samples are bool, must be"),
        ([["x"]], 16_000, r"its samples are <U1, must be"),
        (np.zeros((0, 16_000)), 16_000, r"its shape is \(0, 16000\)"),
        (NOISE, [16_000], r"its sample rate is given as \[16000\], must be a number in Hz"),
    ],
)
def test_samples_that_are_not_understood(audio, rate, message):
    with pytest.raises(UserError, match=message):
        load_waveform(audio, rate)


def write_bad_files(folder, wav):
    """One file of each kind that cannot be used, and what is said of it."""
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("hello\n" * 100)
    wav(NOISE[:0], name="nothing.wav")
    wav(np.zeros(16_000), name="silent.wav")
    wav(NOISE[:300], name="short.flac")
    wav(np.full(16_000, np.nan), name="nan.wav", subtype="FLOAT")
    content = bytearray(wav(NOISE, name="rate.wav").read_bytes())
    content[24:28] = bytes(4)
    (folder / "rate.wav").write_bytes(content)
    return {
        "empty.wav": "not a format",
        "text.wav": "not a format",
        "nothing.wav": "holds no samples",
        "silent.wav": "is silent",
        "short.flac": "less than one analysis window",
        "nan.wav": "not finite",
        "rate.wav": "its header states a sample rate of 0",
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_of_a_folder_are_left_out_and_listed(tmp_path, wav, capsys, workers):
    reasons = write_bad_files(tmp_path, wav)
    good = [wav(NOISE, name="z.wav"), wav(NOISE, 8_000, name="b.ogg")]
    clips = ClipFiles([tmp_path, good[0], tmp_path / "missing.wav"], workers=workers, progress="reading")
    assert len(clips) == len(reasons) + 3
    found = list(clips)
    assert [path for path, _ in found] == sorted(good)
    assert torch.equal(found[1][1], load_waveform(good[0]))
    assert conclude(clips) == 1
    error = capsys.readouterr().err
    lines = error.splitlines()
    listed = lines[lines.index("left out, as they cannot be used: 8") + 1 :]
    assert listed[-1] == f"  {tmp_path / 'missing.wav'}: No such file or directory"
    assert len(listed) == 8
    for name, reason in reasons.items():
        assert any(line.startswith(f"  {tmp_path / name}: ") and reason in line for line in listed)


def test_links_to_files_of_a_folder_are_files_too(tmp_path, wav):
    os.link(wav(NOISE), tmp_path / "b.wav")
    (tmp_path / "c.wav").symlink_to("a.wav")
    assert [path.name for path, _ in ClipFiles([tmp_path])] == ["a.wav", "b.wav", "c.wav"]


def test_nothing_to_list(wav, capsys):
    clips = ClipFiles([wav(NOISE)])
    assert len(list(clips)) == 1
    assert conclude(clips) == 0
    assert capsys.readouterr() == ("", "")


def test_files_none_of_which_can_be_used(tmp_path, wav):
    clips = ClipFiles([wav(np.zeros(9000))])
    assert list(clips) == []
    with pytest.raises(UserError, match=r"^cannot use .*a\.wav: is silent: all its samples are equal$"):
        conclude(clips)
    clips = ClipFiles([tmp_path / "a.wav", tmp_path / "b.wav"])
    assert list(clips) == []
    with pytest.raises(UserError, match=r"(?s)^cannot use any of\n  .*a\.wav: is silent.*\n  .*b\.wav: No such file"):
        conclude(clips)


def test_a_folder_without_audio(tmp_path):
    with pytest.raises(UserError, match="no audio; looked for the extensions wav flac"):
        ClipFiles([tmp_path])


@pytest.mark.parametrize(
    ("name", "rate", "pieces"),
    [("a.wav", 16_000, 4), ("a.wav", 44_100, 4), ("a.flac", 48_000, 4), ("a.wav", 8_000, 4), ("a.ogg", 22_050, 4)],
)
def test_a_long_file_comes_in_pieces_that_are_those_of_the_whole(monkeypatch, wav, name, rate, pieces):
    samples = np.random.default_rng(1).uniform(-0.5, 0.5, (int(7.3 * rate), 2))
    whole = load_waveform(wav(samples, rate, name=name))
    monkeypatch.setattr("amae_plugin.inference.clips._LONG_SECONDS", 7)
    monkeypatch.setattr("amae_plugin.inference.clips._PIECE_SECONDS", 2)
    clip = open_waveform(wav(samples, rate, name=name))
    assert isinstance(clip, LongClip) and len(clip) == len(whole)
    assert len(list(clip)) == pieces
    torch.testing.assert_close(torch.cat(list(clip)), whole, rtol=0, atol=2e-6)


def test_long_files_are_checked_and_others_come_whole(monkeypatch, wav):
    monkeypatch.setattr("amae_plugin.inference.clips._LONG_SECONDS", 0.4)
    monkeypatch.setattr("amae_plugin.inference.clips._PIECE_SECONDS", 0.2)
    damaged = np.where(np.arange(8000) == 7000, np.nan, NOISE)
    for samples, reason in ((np.zeros(16_000), "is silent: all its samples"), (damaged, "samples that are not finite")):
        with pytest.raises(AudioError, match=reason):
            open_waveform(wav(samples, subtype="FLOAT"))
    assert isinstance(open_waveform(wav(NOISE)), LongClip)
    assert isinstance(open_waveform(wav(NOISE[:6000])), torch.Tensor)  # short
    assert isinstance(open_waveform(wav(NOISE, subtype="IMA_ADPCM")), torch.Tensor)  # cannot be sought
    assert isinstance(open_waveform(wav(NOISE, 16_001)), torch.Tensor)  # has no period
    assert isinstance(open_waveform(NOISE, 16_000), torch.Tensor)
