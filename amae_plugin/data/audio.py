"""Decode a clip: from a file, a member of an archive or a segment of a long file to a mono waveform at one sample rate.

soundfile decodes wav, flac, ogg, mp3 and the other formats of libsndfile. PyAV, if it is installed, decodes what
libsndfile does not (mkv, mp4, webm, m4a...), or only in part (chained Ogg, FLAC from a pipe).

The samples of a clip are those that decoding from its beginning gives. A header's length is used where something bears
it out, and otherwise decoding tells. A seek is used where it is exact, and otherwise all is decoded from the beginning.
So a manifest lists what is decoded, and a crop equals the slice of the whole clip.
"""

from __future__ import annotations

import functools
import io
import math
import mmap
import os
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from io import FileIO
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol, cast

import numpy as np
import soundfile
import torch
from torch import Tensor
from typing_extensions import Buffer

from amae_plugin.data._torchaudio import torchaudio
from amae_plugin.data.manifest import ARCHIVES, Clip, Manifest
from amae_plugin.errors import UserError
from amae_plugin.files import open_regular
from amae_plugin.progress import map_in_threads

if TYPE_CHECKING:
    import av

NO_PYAV = "PyAV, which decodes mp4, mkv, m4a and many more, is not installed: pip install av"
"""Reason and remedy for a file that needs the library."""

LOWEST_RATE, HIGHEST_RATE = 100, 1_000_000
"""Sample rates in Hz beyond which a header is taken to be damaged."""

_LOUDEST = 1e10  # full scale is 1; beyond this the power spectrum would overflow float32
_FILES_KEPT = 4096  # whose rates are remembered
_FEW_KERNELS = 16
_BLOCK = 1 << 16  # frames decoded at a time where the number of frames is not known
_UNKNOWN = "not a format that"
# libsndfile's error codes for a file whose format it does not know, or whose first bytes it takes for another's.
_UNRECOGNISED = {1, 7}
_REASONS = {24: "its header states a sample rate of 0"}  # of libsndfile's errors that its own message does not explain

# Codecs whose samples libsndfile finds by their place in the file. It cannot seek in others, such as GSM and ADPCM.
_PLAIN = {"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"}
_MP3_FRAME_SAMPLES = 1152
_MP3_PREROLL = 10 * _MP3_FRAME_SAMPLES  # that a decoder needs to settle; libsndfile leaves this to its caller
_OGG_PREROLL = 0.5  # seconds, likewise
# Frames of a page, which holds 255 packets at most: libsndfile misplaces what it seeks to in the last page.
_OGG_PAGE = 255 * 5760
_MP3_FRAME = 2881  # bytes, at most
# Sizes that encoders write which do not know the length yet.
_PLACEHOLDERS = {*range(2**31 - 2**13, 2**31 + 1), *range(2**32 - 2**13, 2**32 + 1)}

_MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
_STATED = {_MP4, "matroska,webm", "flac", "asf", "caf", "wav"}  # FFmpeg's formats that state a length, not estimate it
_STATED_SLACK = 0.5  # seconds by which that may exceed the audio: a video that is longer, a padding
_MP4_PREROLL = 0.2  # seconds that a decoder needs to settle
_MOST_PLANES = 7  # channels that PyAV reads from arrays of their own; it crashes where there are more
_LONG = 60  # seconds from which on a piece of an MP4 file is sought instead of decoding all before it


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
    """What a file holds.

    Attributes:
        frames: samples per channel that decoding gives.
        sample_rate: sample rate in Hz.
        channels: number of channels.
        damage: what is wrong with a file that can be decoded all the same, such as the half of a download; or empty.
    """

    frames: int
    sample_rate: int
    channels: int
    damage: str = ""


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
        with _bytes(clip) as file, _open(file, name) as source:
            samples = _decode(source, clip, sample_rate, crop)
    except OSError as error:
        raise AudioError(name, error.strerror or str(error)) from None
    except MemoryError:
        raise AudioError(name, "its header promises more samples than memory can hold") from None
    waveform = resample(to_mono(samples, name), source.rate, sample_rate)
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
    # NumPy's mean over an axis as short as this takes twenty times as long as adding the columns.
    mono = functools.reduce(np.add, samples.T)
    waveform = torch.from_numpy(mono / np.float32(samples.shape[1]) if samples.shape[1] > 1 else mono)
    if not float(waveform.abs().max()) < _LOUDEST:  # also false for NaN
        raise AudioError(name, "holds samples that are not finite, or beyond any meaningful loudness")
    return waveform


def read_header(file: Clip | str | os.PathLike[str]) -> AudioHeader:
    """Read the length, rate and channels of a file or of a member of an archive.

    It is decoded only where its header does not tell the length for sure.

    Raises:
        AudioError: the file is missing or is not audio.
    """
    return _read_header(file, lambda source: sum(map(len, source.blocks())))


def read_seekable_header(path: str | os.PathLike[str]) -> AudioHeader | None:
    """Read the header of a file whose pieces are found without decoding what precedes them; None for another one.

    Raises:
        AudioError: see :func:`read_header`.
    """
    header = _read_header(path, lambda source: -1)
    return header if header.frames >= 0 else None


def _read_header(file: Clip | str | os.PathLike[str], count: Callable[[_Source], int]) -> AudioHeader:
    clip = file if isinstance(file, Clip) else Clip(os.fspath(file))
    name = str(clip)
    try:
        with _bytes(clip) as opened, _open(opened, name) as source:
            frames = count(source) if source.total is None else source.total
            return AudioHeader(frames, source.rate, source.channels, source.damage(frames))
    except OSError as error:
        raise AudioError(name, error.strerror or str(error)) from None


def read_rate(clip: Clip) -> int:
    """Read the sample rate of a clip's file, in Hz.

    Raises:
        AudioError: the file is missing or is not audio.
    """
    try:
        with _bytes(clip) as file, _open(file, str(clip)) as source:
            return source.rate
    except OSError as error:
        raise AudioError(str(clip), error.strerror or str(error)) from None


def read_rates(manifest: Manifest, default: int) -> np.ndarray:
    """Read the sample rates of a manifest's files in parallel, with a progress bar if it takes long.

    Returns:
        (N,) int64, in Hz; *default* for a clip that cannot be read.
    """

    @functools.lru_cache(maxsize=_FILES_KEPT)  # the segments of a file follow each other
    def rate(file: Clip) -> int:
        try:
            return read_rate(file)
        except AudioError:
            return default  # decoding the clip will tell what is wrong

    def rate_of(index: int) -> int:
        clip = manifest[index]
        return rate(clip if clip.kind in ARCHIVES else Clip(clip.path))

    indices = range(len(manifest))
    pairs = map_in_threads(rate_of, indices, desc="reading sample rates", unit="clip", delay=5)
    return np.fromiter((rate for _, rate in pairs), np.int64, len(indices))


def resample(waveform: Tensor, source_rate: int, target_rate: int) -> Tensor:
    """Convert (samples,) at *source_rate* Hz to (ceil(samples x target / source),) at *target_rate* Hz.

    torchaudio's kernel table grows with the two rates after their common factors are removed, to gigabytes for a rate
    such as 22,051 Hz. Such a ratio is replaced by the nearest one with a denominator of at most 1000, which is off by
    less than one in a million; the usual rates are exact. The tables are cached. For ratios such as 3:1, whose kernels
    are few and short, one product of matrices applies them to many places; torchaudio takes five times as long.
    """
    if source_rate == target_rate:
        return waveform
    ratio = _ratio(source_rate, target_rate)
    return _resampler(ratio.numerator, ratio.denominator)(waveform)


def resampled_length(samples: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """Count the samples that :func:`resample` makes of waveforms with these numbers of samples."""
    ratio = _ratio(source_rate, target_rate)
    return -(-samples * ratio.denominator // ratio.numerator)


def _ratio(source_rate: int, target_rate: int) -> Fraction:
    return Fraction(source_rate, target_rate).limit_denominator(1000)


@functools.lru_cache(maxsize=32)
def _resampler(source_rate: int, target_rate: int) -> Callable[[Tensor], Tensor]:
    convolution = torchaudio.transforms.Resample(source_rate, target_rate)
    groups = _FEW_KERNELS // target_rate  # of neighbouring samples of the result, one for each kernel
    if groups < 2 or source_rate == target_rate:
        return convolution
    kernels, width = convolution.kernel[:, 0], convolution.width
    taps = kernels.shape[1]
    bank = torch.zeros(groups, target_rate, taps + (groups - 1) * source_rate)
    for group in range(groups):
        bank[group, :, group * source_rate :][:, :taps] = kernels
    matrix, step = bank.flatten(0, 1).T.contiguous(), groups * source_rate

    def convert(waveform: Tensor) -> Tensor:
        samples = -(-len(waveform) * target_rate // source_rate)
        products = -(-samples // matrix.shape[1])
        end = (products - 1) * step + len(matrix) - width
        padded = torch.nn.functional.pad(waveform, (width, end - len(waveform)))
        return (padded.unfold(0, len(matrix), step) @ matrix).flatten()[:samples]

    return convert


def _bytes(clip: Clip) -> BinaryIO:
    """Open a clip's file, or the member of an archive where it lies."""
    file = open_regular(clip.path)
    if clip.kind not in ARCHIVES:
        return file
    beyond = clip.start + clip.length - os.fstat(file.fileno()).st_size
    if beyond > 0:
        file.close()
        raise AudioError(str(clip), f"the archive ends {beyond} bytes before the entry does")
    return cast(BinaryIO, _Member(file, clip.start, clip.length))


class _Member(io.RawIOBase):
    """Some bytes of a file as a file of its own, which ends with it."""

    def __init__(self, archive: FileIO, start: int, length: int):
        self.archive, self.start, self.length = archive, start, length
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.length}[whence]
        if origin + offset < 0:
            raise ValueError(f"position {origin + offset} lies before the beginning")
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        room = memoryview(buffer).cast("B")[: max(0, self.length - self._position)]
        count = os.preadv(self.archive.fileno(), [room], self.start + self._position)
        self._position += count
        return count

    def close(self) -> None:
        self.archive.close()
        super().close()


class _Source(Protocol):
    """An opened file.

    Attributes:
        rate: sample rate in Hz.
        channels: number of channels.
    """

    rate: int
    channels: int

    @property
    def total(self) -> int | None:
        """Frames that decoding gives; None if only decoding tells."""

    def read(self, start: int, frames: int) -> np.ndarray:
        """Read (frames, channels) float32 from frame *start* on; fewer frames where that fails."""

    def blocks(self) -> Iterator[np.ndarray]:
        """Decode (frames, channels) float32 from the beginning to the end, a block at a time."""

    def damage(self, frames: int) -> str:
        """Tell what is wrong with a file of which *frames* can be decoded; empty if nothing is."""


def _decode(source: _Source, clip: Clip, sample_rate: int, crop: Crop | None) -> np.ndarray:
    """Decode the wanted piece: (frames, channels) float32 at the file's own rate."""

    def choose(total: int) -> tuple[int, int]:
        start, frames = (clip.start, clip.length) if clip.kind == "segment" else (0, total)
        if start + frames > total:
            reason = f"the segment ends at frame {start + frames} but the file has {total} frames"
            raise AudioError(str(clip), reason)
        if crop is None or (wanted := math.ceil(crop.samples * source.rate / sample_rate)) >= frames:
            return start, frames
        return start + crop.start(frames, wanted), wanted

    if source.total is not None:
        start, frames = choose(source.total)
        samples = source.read(start, frames)
        if len(samples) == frames:
            return samples
    first, end = (clip.start, clip.start + clip.length) if clip.kind == "segment" else (0, math.inf)
    pieces, total = list[np.ndarray](), 0
    for block in source.blocks():
        pieces.append(block[max(0, first - total) :])
        total += len(block)
        if total >= end:
            break
    start, frames = choose(total)
    # Without an empty array in front, whose order of axes the others would have to take.
    return np.concatenate(pieces or [np.zeros((0, source.channels), np.float32)])[start - first :][:frames]


@contextmanager
def _open(file: BinaryIO, name: str) -> Iterator[_Source]:
    """Open a file in the decoder that gives all of it.

    Raises:
        AudioError: it is not audio, or states a sample rate that no recording has.
    """
    if not file.seek(0, os.SEEK_END):
        raise AudioError(name, "is empty, so not a format of audio")
    with ExitStack() as stack:
        source = _open_source(file, name, stack)
        if not LOWEST_RATE <= source.rate <= HIGHEST_RATE:
            limits = f"it must be {LOWEST_RATE} to {HIGHEST_RATE:,} Hz"
            raise AudioError(name, f"its header states a sample rate of {source.rate:,} Hz; {limits}")
        yield source


def _open_source(file: BinaryIO, name: str, stack: ExitStack) -> _Source:
    explained = ""
    try:
        sound = stack.enter_context(_Sound(file, name))
        if sound.gives_all:
            return sound
        reason = "its header does not tell where it ends"
    except soundfile.LibsndfileError as error:
        reason = f"{_UNKNOWN} soundfile knows"
        if error.code not in _UNRECOGNISED:
            explained = _REASONS.get(error.code, "")
            reason = explained or error.error_string.rstrip(".")
    try:
        return stack.enter_context(_Container(file, name))
    except ImportError:
        raise AudioError(name, f"{reason}; {NO_PYAV}") from None
    except AudioError as error:
        if reason.startswith(_UNKNOWN):
            raise
        raise AudioError(name, explained or f"{reason}; in PyAV: {error.reason}") from None


class _Sound:
    """A file in libsndfile.

    Attributes:
        gives_all: whether libsndfile decodes the whole of it.
    """

    def __init__(self, file: BinaryIO, name: str):
        self._file, self._name = file, name
        self._sound = sound = self._reopen()
        self.rate, self.channels = sound.samplerate, sound.channels
        self.total: int | None = sound.frames
        self.gives_all = True
        self._is_mpeg = sound.subtype.startswith("MPEG_LAYER")
        self._preroll, self._last_seek = 0, sound.frames
        if sound.format == "FLAC":
            self.gives_all = self._has_end() and self._is_at_end()
        elif sound.format == "OGG":
            self.gives_all = _last_position(file, b"OggS\0\2") == 0  # no stream begins after the first or beside it
            self._preroll, self._last_seek = round(_OGG_PREROLL * self.rate), sound.frames - _OGG_PAGE
        elif self._is_mpeg:
            self._preroll = _MP3_PREROLL
            if not self._has_end():
                self.total = None
            else:
                self.gives_all = self._is_at_end()
            sound.close()
            self._sound = self._reopen()  # whose first samples are those of a decoder that did not seek
        elif sound.format == "VOC":
            self.gives_all = "multi-segment" not in sound.extra_info  # whose headers it decodes as samples
        elif not sound.frames:
            self.gives_all = False  # a recorder that was killed leaves a size of 0 in front of its samples
        elif sound.subtype not in _PLAIN:
            self.total = None

    def __enter__(self) -> _Sound:
        return self

    def __exit__(self, *_: object) -> None:
        self._sound.close()

    def read(self, start: int, frames: int) -> np.ndarray:
        first = max(0, min(start - self._preroll, self._last_seek))
        try:
            if first != self._sound.tell():
                self._sound.seek(first)
            return _read_frames(self._sound, start - first + frames)[start - first :]
        except soundfile.LibsndfileError:
            return np.zeros((0, self.channels), np.float32)

    def blocks(self) -> Iterator[np.ndarray]:
        with self._reopen() as sound:
            try:
                while len(block := sound.read(_BLOCK, dtype="float32", always_2d=True)):
                    yield block
            except soundfile.LibsndfileError as error:
                raise AudioError(self._name, error.error_string) from None

    def damage(self, frames: int) -> str:
        log = self._sound.extra_info
        if self._sound.format == "OGG":
            return "its last page is cut off" if "Junk after the last page" in log else ""
        stated = self._sound.frames
        if self._sound.format == "NIST":
            self._file.seek(0)
            count = re.search(rb"^sample_count -i (\d{1,18})$", self._file.read(1024), re.MULTILINE)
            stated = int(count[1]) if count else stated
        if self._is_mpeg and not self._has_length():
            return ""
        for chunk, size, there in re.findall(r"(\S+) *: (\d+) \(should be (\d+)\)", log):
            if (chunk == "data" or self._sound.format not in ("WAV", "WAVEX")) and int(size) not in _PLACEHOLDERS:
                stated = max(stated, round(frames * int(size) / max(1, int(there))))
        return _shortage(stated, frames, 2 * _MP3_FRAME_SAMPLES if self._is_mpeg else 0)

    def _reopen(self) -> soundfile.SoundFile:
        self._file.seek(0)
        if isinstance(self._file, FileIO):
            return soundfile.SoundFile(self._file.fileno(), closefd=False)  # faster than through Python's read()
        return soundfile.SoundFile(self._file)

    def _has_end(self) -> bool:
        """Tell whether the last sample that the header states can be read."""
        try:
            self._sound.seek(self._sound.frames - 1)
            return self._sound.buffer_read_into(bytearray(4 * self.channels), "float32") == 1
        except soundfile.LibsndfileError:
            return False

    def _has_length(self) -> bool:
        """Tell whether an MP3 file's first frame, after a tag, states a length; it is estimated otherwise."""
        self._file.seek(0)
        mark, _, *size = struct.unpack(">3s3s4B", self._file.read(10).ljust(10, b"\0"))
        self._file.seek(
            10 + sum(byte << 7 * place for place, byte in enumerate(reversed(size))) if mark == b"ID3" else 0
        )
        start = self._file.read(256)
        return any(name in start for name in (b"Xing", b"Info", b"VBRI"))

    def _is_at_end(self) -> bool:
        """Tell whether hardly anything but a tag follows in the file on what was read, which is all that is stated."""
        position, most = self._file.tell(), _MP3_FRAME
        if self._is_mpeg and not self._has_length():
            most = 2 * position * _MP3_FRAME_SAMPLES // self._sound.frames  # two frames, of the mean size
        return self._file.seek(0, os.SEEK_END) - position < most


class _Container:
    """The first audio stream of a file in PyAV.

    Time stamps place samples exactly in MP4 only, and only where no packets are missing; the other formats are decoded
    from the beginning.
    """

    def __init__(self, file: BinaryIO, name: str):
        self._file, self._name = file, name
        self._refused = 0  # packets that the decoder refused
        self._container = self._reopen()
        self._is_new = True  # nothing was decoded yet
        try:
            if not self._container.streams.audio:
                raise AudioError(name, "has no audio stream")
            stream = self._stream = self._container.streams.audio[0]
            if stream.codec_context is None:
                raise AudioError(name, "has an audio stream in a codec that PyAV does not know, or is damaged")
            if not stream.rate:  # of a file that FFmpeg takes for audio by its name or its first bytes only
                raise AudioError(name, "has an audio stream without a sample rate, so it is damaged or not audio")
            self.rate, self._layout = stream.rate, stream.layout
            self.channels = self._layout.nb_channels
        except BaseException:
            self._container.close()
            raise

    def __enter__(self) -> _Container:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    @functools.cached_property
    def total(self) -> int | None:
        """Frames by the time stamp of the last packet, where time stamps are exact."""
        if not self._has_exact_times():
            return None
        end = None
        for position, samples in self._blocks(self._stream.duration - self.rate):
            end = position + len(samples)
        return end

    def read(self, start: int, frames: int) -> np.ndarray:
        pieces, there = [np.zeros((0, self.channels), np.float32)], 0
        for position, samples in self._blocks(start - round(_MP4_PREROLL * self.rate)):
            if position > start + there:
                break
            pieces.append(samples[max(0, start - position) :][: frames - there])
            there += len(pieces[-1])
            if there == frames:
                break
        return np.concatenate(pieces)

    def blocks(self) -> Iterator[np.ndarray]:
        return (samples for _, samples in self._blocks(0))

    def damage(self, frames: int) -> str:
        if self._refused:
            return f"packets that cannot be decoded, left out: {self._refused:,}"
        if self._container.format.name not in _STATED or self._container.duration is None:
            return ""
        stated = round(Fraction(self._container.duration, 1_000_000) * self.rate)
        return _shortage(stated, frames, round(_STATED_SLACK * self.rate))

    def _reopen(self) -> av.container.InputContainer:
        return open_container(self._file, self._name, f"{_UNKNOWN} soundfile or PyAV know, or damaged")

    def _has_exact_times(self) -> bool:
        stream = self._stream
        if self._container.format.name != _MP4 or stream.time_base != Fraction(1, self.rate) or stream.start_time:
            return False
        packet = stream.codec_context.frame_size or 0
        padding = stream.frames * packet - (stream.duration or 0)
        return (stream.duration or 0) >= _LONG * self.rate and 0 <= padding <= 4 * packet

    def _blocks(self, start: int) -> Iterator[tuple[int, np.ndarray]]:
        """Decode from the beginning, or from a packet before frame *start* on; yield positions and samples."""
        import av

        if not self._is_new:
            self._container.close()
            self._container = self._reopen()
        self._is_new = False
        self._stream = stream = self._container.streams.audio[0]
        self._refused = 0
        position: int | None = 0
        if start >= _LONG * self.rate:
            self._container.seek(start, stream=stream)
            position = None
        planar = self.channels <= _MOST_PLANES  # as most decoders give them, so that nothing is copied
        converters: dict[tuple[str, str, int], av.AudioResampler] = {}  # the links of a chain may differ
        for packet_frame in self._frames(stream):
            if position is None:
                position = packet_frame.pts or 0
            kind = (packet_frame.format.name, packet_frame.layout.name, packet_frame.sample_rate)
            if kind not in converters:
                converters[kind] = av.AudioResampler("fltp" if planar else "flt", self._layout, self.rate)
            try:
                frames = converters[kind].resample(packet_frame)
            except av.FFmpegError as error:
                reason = f"PyAV cannot convert its {self.channels} channels ({error.strerror})"
                raise AudioError(self._name, reason) from None
            for frame in frames:
                samples = frame.to_ndarray()
                yield position, samples.T if planar else samples.reshape(-1, self.channels)
                position += frame.samples

    def _frames(self, stream: av.AudioStream) -> Iterator[av.AudioFrame]:
        import av

        packets = self._container.demux(stream)
        while True:
            try:
                yield from next(packets).decode()
            except StopIteration:
                return
            except av.InvalidDataError:
                self._refused += 1
            except av.FFmpegError as error:
                raise AudioError(self._name, f"PyAV cannot decode it ({error.strerror})") from None


def open_container(file: BinaryIO, name: str, unknown: str) -> av.container.InputContainer:
    """Open a file in PyAV.

    Args:
        file: the file, whose position changes.
        name: name of the clip, for errors.
        unknown: reason to give for a file that PyAV cannot open.

    Raises:
        AudioError: PyAV cannot open it.
        ImportError: PyAV is not installed.
    """
    import av

    file.seek(0)
    try:
        # No other file or address is opened, whatever a playlist says.
        return av.open(_Positions(file), options={"protocol_whitelist": ""}, metadata_errors="replace")
    except av.FFmpegError as error:
        raise AudioError(name, f"{unknown} ({error.strerror})") from None


class _Positions:
    """A file for PyAV, which prints a traceback of its own where a seek raises, as it does before the beginning."""

    def __init__(self, file: BinaryIO):
        self.read, self.tell, self._file = file.read, file.tell, file
        self.name = str(getattr(file, "name", ""))  # formats without a mark of their own go by it

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError):
            return -1


def _read_frames(sound: soundfile.SoundFile, frames: int) -> np.ndarray:
    """Read (frames, channels) float32; libsndfile converts 16 bits three times as slowly as NumPy, to the same."""
    if sound.subtype != "PCM_16":
        return sound.read(frames, dtype="float32", always_2d=True)
    samples = sound.read(frames, dtype="int16", always_2d=True)
    return np.multiply(samples, np.float32(1 / 2**15), dtype=np.float32)


def _shortage(stated: int, frames: int, slack: int) -> str:
    if stated <= frames + slack:
        return ""
    return f"its header states {stated:,} samples, but only {frames:,} are there"


def _last_position(file: BinaryIO, pattern: bytes) -> int:
    """Find the last place of some bytes; negative if they are nowhere."""
    part = (file.start, file.start + file.length) if isinstance(file, _Member) else ()
    archive = file.archive if isinstance(file, _Member) else file
    with mmap.mmap(archive.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.rfind(pattern, *part) - (part[0] if part else 0)
