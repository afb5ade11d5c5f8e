import builtins
import os
import pickle
import re
import socket
import tarfile
import zipfile

import av
import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from amae_plugin.data.audio import AudioError, AudioHeader, Crop, load_clip, read_header, resample, to_mono
from amae_plugin.data.manifest import Clip

FORMATS = {
    "a.wav": {},
    "a.flac": {},
    "a.ogg": {},
    "a.mp3": {},
    "float.wav": {"subtype": "FLOAT"},
    "opus.ogg": {"subtype": "OPUS"},
}


def tone(seconds, rate, channels=1, pitch=440.0):
    """A tone that gets louder, (frames, channels); each channel has its own level."""
    time = np.arange(int(seconds * rate)) / rate
    signal = 0.4 * np.sin(2 * np.pi * pitch * time) * (0.2 + 0.8 * time / seconds)
    return (signal[:, None] * np.linspace(1, 0.5, channels)).astype(np.float32)


def encode_container(path, samples, rate, codec):
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[samples.shape[1]]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), format="fltp", layout=layout)
        frame.sample_rate = rate
        frame.pts = 0
        converter = av.AudioResampler(
            stream.codec_context.format, layout, rate, stream.codec_context.frame_size or 1024
        )
        for piece in [*converter.resample(frame), *converter.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (48_000, 2)])
def test_formats_of_soundfile(tmp_path, name, rate, channels):
    samples = tone(1.0, rate, channels)
    path = tmp_path / name
    soundfile.write(path, samples, rate, **FORMATS[name])
    waveform = load_clip(Clip(str(path)))
    assert waveform.dtype == torch.float32
    assert waveform.ndim == 1
    assert abs(len(waveform) - 16_000) <= 1
    expected = torch.from_numpy(tone(1.0, 16_000, channels).mean(axis=1))
    inner = slice(1_000, 15_000)
    assert (waveform[inner] - expected[inner]).abs().max() < 0.03
    assert read_header(path) == AudioHeader(len(samples), rate, channels)


@pytest.mark.parametrize("rate", [5_000, 8_000, 11_025, 11_127, 22_050, 22_051, 32_000, 44_100, 48_000, 128_000])
@pytest.mark.parametrize("channels", [1, 6])
def test_any_rate_and_channel_count(tmp_path, rate, channels):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(0.5, rate, channels), rate, subtype="FLOAT")
    waveform = load_clip(Clip(str(path)))
    assert abs(len(waveform) - 8_000) <= 2
    expected = torch.from_numpy(tone(0.5, 16_000, channels).mean(axis=1))
    inner = slice(200, 7_800)
    assert (waveform[inner] - expected[inner]).abs().max() < 0.005


def test_other_sample_rates_come_out_too(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(0.5, 16_000), 16_000)
    assert len(load_clip(Clip(str(path)), 32_000)) == 16_000
    waveform = torch.rand(100)
    assert resample(waveform, 8_000, 8_000) is waveform


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mkv", "flac"), ("a.mp4", "aac"), ("a.webm", "libopus"), ("a.m4a", "aac")]
)
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_containers(tmp_path, name, codec, channels):
    path = tmp_path / name
    samples = tone(1.0, 48_000, channels)
    encode_container(path, samples, 48_000, codec)
    waveform = load_clip(Clip(str(path)))
    expected = torch.from_numpy(tone(1.0, 16_000, channels).mean(axis=1))
    assert abs(len(waveform) - 16_000) < 800  # codecs fill their last packet
    # Delay of the codec, if its container does not tell of it, is not what is looked at here.
    spectrum = torch.fft.rfft(waveform[2_000:14_000] * torch.hann_window(12_000)).abs()
    assert abs(int(spectrum.argmax()) * 16_000 / 12_000 - 440) < 2
    assert 0.8 < waveform[2_000:14_000].std() / expected[2_000:14_000].std() < 1.2
    header = read_header(path)
    assert (header.sample_rate, header.channels) == (48_000, channels)
    assert abs(header.frames - 48_000) < 2_400


@pytest.mark.parametrize("name", FORMATS)
def test_a_segment_equals_the_slice_of_the_whole(tmp_path, name):
    path = tmp_path / name
    soundfile.write(path, tone(4.0, 16_000, 2), 16_000, **FORMATS[name])
    whole = load_clip(Clip(str(path)))
    for start, frames in [(0, 5_000), (12_345, 20_001), (60_000, 4_000)]:
        segment = load_clip(Clip(str(path), "segment", start, frames))
        torch.testing.assert_close(segment, whole[start : start + frames], rtol=0, atol=2e-3)


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "flac"), ("a.mp4", "aac"), ("a.webm", "libopus")])
def test_a_segment_of_a_container_equals_the_slice_of_the_whole(tmp_path, name, codec):
    path = tmp_path / name
    encode_container(path, tone(6.0, 48_000, 2), 48_000, codec)
    whole = load_clip(Clip(str(path)), 48_000)
    for start, frames in [(100, 5_000), (123_456, 40_001)]:
        segment = load_clip(Clip(str(path), "segment", start, frames), 48_000)
        assert len(segment) == frames
        # Matroska's time stamps are whole milliseconds, so 48 frames.
        shifts = [
            (segment[50:-50] - whole[start + 50 + k : start + frames - 50 + k]).abs().max() for k in range(-48, 49)
        ]
        assert min(shifts) < 2e-3


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", ["a.flac", "a.ogg", "a.wav", "a.mp3"])
def test_members_of_archives_are_read_where_they_lie(tmp_path, name, kind):
    path = Clip(str(tmp_path / name))
    soundfile.write(path.path, tone(1.0, 22_050, 2), 22_050)
    (tmp_path / "b.wav").write_bytes((tmp_path / name).read_bytes())  # what follows is audio, too
    content = (tmp_path / name).read_bytes()
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("first.txt", "x" * 1000)
            archive.write(tmp_path / name, name)
            archive.write(tmp_path / "b.wav", "b.wav")
    else:
        with tarfile.open(tmp_path / "all.tar", "w") as archive:
            archive.add(tmp_path / name, name)
            archive.add(tmp_path / "b.wav", "b.wav")
    whole = (tmp_path / f"all.{kind}").read_bytes()
    offset = whole.index(content)
    clip = Clip(str(tmp_path / f"all.{kind}"), kind, offset, len(content))
    assert torch.equal(load_clip(clip), load_clip(path))
    assert torch.equal(load_clip(clip, crop=Crop(3_000, 0.7)), load_clip(path, crop=Crop(3_000, 0.7)))
    assert read_header(clip) == read_header(path.path)
    with pytest.raises(AudioError, match="ends 1 bytes before"):
        load_clip(Clip(clip.path, kind, offset, len(whole) - offset + 1))
    with pytest.raises(AudioError, match="the archive ends"):  # and no room was made for the bytes
        load_clip(Clip(clip.path, kind, 10**30, 10**15))


def test_of_a_long_member_only_the_wanted_piece_is_read(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", tone(60.0, 16_000), 16_000)
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(tmp_path / "a.wav", "a.wav")
    offset = (tmp_path / "all.tar").read_bytes().index(b"RIFF")
    read, preadv = [], os.preadv
    monkeypatch.setattr(os, "preadv", lambda *arguments: read.append(preadv(*arguments)) or read[-1])
    clip = Clip(str(tmp_path / "all.tar"), "tar", offset, (tmp_path / "a.wav").stat().st_size)
    crop = Crop(16_000, 0.9)
    assert torch.equal(load_clip(clip, crop=crop), load_clip(Clip(str(tmp_path / "a.wav")), crop=crop))
    assert 32_000 <= sum(read) < 64_000


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_samples_are_those_that_libsndfile_gives(tmp_path, subtype):
    samples = np.concatenate([[-1.0, 1 - 2**-15, 0.0, 2**-15, -(2**-15)], tone(0.1, 16_000)[:, 0]])
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype)
    expected, _ = soundfile.read(tmp_path / "a.wav", dtype="float32")
    assert np.array_equal(load_clip(Clip(str(tmp_path / "a.wav"))).numpy(), expected)


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
def test_channels_are_averaged(channels):
    samples = np.random.default_rng(0).normal(size=(1_000, channels)).astype(np.float32)
    assert np.array_equal(to_mono(samples, "a.wav").numpy(), samples.mean(axis=1))


@pytest.mark.parametrize("rate", [8_000, 12_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000])
def test_resampling_is_torchaudios(rate):
    assert torch.equal(resample(torch.ones(9), 16_001, 16_000), torch.ones(9))  # as near to 1:1 as makes no difference
    for samples in (1, 2, 47, 48, 49, rate // 10 + 1):
        waveform = torch.randn(samples, generator=torch.Generator().manual_seed(samples))
        expected = torchaudio.transforms.Resample(rate, 16_000)(waveform)
        torch.testing.assert_close(resample(waveform, rate, 16_000), expected, rtol=0, atol=2e-6)


def test_a_container_in_a_zip(tmp_path):
    encode_container(tmp_path / "a.m4a", tone(1.0, 48_000), 48_000, "aac")
    content = (tmp_path / "a.m4a").read_bytes()
    (tmp_path / "all.zip").write_bytes(b"head" + content)
    clip = Clip(str(tmp_path / "all.zip"), "zip", 4, len(content))
    assert torch.equal(load_clip(clip), load_clip(Clip(str(tmp_path / "a.m4a"))))


@pytest.mark.parametrize("position", [0.0, 0.3, 0.5, 1.0])
def test_a_crop_is_the_piece_of_the_whole(tmp_path, position):
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(3.0, 16_000), 16_000)
    whole = load_clip(Clip(str(path)))
    crop = Crop(10_000, position)
    start = crop.start(48_000, 10_000)
    assert torch.equal(load_clip(Clip(str(path)), crop=crop), whole[start : start + 10_000])
    segment = load_clip(Clip(str(path), "segment", 5_000, 30_000), crop=crop)
    start = 5_000 + crop.start(30_000, 10_000)
    assert torch.equal(segment, whole[start : start + 10_000])


def test_a_crop_covers_the_clip_from_its_first_to_its_last_frame():
    starts = [Crop(4, position).start(10, 4) for position in np.linspace(0, 1, 701)]
    assert sorted(set(starts)) == list(range(7))
    assert np.ptp(np.bincount(starts)) <= 2


@pytest.mark.parametrize("rate", [8_000, 44_100, 128_000])
def test_a_crop_has_the_length_asked_for_at_any_rate(tmp_path, rate):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(2.0, rate), rate)
    assert len(load_clip(Clip(str(path)), crop=Crop(10_001, 0.7))) == 10_001
    assert len(load_clip(Clip(str(path)), crop=Crop(99_999, 0.7))) == 32_000


def test_a_crop_of_a_long_file_decodes_only_its_piece(tmp_path, monkeypatch):
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(60.0, 16_000), 16_000)
    decoded = []
    read = soundfile.SoundFile.read

    def counting_read(self, *args, **kwargs):
        samples = read(self, *args, **kwargs)
        decoded.append(len(samples))
        return samples

    monkeypatch.setattr(soundfile.SoundFile, "read", counting_read)
    load_clip(Clip(str(path)), crop=Crop(16_000, 0.9))
    load_clip(Clip(str(path), "segment", 700_000, 100))
    assert decoded == [16_000, 100]


def test_a_crop_of_a_container(tmp_path):
    path = tmp_path / "a.mp4"
    encode_container(path, tone(6.0, 16_000), 16_000, "aac")
    for position in (0.0, 0.5, 1.0):
        assert len(load_clip(Clip(str(path)), crop=Crop(20_000, position))) == 20_000


def test_silence_is_legal(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(1_000), 16_000)
    assert torch.equal(load_clip(Clip(str(path))), torch.zeros(1_000))


def _write(path, content):
    path.write_bytes(content)
    return Clip(str(path))


def _write_sound(path, samples, **options):
    soundfile.write(path, samples, 16_000, **options)
    return Clip(str(path))


def _write_rate(path, rate):
    _write_sound(path, np.zeros(1_000))
    content = bytearray(path.read_bytes())
    content[24:28] = rate.to_bytes(4, "little")
    return _write(path, content)


def _write_unknown_codec(path):
    _write_sound(path, np.zeros(1_000))
    content = bytearray(path.read_bytes())
    content[20:22] = b"\x77\x77"
    return _write(path, content)


def _fifo(path):
    os.mkfifo(path)
    return Clip(str(path))


def _socket(path):
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(path))
    return Clip(str(path))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda folder: Clip(str(folder / "none.wav")), "No such file"),
        (lambda folder: Clip(str(folder)), "directory"),
        (lambda folder: _write(folder / "a.wav", b""), "is empty"),
        (lambda folder: _write(folder / "a.mp3", b""), "is empty"),
        (lambda folder: _write(folder / "a.flac", b""), "is empty"),
        (lambda folder: Clip(_write(folder / "a.zip", b"x").path, "zip", 0, 0), "is empty"),
        (lambda folder: _write_sound(folder / "a.flac", np.zeros(0)), "is empty"),
        (lambda folder: _write_unknown_codec(folder / "a.wav"), "in a codec that PyAV does not know"),
        (lambda folder: _fifo(folder / "a.wav"), "not a regular file"),
        (lambda folder: Clip(_fifo(folder / "a.zip").path, "zip", 0, 10), "not a regular file"),
        (lambda folder: _socket(folder / "a.wav"), "not a regular file"),
        (lambda folder: Clip("/dev/zero"), "not a regular file"),
        (lambda folder: _write_rate(folder / "a.wav", 0), "a sample rate of 0"),
        (lambda folder: _write_rate(folder / "a.wav", 1), "a sample rate of 1 Hz"),
        (lambda folder: _write_rate(folder / "a.wav", 99), "a sample rate of 99 Hz"),
        (lambda folder: _write_rate(folder / "a.wav", 1_000_001), "a sample rate of 1,000,001 Hz"),
        (lambda folder: _write_rate(folder / "a.wav", 2**31 - 1), "a sample rate of 2,147,483,647 Hz"),
        (lambda folder: _write(folder / "a.mp3", b"#EXTM3U\n#EXTINF:1,\nfile:///dev/zero\n"), "not a format"),
        (lambda folder: _write(folder / "a.wav", b"not audio at all" * 100), "not a format"),
        (lambda folder: _write(folder / "a.flac", b"not audio at all" * 100), "without a sample rate"),
        (lambda folder: _write(folder / "a.wav", b"RIFF\x00\x00\x00\x00WAVEfmt "), ""),
        (lambda folder: _write_sound(folder / "a.wav", np.zeros(0)), "no samples"),
        (lambda folder: _write_sound(folder / "a.wav", np.array([0, np.nan]), subtype="FLOAT"), "not finite"),
        (lambda folder: _write_sound(folder / "a.wav", np.array([0, np.inf]), subtype="FLOAT"), "not finite"),
        (lambda folder: _write_sound(folder / "a.wav", np.array([0, 1e30]), subtype="DOUBLE"), "not finite"),
        (lambda folder: Clip(str(folder / "none.zip"), "zip", 0, 10), "No such file"),
    ],
)
def test_bad_audio_names_path_and_reason(tmp_path, make, reason, capfd):
    clip = make(tmp_path)
    if clip.kind == "file" and reason != "no samples" and "not finite" not in reason:
        with pytest.raises(AudioError, match=reason):
            read_header(clip.path)
    with pytest.raises(AudioError) as error:
        load_clip(clip)
    assert "Traceback" not in capfd.readouterr().err
    assert str(clip) in str(error.value)
    assert re.search(reason, error.value.reason)
    assert error.value.reason in str(error.value)
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


def test_a_segment_beyond_the_end(tmp_path):
    _write_sound(tmp_path / "a.wav", np.zeros(1_000))
    with pytest.raises(AudioError, match="ends at frame 1001 but the file has 1000"):
        load_clip(Clip(str(tmp_path / "a.wav"), "segment", 900, 101))


def test_a_video_without_sound(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(stream.encode(None))
    with pytest.raises(AudioError, match="no audio stream"):
        load_clip(Clip(str(path)))
    with pytest.raises(AudioError, match="no audio stream"):
        read_header(path)


def test_without_pyav_the_extra_is_named(tmp_path, monkeypatch):
    encode_container(tmp_path / "a.mp4", tone(0.5, 16_000), 16_000, "aac")
    original = builtins.__import__

    def without_av(name, *args, **kwargs):
        if name == "av":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_av)
    with pytest.raises(AudioError, match=r"pip install av"):
        load_clip(Clip(str(tmp_path / "a.mp4")))


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
@pytest.mark.parametrize("order", ["C", "F"])
def test_channels_are_averaged_to_the_last_bit(channels, order):
    samples = np.array(np.random.default_rng(0).normal(0, 0.3, (999, channels)), np.float32, order=order)
    assert np.array_equal(to_mono(samples, "clip").numpy(), samples.mean(axis=1))
