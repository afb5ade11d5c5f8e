"""Every format that can be written here, and files as they are found: what is listed is what is decoded.

The inputs are made of one sound of several notes, which get louder.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch

from amae_plugin.data import audio
from amae_plugin.data.audio import AudioError, Crop, load_clip, read_header
from amae_plugin.data.manifest import Clip

SECONDS = 0.6


def sound(rate: int, seconds: float = SECONDS) -> np.ndarray:
    """Notes below 1 kHz, one after the other, so that no piece resembles another: (samples,) float32."""
    time = np.arange(round(seconds * rate)) / rate
    pitch = np.random.default_rng(0).uniform(200, 1000, 1 + int(seconds * 20))[(time * 20).astype(int)]
    return (0.5 * np.sin(2 * np.pi * np.cumsum(pitch) / rate) * (0.3 + 0.7 * time / seconds)).astype(np.float32)


def lag(decoded: np.ndarray, expected: np.ndarray) -> tuple[int, float]:
    """The samples by which *decoded* is later than *expected*, and their correlation there."""
    size = len(decoded) + len(expected)
    product = np.fft.irfft(np.fft.rfft(decoded, size) * np.fft.rfft(expected, size).conj(), size)
    best = int(product.argmax())
    norm = np.sqrt(np.square(decoded).sum() * np.square(expected).sum())
    return best - size * (best > size // 2), float(product[best] / norm)


def write_sound(path: Path, rate: int, seconds: float = SECONDS, **options: str) -> Path:
    samples = sound(rate, seconds)
    with soundfile.SoundFile(path, "w", rate, 1, **options) as file:
        for start in range(0, len(samples), 4096):  # libsndfile's Vorbis encoder overflows its stack otherwise
            file.write(samples[start : start + 4096])
    return path


def write_container(
    path: Path,
    codec: str,
    rate: int,
    seconds: float = SECONDS,
    file: object = None,
    kind: str | None = None,
    layout: str = "mono",
) -> Path:
    with av.open(str(path) if file is None else file, "w", format=kind) as container:
        layout = "stereo" if codec == "vorbis" else layout  # FFmpeg's encoder has no other
        stream = container.add_stream(codec, rate=rate, layout=layout, options={"strict": "experimental"})
        if codec == "wmav2":
            stream.bit_rate = 64_000  # which it has no default for
        frame = av.AudioFrame.from_ndarray(sound(rate, seconds)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        size = stream.codec_context.frame_size or 1024
        converter = av.AudioResampler(stream.codec_context.format, layout, rate, size)
        for piece in [*converter.resample(frame), *converter.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return path


def assert_crops_are_slices(path: Path, count: int = 100, tolerance: float = 1e-6) -> torch.Tensor:
    """The header states the length of the whole, and every crop and segment is a slice of it; returns the whole."""
    header = read_header(path)
    clip = Clip(str(path))
    whole = load_clip(clip, header.sample_rate)
    assert len(whole) == header.frames
    rng = np.random.default_rng(0)
    for index in range(count):
        length = int(rng.integers(1, header.frames))
        if index % 2:
            start = header.frames - length if index % 4 == 1 else int(rng.integers(header.frames - length))
            piece = load_clip(Clip(str(path), "segment", start, length), header.sample_rate)
        else:
            crop = Crop(length, rng.random())
            start = crop.start(header.frames, length)
            piece = load_clip(clip, header.sample_rate, crop)
        torch.testing.assert_close(piece, whole[start : start + length], rtol=0, atol=tolerance)
    with pytest.raises(AudioError, match=f"but the file has {header.frames} frames"):
        load_clip(Clip(str(path), "segment", header.frames - 1, 2))
    return whole


SOUNDFILE = [
    ("a.wav", "PCM_U8", 8_000),
    ("a.wav", "PCM_24", 16_000),
    ("a.wav", "FLOAT", 44_100),
    ("a.wav", "ALAW", 8_000),
    ("a.wav", "IMA_ADPCM", 16_000),
    ("a.wav", "MS_ADPCM", 16_000),
    ("a.wav", "GSM610", 8_000),
    ("a.wav", "G721_32", 8_000),
    ("a.wav", "NMS_ADPCM_24", 8_000),
    ("a.w64", "PCM_16", 16_000),
    ("a.rf64", "PCM_16", 16_000),
    ("a.aiff", "PCM_16", 16_000),
    ("a.au", "G723_24", 8_000),
    ("a.caf", "ALAC_16", 16_000),
    ("a.voc", "PCM_16", 16_000),
    ("a.flac", "PCM_16", 16_000),
    ("a.mp3", "MPEG_LAYER_III", 16_000),
    ("a.mp3", "MPEG_LAYER_III", 44_100),
    ("a.ogg", "VORBIS", 16_000),
    ("a.ogg", "OPUS", 48_000),
]
PYAV = [
    ("a.mkv", "vorbis", 16_000),
    ("a.mkv", "flac", 16_000),
    ("a.mkv", "libmp3lame", 44_100),
    ("a.webm", "libopus", 48_000),
    ("a.mp4", "aac", 16_000),
    ("a.mp4", "libopus", 48_000),
    ("a.m4a", "alac", 16_000),
    ("a.mov", "pcm_s16le", 16_000),
    ("a.3gp", "libopencore_amrnb", 8_000),
    ("a.opus", "libopus", 48_000),
    ("a.ogg", "vorbis", 16_000),
    ("a.ogg", "flac", 16_000),
    ("a.wma", "wmav2", 44_100),
    ("a.wav", "wmav2", 44_100),
    ("a.wav", "ac3", 48_000),
    ("a.wav", "mp2", 16_000),
    ("a.wav", "libmp3lame", 16_000),
    ("a.wav", "adpcm_ms", 16_000),
    ("a.wav", "adpcm_yamaha", 16_000),
    ("a.wav", "g726", 8_000),
    ("a.avi", "libmp3lame", 44_100),
    ("a.ts", "mp2", 48_000),
    ("a.aac", "aac", 16_000),
    ("a.ac3", "ac3", 48_000),
    ("a.mp3", "libmp3lame", 16_000),
    ("a.tta", "tta", 16_000),
    ("a.voc", "pcm_s16le", 16_000),  # in several segments
    ("a.wv", "wavpack", 16_000),
    ("a.amr", "libopencore_amrnb", 8_000),
]


@pytest.mark.parametrize(
    ("write", "name", "codec", "rate"),
    [(lambda path, codec, rate: write_sound(path, rate, subtype=codec), *row) for row in SOUNDFILE]
    + [(write_container, *row) for row in PYAV],
)
def test_every_crop_of_every_format_is_a_slice_of_the_whole(
    tmp_path: Path, write: Callable[[Path, str, int], Path], name: str, codec: str, rate: int
) -> None:
    path = write(tmp_path / name, codec, rate)
    assert (read_header(path).sample_rate, read_header(path).damage) == (rate, "")
    whole = assert_crops_are_slices(path)
    expected = sound(rate)
    delay, likeness = lag(whole.numpy(), expected)
    assert likeness > 0.7
    assert abs(delay) <= 0.1 * rate  # of a codec whose container does not tell of it
    assert -0.1 * rate <= len(whole) - len(expected) <= 0.3 * rate  # codecs fill their last packet


def no_length(folder: Path) -> Path:
    """As an encoder writes that writes to a pipe."""
    path = write_sound(folder / "a.flac", 16_000)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    return path


def double_length(folder: Path) -> Path:
    path = write_sound(folder / "a.flac", 16_000)
    content = bytearray(path.read_bytes())
    content[22:26] = (2 * int.from_bytes(content[22:26], "big")).to_bytes(4, "big")
    path.write_bytes(content)
    return path


def tagged(folder: Path) -> Path:
    path = write_sound(folder / "a.flac", 16_000)
    path.write_bytes(b"ID3\3\0\0\0\4\x22\x70" + bytes(70_000) + path.read_bytes())
    return path


def varied_mp3(folder: Path, loud_first: bool = False) -> Path:
    """An MP3 file of which a half is silent, so that its bit rate varies."""
    path = folder / "a.mp3"
    samples = np.random.default_rng(0).normal(0, 0.2, 64_000)
    samples[slice(32_000, None) if loud_first else slice(32_000)] = 0
    soundfile.write(path, samples, 16_000, compression_level=0.5, bitrate_mode="VARIABLE")
    return path


def no_xing(folder: Path, loud_first: bool) -> Path:
    path = varied_mp3(folder, loud_first)
    content = path.read_bytes()
    assert b"Xing" in content[:100]
    path.write_bytes(content[content.index(content[:2], content.index(b"Xing")) :])
    return path


def beginning_without_xing(folder: Path) -> Path:
    """Half a second whose length is estimated as 0.25 s, by a first frame that is larger than the others."""
    path = no_xing(folder, loud_first=True)
    path.write_bytes(path.read_bytes()[:2000])
    return path


def interrupted(folder: Path) -> Path:
    """As a recorder leaves it that is killed before it writes the size."""
    return without_size(write_sound(folder / "a.wav", 16_000))


def without_size(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[40:44] = bytes(4)
    path.write_bytes(content)
    return path


def lying_xing(folder: Path) -> Path:
    path = varied_mp3(folder)
    content = bytearray(path.read_bytes())
    frames = content.index(b"Xing") + 8
    content[frames : frames + 4] = (10 * int.from_bytes(content[frames : frames + 4], "big")).to_bytes(4, "big")
    path.write_bytes(content)
    return path


def half(path: Path) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def chained(folder: Path) -> Path:
    first, second = (write_sound(folder / name, 16_000, seconds) for name, seconds in (("1.ogg", 0.4), ("2.ogg", 0.2)))
    first.write_bytes(first.read_bytes() + second.read_bytes())
    return first


def chained_with_itself(folder: Path) -> Path:
    path = write_sound(folder / "a.ogg", 16_000, 0.3)
    path.write_bytes(path.read_bytes() * 2)
    return path


def recorded_by_a_browser(folder: Path) -> Path:
    """WebM without a duration, since the writer cannot return to the header."""
    stream = io.BytesIO()

    class Pipe:
        write = staticmethod(stream.write)

    write_container(folder / "a.webm", "libopus", 48_000, file=Pipe(), kind="webm")
    (folder / "a.webm").write_bytes(stream.getvalue())
    return folder / "a.webm"


@pytest.mark.parametrize(
    ("make", "seconds", "damage"),
    [
        (no_length, SECONDS, ""),
        (double_length, SECONDS, "its header states 19,200 samples, but only 9,600"),
        (tagged, SECONDS, ""),
        (lambda folder: no_xing(folder, loud_first=True), 4.0, ""),
        (lambda folder: no_xing(folder, loud_first=False), 4.0, ""),
        (beginning_without_xing, 0.54, ""),
        (interrupted, SECONDS, ""),
        (lambda folder: half(write_sound(folder / "a.sph", 16_000, format="NIST")), 0.27, "its header states 9,600 s"),
        (lying_xing, 4.0, "its header states 654,976 samples, but only 64,"),
        (lambda folder: half(varied_mp3(folder)), 3, "its header states 64,000 samples, but only"),
        (lambda folder: half(write_sound(folder / "a.wav", 16_000)), SECONDS / 2, "its header states 9,6"),
        (lambda folder: half(write_sound(folder / "a.aiff", 16_000)), SECONDS / 2, "its header states 9,5"),
        (lambda folder: half(write_sound(folder / "a.w64", 16_000)), SECONDS / 2, "its header states 9,5"),
        (lambda folder: half(write_sound(folder / "a.flac", 16_000)), SECONDS / 2, "packets that cannot be decoded"),
        (lambda folder: half(write_sound(folder / "a.ogg", 16_000, 8)), 3, "its last page is cut off"),
        (lambda folder: half(write_container(folder / "a.mkv", "flac", 16_000, 4)), 2, "its header states 64,"),
        (chained, SECONDS, ""),
        (chained_with_itself, SECONDS, ""),
        (recorded_by_a_browser, SECONDS, ""),
    ],
)
def test_files_whose_headers_do_not_tell_the_length(
    tmp_path: Path, make: Callable[[Path], Path], seconds: float, damage: str
) -> None:
    path = make(tmp_path)
    header = read_header(path)
    assert damage in header.damage if damage else not header.damage
    assert header.frames == pytest.approx(seconds * header.sample_rate, rel=0.25 if damage else 0.05)
    assert_crops_are_slices(path, 20)


def test_a_size_that_stands_for_any_is_no_damage(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", 16_000)
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff" * 4  # as FFmpeg writes to a pipe
    path.write_bytes(content)
    assert read_header(path) == (9_600, 16_000, 1, "")


@pytest.mark.parametrize(("name", "subtype"), [("a.ogg", "VORBIS"), ("a.ogg", "OPUS"), ("a.mp3", "MPEG_LAYER_III")])
def test_pieces_of_long_files_are_sought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, subtype: str
) -> None:
    path = tmp_path / name
    with soundfile.SoundFile(path, "w", 48_000, 1, subtype=subtype) as file:
        for seed in range(40):
            # Noise, since Opus does not settle within long tones.
            file.write(np.random.default_rng(seed).normal(0, 0.1, 48_000))
    monkeypatch.setattr(audio._Sound, "blocks", None)
    decoded: list[int] = []
    read = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile,
        "read",
        lambda self, frames, **kwargs: decoded.append(frames) or read(self, frames, **kwargs),
    )
    assert_crops_are_slices(path, 6, 1e-5)
    load_clip(Clip(str(path), "segment", 400_000, 1_000))
    assert decoded[-1] < 30_000


@pytest.mark.parametrize("codec", ["aac", "libmp3lame"])
def test_pieces_of_long_mp4_files_are_sought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    monkeypatch.setattr(audio, "_LONG", 2)
    path = write_container(tmp_path / "a.mp4", codec, 16_000, 12)
    monkeypatch.setattr(audio._Container, "blocks", None)
    assert_crops_are_slices(path, 30, 2e-3)  # AAC's noise is another after a seek


@pytest.mark.parametrize("channels", [7, 8, 9, 64])
def test_pyav_decodes_many_channels(tmp_path: Path, channels: int) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-1, 1, (9_600, channels)), 16_000)
    expected = load_clip(Clip(str(path)))
    assert read_header(without_size(path)) == (9_600, 16_000, channels, "")
    torch.testing.assert_close(load_clip(Clip(str(path))), expected, rtol=0, atol=0)


def test_more_channels_than_pyav_converts_are_an_error(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros((9_600, 65)), 16_000)
    with pytest.raises(AudioError, match=r"a\.wav: PyAV cannot convert its 65 channels \(Invalid argument\)$"):
        read_header(without_size(tmp_path / "a.wav"))


def test_a_film_in_surround_sound(tmp_path: Path) -> None:
    path = write_container(tmp_path / "a.mp4", "aac", 16_000, layout="7.1")
    assert read_header(path).channels == 8
    assert_crops_are_slices(path, 20)


def test_a_tag_that_is_not_utf_8_is_no_damage(tmp_path: Path) -> None:
    path = write_container(tmp_path / "a.mkv", "flac", 16_000)
    content = path.read_bytes()
    assert b"Lavf" in content
    path.write_bytes(content.replace(b"Lavf", b"\xe9\xff\xfe\xe9"))
    assert read_header(path) == (9_600, 16_000, 1, "")


def test_without_pyav_a_file_that_soundfile_gives_in_part_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = no_length(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    for read in (read_header, lambda path: load_clip(Clip(str(path)))):
        with pytest.raises(AudioError, match=r"does not tell where it ends; PyAV.*pip install av"):
            read(path)
