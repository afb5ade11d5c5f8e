"""Decode a clip: from a file, a stored zip member or a segment of a long file to a mono waveform at one sample rate.

soundfile decodes wav, flac, ogg, mp3 and the other formats of libsndfile. PyAV, which the extra ``amae-plugin[video]``
installs, decodes the formats that libsndfile does not recognise (mkv, mp4, webm, m4a...).
"""

from __future__ import annotations

import functools
import io
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
import soundfile
import torch
from torch import Tensor

from amae_plugin.data._torchaudio import torchaudio
from amae_plugin.data.manifest import Clip
from amae_plugin.errors import UserError

if TYPE_CHECKING:
    import av

# Lossy codecs need the samples before a seek point to settle.
_PREROLL_SECONDS = 0.2
_MP3_PREROLL_FRAMES = 10 * 1152  # libsndfile leaves this to its caller, for this format only
_LOUDEST = 1e10  # full scale is 1; beyond this the power spectrum would overflow float32
_UNRECOGNISED = 1  # libsndfile's error code for a file whose format it does not know
_REASONS = {24: "its header states a sample rate of 0"}  # of libsndfile's errors that its own message does not explain


class AudioError(UserError):
    """Error of a clip that cannot be decoded, with its path and the reason."""

    def __init__(self, path: str, reason: str | None = None):
        # A DataLoader raises a worker's exception again with the whole text as its only argument.
        super().__init__(path if reason is None else f"cannot use {path}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[object, tuple[str, str | None]]:
        return AudioError, (self.path, self.reason)


class Crop(NamedTuple):
    """Piece of a longer clip.

    Attributes:
        samples: length at the output sample rate.
        position: place in the clip, in [0, 1]: 0 is the clip's beginning, 0.5 its centre, 1 its end.
    """

    samples: int
    position: float

    def start(self, available: int, wanted: int) -> int:
        """Return the first of *wanted* frames out of *available*; a uniform position gives a uniform start."""
        spare = available - wanted
        return min(int(self.position * (spare + 1)), spare)


class AudioHeader(NamedTuple):
    """Header of a file: frames (samples per channel), sample rate in Hz, channels."""

    frames: int
    sample_rate: int
    channels: int


def load_clip(clip: Clip, sample_rate: int = 16_000, crop: Crop | None = None) -> Tensor:
    """Decode a clip to mono.

    Only the frames of a segment are decoded, and with *crop* only that piece of the clip. Channels are averaged, then
    torchaudio's windowed-sinc resampler converts the rate. A crop is cut before the conversion, so its first and last
    dozen samples see silence where the whole clip would have neighbours.

    Args:
        clip: place of the clip.
        sample_rate: sample rate of the result, in Hz.
        crop: piece of a longer clip; shorter clips come whole.

    Returns:
        (samples,) float32, full scale is [-1, 1].

    Raises:
        AudioError: the file is missing, damaged or empty, the segment is not inside it, or samples are not finite.
    """
    name = str(clip)
    try:
        with _member(clip) if clip.kind == "zip" else _raw(clip.path) as file:
            samples, rate = _decode(file, clip, sample_rate, crop)
    except OSError as error:
        raise AudioError(name, error.strerror or str(error)) from None
    except MemoryError:
        raise AudioError(name, "its header promises more samples than memory can hold") from None
    waveform = resample(to_mono(samples, name), rate, sample_rate)
    return waveform if crop is None else waveform[: crop.samples]


def to_mono(samples: np.ndarray, name: str) -> Tensor:
    """Average the channels: (frames, channels) float32 to (frames,).

    Args:
        samples: (frames, channels) float32.
        name: name of the clip, for errors.

    Raises:
        AudioError: there are no samples, or some are not finite.
    """
    if not len(samples):
        raise AudioError(name, "holds no samples")
    waveform = torch.from_numpy(samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0])
    if not float(waveform.abs().max()) < _LOUDEST:  # also false for NaN
        raise AudioError(name, "holds samples that are not finite, or beyond any meaningful loudness")
    return waveform


def read_header(path: str | os.PathLike[str]) -> AudioHeader:
    """Read a file's length, rate and channels without decoding it; a container's length is the one it declares.

    Raises:
        AudioError: the file is missing or is not audio.
    """
    name = os.fspath(path)
    try:
        with _raw(path) as file:
            if (sound := _open_sound(file, name)) is not None:
                with sound:
                    return AudioHeader(sound.frames, sound.samplerate, sound.channels)
            with _open_container(file, name) as stream:
                return AudioHeader(_declared_frames(stream) or 0, stream.rate, stream.channels)
    except OSError as error:
        raise AudioError(name, error.strerror or str(error)) from None


def resample(waveform: Tensor, source_rate: int, target_rate: int) -> Tensor:
    """Convert (samples,) at *source_rate* Hz to (ceil(samples x target / source),) at *target_rate* Hz.

    torchaudio's kernel table grows with the two rates after their common factors are removed, to gigabytes for a rate
    such as 22,051 Hz. Such a ratio is replaced by the nearest one with a denominator of at most 1000, which is off by
    less than one in a million; the usual rates are exact. The tables are cached.
    """
    if source_rate == target_rate:
        return waveform
    ratio = Fraction(source_rate, target_rate).limit_denominator(1000)
    return _resampler(ratio.numerator, ratio.denominator)(waveform)


@functools.lru_cache(maxsize=32)
def _resampler(source_rate: int, target_rate: int) -> torchaudio.transforms.Resample:
    return torchaudio.transforms.Resample(source_rate, target_rate)


def _raw(path: str | os.PathLike[str]) -> BinaryIO:
    return Path(path).open("rb", buffering=0)


def _member(clip: Clip) -> BinaryIO:
    with _raw(clip.path) as archive:
        # Checked first, since read() makes room for as many bytes as it is asked for.
        beyond = clip.start + clip.length - os.fstat(archive.fileno()).st_size
        if beyond > 0:
            raise AudioError(str(clip), f"the archive ends {beyond} bytes before the entry does")
        archive.seek(clip.start)
        return io.BytesIO(archive.read(clip.length))


_Choose = Callable[[int, int], "tuple[int, int]"]
"""Function from the frames of a file and their rate to the first frame wanted and the number of frames wanted."""


def _decode(file: BinaryIO, clip: Clip, sample_rate: int, crop: Crop | None) -> tuple[np.ndarray, int]:
    """Decode the wanted piece: samples (frames, channels) float32 at the file's own rate, and that rate."""
    name = str(clip)

    def choose(total: int, rate: int) -> tuple[int, int]:
        start, frames = (clip.start, clip.length) if clip.kind == "segment" else (0, total)
        if start + frames > total:
            raise AudioError(name, f"the segment ends at frame {start + frames} but the file has {total} frames")
        if crop is None or (wanted := math.ceil(crop.samples * rate / sample_rate)) >= frames:
            return start, frames
        return start + crop.start(frames, wanted), wanted

    if (sound := _open_sound(file, name)) is None:
        return _decode_container(file, name, choose)
    with sound:
        start, frames = choose(sound.frames, sound.samplerate)
        try:
            preroll = min(start, _MP3_PREROLL_FRAMES) if sound.format == "MP3" else 0
            if start:
                sound.seek(start - preroll)
            samples = sound.read(preroll + frames, dtype="float32", always_2d=True)
            return samples[preroll:], sound.samplerate
        except soundfile.LibsndfileError as error:
            raise AudioError(name, error.error_string) from None


def _open_sound(file: BinaryIO, name: str) -> soundfile.SoundFile | None:
    """Open a file in soundfile; None if libsndfile does not know the format."""
    try:
        if isinstance(file, io.BytesIO):
            return soundfile.SoundFile(file)
        return soundfile.SoundFile(file.fileno(), closefd=False)  # faster than through Python's read()
    except soundfile.LibsndfileError as error:
        if error.code != _UNRECOGNISED:
            raise AudioError(name, _REASONS.get(error.code, error.error_string)) from None
    file.seek(0)
    return None


@contextmanager
def _open_container(file: BinaryIO, name: str) -> Iterator[av.AudioStream]:
    """Open a file in PyAV, as its first audio stream; the block's errors name the clip."""
    try:
        import av
    except ImportError:
        remedy = "if it is a video or a container such as mp4, mkv or m4a: pip install 'amae-plugin[video]'"
        raise AudioError(name, f"not a format that soundfile knows; {remedy}") from None
    try:
        container = av.open(file)
    except av.FFmpegError as error:
        raise AudioError(name, f"not a format that soundfile or PyAV know ({error.strerror})") from None
    with container:
        if not container.streams.audio:
            raise AudioError(name, "has no audio stream")
        stream = container.streams.audio[0]
        if not stream.rate:  # of a file that FFmpeg takes for audio by its name or its first bytes only
            raise AudioError(name, "has an audio stream without a sample rate, so it is damaged or not audio")
        try:
            yield stream
        except av.FFmpegError as error:
            raise AudioError(name, error.strerror) from None


def _declared_frames(stream: av.AudioStream) -> int | None:
    """Return the length in frames that the stream, or else the container, declares; None if neither does."""
    if stream.duration is not None:
        return round(stream.duration * stream.time_base * stream.rate)
    duration = stream.container.duration
    return None if duration is None else round(Fraction(duration, 1_000_000) * stream.rate)


def _decode_container(file: BinaryIO, name: str, choose: _Choose) -> tuple[np.ndarray, int]:
    with _open_container(file, name) as stream:
        rate, total = stream.rate, _declared_frames(stream)
        if total is not None:
            start, frames = choose(total, rate)
            if start or frames < total:
                samples = _frames_from(stream, start, frames)
                if len(samples) == frames:
                    return samples, rate
                stream.container.seek(0)
        # The whole clip is wanted, or the declared length is not that of the audio.
        samples = _frames_from(stream, 0, None)
        start, frames = choose(len(samples), rate)
        return samples[start : start + frames], rate


def _frames_from(stream: av.AudioStream, start: int, frames: int | None) -> np.ndarray:
    """Decode (frames, channels) float32 from frame *start* on, placed by the container's time stamps.

    Matroska's time stamps are whole milliseconds, so a piece of such a file is placed to a millisecond.
    """
    import av

    # No seek to the beginning: a decoder that sought there would lack the packet before its first.
    seconds = start / stream.rate - _PREROLL_SECONDS
    if seconds > 0:
        stream.container.seek(int(seconds / stream.time_base) + (stream.start_time or 0), stream=stream)
    as_planar_float = av.AudioResampler(format="fltp")
    pieces: list[np.ndarray] = []
    position: int | None = None  # frame number of the next decoded sample
    for packet_frame in stream.container.decode(stream):
        if position is None:
            elapsed = (packet_frame.pts or 0) - (stream.start_time or 0)
            position = round(elapsed * stream.time_base * stream.rate) if seconds > 0 else 0
        for frame in as_planar_float.resample(packet_frame):
            samples = frame.to_ndarray().T
            pieces.append(samples[max(0, start - position) :])
            position += len(samples)
        if frames is not None and position >= start + frames:
            break
    return np.concatenate(pieces or [np.zeros((0, 1), np.float32)])[:frames]
