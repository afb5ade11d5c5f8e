"""Audio files and arrays as waveforms for a model; audio that cannot be used is refused with a reason.

All commands read audio files through this module, so they refuse the same audio.
"""

from __future__ import annotations

import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
import torch.utils.data
from torch import Tensor

from amae_plugin.corpora.audio_files import AUDIO_EXTENSIONS, find_audio
from amae_plugin.data.audio import (
    HIGHEST_RATE,
    LOWEST_RATE,
    AudioError,
    load_clip,
    read_header,
    read_seekable_header,
    resample,
    to_mono,
)
from amae_plugin.data.log_mel import FrontEnd, LogMel
from amae_plugin.data.manifest import ARCHIVES, Clip
from amae_plugin.errors import UserError
from amae_plugin.files import is_folder
from amae_plugin.processes import killed_with_parent
from amae_plugin.progress import tqdm

Audio = str | os.PathLike | np.ndarray | Tensor
"""Clip: the path of a file, or an array (samples,) or (channels, samples)."""

Result = TypeVar("Result")
Source = TypeVar("Source")
Source_co = TypeVar("Source_co", covariant=True)

_SILENT = "is silent: all its samples are equal"
_LONG_SECONDS = 600  # from which on a file is decoded in pieces
_PIECE_SECONDS = 60
_LARGEST_RATIO = 1000  # of reduced sample rates, up to which the resampler is exact
_WIDEST_BITS = 32  # of integers whose full scale is that of their type
_NARROWER = (2**15, 2**23)  # full scales of 16 and of 24 bits
_RESCALE = "divide them by their full scale (32768 if they have 16 bits), as floating-point numbers"
_LOUDEST = 16.0  # full scale is 1; what codecs and mixers add to that is a fraction of this


class Loaded(NamedTuple):
    """Piece (samples,) of a file, and the seconds that the whole file lasts."""

    waveform: Tensor
    seconds: float


class Excerpt(NamedTuple):
    """Piece of a file: the second at which it starts, and its length in seconds, if the file is that long."""

    start: float
    seconds: float


@dataclass(frozen=True)
class LongClip:
    """Audio file that is decoded in pieces, since the whole of it would take much memory.

    Attributes:
        path: the file.
        frames: samples per channel at the file's own rate.
        source_rate: that rate, in Hz.
        sample_rate: rate in Hz of the pieces.
    """

    path: str
    frames: int
    source_rate: int
    sample_rate: int

    @classmethod
    def find(cls, path: str, sample_rate: int) -> LongClip | None:
        """Describe a file; None unless it is long, and pieces of it can be decoded by themselves.

        Raises:
            AudioError: its header cannot be read.
        """
        header = read_seekable_header(path)
        if header is None or header.frames < _LONG_SECONDS * header.sample_rate:
            return None
        clip = cls(path, header.frames, header.sample_rate, sample_rate)
        return clip if max(clip._ratio.as_integer_ratio()) <= _LARGEST_RATIO else None

    @property
    def _ratio(self) -> Fraction:
        return Fraction(self.source_rate, self.sample_rate)

    def __len__(self) -> int:
        return math.ceil(self.frames / self._ratio)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the clip's pieces (samples,) float32 one after the other.

        Raises:
            AudioError: a piece cannot be decoded.
        """
        # Whole periods of the resampler, whose filter also sees the margins, so pieces join without a seam.
        period = self._ratio.numerator
        size, margin = (period * math.ceil(seconds * self.source_rate / period) for seconds in (_PIECE_SECONDS, 1))
        for start in range(0, self.frames, size):
            first, end = max(0, start - margin), min(self.frames, start + size + margin)
            piece = load_clip(Clip(self.path, "segment", first, end - first), self.sample_rate)
            yield piece[int((start - first) / self._ratio) :][: int(size / self._ratio)]


Waveform = Tensor | LongClip
"""Clip at a front end's rate: samples (samples,) float32 on the CPU, or a file that gives them in pieces."""


def open_waveform(
    audio: Audio, sample_rate: float | None = None, features: FrontEnd | None = None, name: str = "the array"
) -> Tensor | LongClip:
    """Load a clip as :func:`load_waveform` does, but a long file as pieces, each of which is decoded once to check it.

    Raises:
        AudioError: see :func:`load_waveform`.
        UserError: see :func:`load_waveform`.
    """
    features = features or LogMel()
    if isinstance(audio, (str, os.PathLike)) and sample_rate is None and features.streams:
        clip = LongClip.find(os.fspath(audio), features.sample_rate)
        if clip is not None:
            extremes = [piece.aminmax() for piece in replace(clip, sample_rate=clip.source_rate)]
            _require_range(min(least for least, _ in extremes), max(most for _, most in extremes), clip.path)
            return clip
    return load_waveform(audio, sample_rate, features, name)


def load_waveform(
    audio: Audio, sample_rate: float | None = None, features: FrontEnd | None = None, name: str = "the array"
) -> Tensor:
    """Load a clip as a mono waveform for a front end.

    Args:
        audio: path of a file, or array, see :func:`to_waveform`.
        sample_rate: sample rate of an array, in Hz; a file states its own.
        features: front end; by default one of 16 kHz with windows of 25 ms.
        name: name of an array in messages.

    Returns:
        (samples,) float32 on the CPU at the front end's rate, at least one analysis window long.

    Raises:
        AudioError: the file is missing or not audio, the sample rate is beyond reason, the clip is empty, not finite,
            silent (all samples are equal) or shorter than one analysis window.
        UserError: an array comes without a sample rate or has another shape, type or scale, or a file comes with a
            rate.
    """
    features = features or LogMel()
    if isinstance(audio, (str, os.PathLike)):
        name = os.fspath(audio)
        if sample_rate is not None:
            raise UserError(f"{name}: sample_rate={sample_rate} is for arrays; a file states its own rate")
        waveform = load_clip(Clip(name), features.sample_rate)
    else:
        if sample_rate is None:
            raise UserError(f"{name}: samples need their sample rate, such as sample_rate=16000")
        waveform = at_rate(audio, sample_rate, features.sample_rate, name)
    _require_sound(waveform, features, name)
    return waveform


def at_rate(audio: np.ndarray | Tensor, sample_rate: float, target_rate: int, name: str) -> Tensor:
    """Convert samples to a mono waveform at another rate; unlike :func:`load_waveform`, also silent or short ones.

    Args:
        audio: samples, see :func:`to_waveform`.
        sample_rate: their rate in Hz.
        target_rate: rate in Hz of the result.
        name: name of the array in messages.

    Returns:
        (samples,) float32 on the CPU.

    Raises:
        AudioError: see :func:`to_waveform`; or the sample rate is beyond reason.
        UserError: see :func:`to_waveform`; or the sample rate is no number.
    """
    waveform = to_waveform(audio, name)
    try:
        rate = float(sample_rate)
    except (TypeError, ValueError):
        raise UserError(f"{name}: its sample rate is given as {sample_rate!r}, must be a number in Hz") from None
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise AudioError(name, f"its sample rate is given as {rate:g} Hz")
    return resample(waveform, round(rate), target_rate)


def load_excerpt(place: str | os.PathLike[str] | Clip, excerpt: Excerpt, features: FrontEnd | None = None) -> Loaded:
    """Load a piece of a file as :func:`load_waveform` loads the whole of it, without decoding more than it has to.

    A clip of a manifest may itself be a piece of a file, or lie in an archive, from which all of it is decoded.

    Raises:
        AudioError: see :func:`load_waveform`; or the file ends before the piece begins.
    """
    features, clip = features or LogMel(), place if isinstance(place, Clip) else Clip(os.fspath(place))
    header, name = read_header(clip), str(clip)
    frames = clip.length if clip.kind == "segment" else header.frames
    seconds = frames / header.sample_rate
    first, wanted = (round(part * header.sample_rate) for part in excerpt)
    if frames and first >= frames:
        raise AudioError(name, f"lasts {seconds:.1f} s, so nothing of it comes after --start {excerpt.start:g}")
    if not first and wanted >= frames:
        waveform = load_clip(clip, features.sample_rate)
    elif clip.kind in ARCHIVES:
        first, wanted = (round(part * features.sample_rate) for part in excerpt)
        waveform = load_clip(clip, features.sample_rate)[first : first + wanted]
    else:
        piece = Clip(clip.path, "segment", clip.start + first, min(wanted, frames - first))
        waveform = load_clip(piece, features.sample_rate)
    _require_sound(waveform, features, name)
    return Loaded(waveform, seconds)


def _require_sound(waveform: Tensor, features: FrontEnd, name: str) -> None:
    """Refuse samples that are too few for a front end, or all equal."""
    if len(waveform) < features.window_samples:
        lasts = 1000 * len(waveform) / features.sample_rate
        raise AudioError(
            name, f"lasts {lasts:.3g} ms, which is less than one analysis window, {features.window_ms:g} ms"
        )
    _require_range(*waveform.aminmax(), name)


def _require_range(least: Tensor, most: Tensor, name: str) -> None:
    """Refuse samples that are all equal, or have another full scale than 1."""
    if least == most:
        raise AudioError(name, _SILENT)
    if (peak := float(torch.maximum(-least, most))) > _LOUDEST:
        raise AudioError(name, f"its samples reach {peak:g}, but their full scale must be 1; {_RESCALE}")


def to_waveform(audio: np.ndarray | Tensor, name: str) -> Tensor:
    """Convert samples to mono with a full scale of 1: (samples,) float32 on the CPU.

    Args:
        audio: (samples,) or (channels, samples). Floating-point numbers have a full scale of 1 already. Integers of 8,
            16 and 32 bits are divided by the full scale of their type.
        name: name of the array in messages.

    Raises:
        AudioError: there are no samples, or some are not finite.
        UserError: the array has another shape or type, or its values are those of another full scale.
    """
    if isinstance(audio, Tensor):
        audio = audio.detach().cpu()
        audio = (audio.float() if audio.dtype == torch.bfloat16 else audio).numpy()
    try:
        samples = np.asarray(audio)
    except ValueError as error:
        raise UserError(f"{name}: no array of samples ({error})") from None
    if samples.ndim == 1:
        samples = samples[None]
    if samples.ndim != 2 or not samples.shape[0] or (samples.shape[0] > samples.shape[1] and samples.size):
        raise UserError(f"{name}: its shape is {samples.shape}, must be (samples,) or (channels, samples)")
    full_scale = _full_scale(samples, name)
    return to_mono(
        np.ascontiguousarray((samples if full_scale == 1 else samples / full_scale).T, dtype=np.float32), name
    )


def _full_scale(samples: np.ndarray, name: str) -> float:
    """Return the value of the loudest possible sample.

    Raises:
        UserError: the type has none, or the samples are so loud or so quiet that it must be another one.
    """
    kind, bits = samples.dtype.kind, 8 * samples.dtype.itemsize
    if kind not in "if":
        raise UserError(f"{name}: its samples are {samples.dtype}, must be floating-point numbers or signed integers")
    if kind == "i" and bits > _WIDEST_BITS:
        raise UserError(f"{name}: its samples are {samples.dtype}, whose full scale no audio has; {_RESCALE}")
    peak = float(np.abs(samples.astype(np.float64, copy=False)).max(initial=0))
    if kind == "f":
        whole = peak > 1 and math.isfinite(peak) and bool((samples == np.rint(samples)).all())
        if math.isfinite(peak) and (peak > _LOUDEST or whole):
            raise UserError(f"{name}: its samples reach {peak:g}, but their full scale must be 1; {_RESCALE}")
        return 1.0
    if bits == _WIDEST_BITS and 0 < peak <= _NARROWER[0]:
        raise UserError(
            f"{name}: its samples are {samples.dtype} but reach only {peak:,.0f}, as those of 16 bits do; convert them "
            f"to int16, or {_RESCALE}"
        )
    if bits == _WIDEST_BITS and 0 < peak <= _NARROWER[1]:
        warnings.warn(
            f"{name}: its samples are {samples.dtype} but reach only {peak:,.0f}; if they have 24 bits, divide them by "
            "8388608, as floating-point numbers",
            stacklevel=4,
        )
    return float(2 ** (bits - 1))


class ClipFiles:
    """Audio files, some of which may turn out to be unusable.

    Iteration yields the path and the waveform of each usable file, and collects the others with the reasons in
    ``skipped``.

    Args:
        paths: files, and folders to search for audio as ``amae manifest folder`` does; with *excerpt* also clips of a
            manifest, whose paths are written as in it.
        features: front end, see :func:`load_waveform`.
        workers: number of processes that decode; with 0, this one does.
        progress: title of the progress bar on standard error, if that is a terminal; without a bar if None.
        excerpt: piece of each file to decode; the whole file if None.

    Attributes:
        names: names of all files by path, each once and in the given order, those of a folder sorted. A name is the
            path inside the searched folder, or else the file's name.
        skipped: unusable paths so far, and the reasons.
        seconds: lengths of the files so far of which an excerpt was decoded.

    Raises:
        UserError: a folder holds no audio.
    """

    def __init__(
        self,
        paths: Iterable[str | os.PathLike[str] | Clip],
        features: FrontEnd | None = None,
        workers: int = 0,
        progress: str | None = None,
        excerpt: Excerpt | None = None,
    ):
        self.skipped: dict[str, str] = {}
        self.seconds: dict[Path, float] = {}
        self.names: dict[Path, str] = {}
        self._features = features or LogMel()
        self._workers = workers
        self._progress = progress
        self._excerpt = excerpt
        places = {Path(str(place)): place for place in paths}
        self._clips = {path: place for path, place in places.items() if isinstance(place, Clip)}
        for path in places:
            for found, name in self._search(path) if is_folder(path) else [(path, path.name)]:
                self.names.setdefault(found, name)

    def _search(self, folder: Path) -> list[tuple[Path, str]]:
        found = find_audio(folder)
        if not found.names and not found.problems:
            raise UserError(f"{folder}: no audio; looked for the extensions {' '.join(AUDIO_EXTENSIONS)}")
        self.skipped.update({str(folder / name): reason for name, reason in found.problems.items()})
        return [(folder / name, name) for name in sorted(found.names + found.duplicates)]

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[tuple[Path, Waveform]]:
        return self.map(lambda waveforms: waveforms)

    def map(self, function: Callable[[Iterator[Waveform]], Iterator[Result]]) -> Iterator[tuple[Path, Result]]:
        """Yield the path of each usable file and its result.

        Args:
            function: function from an iterator over waveforms to one over their results, in the same order; it may read
                ahead to form batches.
        """
        taken: deque[Path] = deque()
        with tqdm(total=len(self), desc=self._progress, unit="clip", disable=self._progress is None) as bar:

            def waveforms() -> Iterator[Waveform]:
                for path, waveform in self._usable(bar):
                    taken.append(path)
                    yield waveform

            for result in function(waveforms()):
                yield taken.popleft(), result
                bar.update()

    def _usable(self, bar: tqdm) -> Iterator[tuple[Path, Waveform]]:
        paths = list(self.names)
        if self._excerpt is None:
            load: Callable[..., Waveform | Loaded] = partial(open_waveform, features=self._features)
        else:
            load = partial(load_excerpt, excerpt=self._excerpt, features=self._features)
        sources = [self._clips.get(path, path) for path in paths]
        loader = load_each(sources, load, max(0, min(self._workers, len(paths) - 1)))
        for path, waveform in zip(paths, loader):
            if isinstance(waveform, AudioError):
                self.skipped[str(path)] = waveform.reason or str(waveform)
                bar.update()
                continue
            if isinstance(waveform, Loaded):
                waveform, self.seconds[path] = waveform
            yield path, waveform


class SizedItems(Protocol[Source_co]):
    """Items by their index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Source_co: ...


def load_each(
    sources: SizedItems[Source], load: Callable[[Source], Result], workers: int
) -> Iterator[Result | AudioError]:
    """Load each source in order, in a number of processes; with 0, in this one.

    An error of a clip is returned, since an exception of a worker arrives with its traceback.
    """
    options: dict[str, Any] = {"num_workers": workers, "worker_init_fn": killed_with_parent}
    return iter(torch.utils.data.DataLoader(_Loads(sources, load), batch_size=None, **options))


def load_all(clips: SizedItems[Clip], sample_rate: int, workers: int) -> Iterator[Tensor]:
    """Load the clips of a manifest, or of a part of it, in order: (samples,) each.

    Raises:
        AudioError: one cannot be decoded.
    """
    for waveform in load_each(clips, partial(load_clip, sample_rate=sample_rate), workers):
        if isinstance(waveform, AudioError):
            raise waveform
        yield waveform


class _Loads(torch.utils.data.Dataset):
    def __init__(self, sources: SizedItems[Source], load: Callable[[Source], Result]):
        self.sources = sources
        self.load = load

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> object:
        try:
            return self.load(self.sources[index])
        except AudioError as error:
            return error
