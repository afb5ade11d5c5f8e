"""Audio files and arrays as waveforms for a model; audio that cannot be used is refused with a reason.

All commands read audio files through this module, so they refuse the same audio.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch.utils.data
from torch import Tensor
from tqdm import tqdm

from amae_plugin.corpora.audio_files import AUDIO_EXTENSIONS, find_audio
from amae_plugin.data.audio import HIGHEST_RATE, LOWEST_RATE, AudioError, load_clip, resample, to_mono
from amae_plugin.data.log_mel import FrontEnd, LogMel
from amae_plugin.data.manifest import Clip
from amae_plugin.errors import UserError

Audio = str | os.PathLike | np.ndarray | Tensor
"""Clip: the path of a file, or an array (samples,) or (channels, samples)."""

Result = TypeVar("Result")


def load_waveform(
    audio: Audio, sample_rate: float | None = None, features: FrontEnd | None = None, name: str = "the array"
) -> Tensor:
    """Load a clip as a mono waveform for a front end.

    Args:
        audio: path of a file, or array (samples,) or (channels, samples). Floating-point samples have a full scale of
            [-1, 1]; integers are divided by the full scale of their type.
        sample_rate: sample rate of an array, in Hz; a file states its own.
        features: front end; by default one of 16 kHz with windows of 25 ms.
        name: name of an array in messages.

    Returns:
        (samples,) float32 on the CPU at the front end's rate, at least one analysis window long.

    Raises:
        AudioError: the file is missing or not audio, the sample rate is beyond reason, the clip is empty, not finite,
            silent (all samples are equal) or shorter than one analysis window.
        UserError: an array comes without a sample rate or has another shape or type, or a file comes with a rate.
    """
    features = features or LogMel()
    if isinstance(audio, (str, os.PathLike)):
        name = os.fspath(audio)
        if sample_rate is not None:
            raise UserError(f"{name}: sample_rate={sample_rate} is for arrays; a file states its own rate")
        waveform = load_clip(Clip(name), features.sample_rate)
    else:
        samples = _as_frames(audio, name)
        if sample_rate is None:
            raise UserError(f"{name}: samples need their sample rate, such as sample_rate=16000")
        if not LOWEST_RATE <= sample_rate <= HIGHEST_RATE:
            raise AudioError(name, f"its sample rate is given as {sample_rate:g} Hz")
        waveform = resample(to_mono(samples, name), round(sample_rate), features.sample_rate)
    if len(waveform) < features.window_samples:
        lasts = 1000 * len(waveform) / features.sample_rate
        raise AudioError(
            name, f"lasts {lasts:.3g} ms, which is less than one analysis window, {features.window_ms:g} ms"
        )
    if bool((waveform == waveform[0]).all()):
        raise AudioError(name, "is silent: all its samples are equal")
    return waveform


def _as_frames(audio: np.ndarray | Tensor, name: str) -> np.ndarray:
    """Convert samples (samples,) or (channels, samples) to (samples, channels) float32."""
    samples = audio.detach().cpu().numpy() if isinstance(audio, Tensor) else np.asarray(audio)
    if samples.ndim == 1:
        samples = samples[None]
    if samples.ndim != 2 or (samples.shape[0] > samples.shape[1] and samples.size):
        raise UserError(f"{name}: its shape is {samples.shape}, must be (samples,) or (channels, samples)")
    if samples.dtype.kind == "i":
        samples = samples / -float(np.iinfo(samples.dtype).min)
    elif samples.dtype.kind != "f":
        raise UserError(f"{name}: its samples are {samples.dtype}, must be floating-point numbers or signed integers")
    return np.ascontiguousarray(samples.T, dtype=np.float32)


class ClipFiles:
    """Audio files, some of which may turn out to be unusable.

    Iteration yields the path and the waveform of each usable file, and collects the others with the reasons in
    ``skipped``.

    Args:
        paths: files, and folders to search for audio as ``amae manifest folder`` does.
        features: front end, see :func:`load_waveform`.
        workers: number of processes that decode; with 0, this one does.
        progress: title of the progress bar on standard error; without a bar if None.

    Attributes:
        names: names of all files by path, each once and in the given order, those of a folder sorted. A name is the
            path inside the searched folder, or else the file's name.
        skipped: unusable paths so far, and the reasons.

    Raises:
        UserError: a folder holds no audio.
    """

    def __init__(
        self,
        paths: Iterable[str | os.PathLike[str]],
        features: FrontEnd | None = None,
        workers: int = 0,
        progress: str | None = None,
    ):
        self.skipped: dict[str, str] = {}
        self.names: dict[Path, str] = {}
        self._features = features or LogMel()
        self._workers = workers
        self._progress = progress
        for path in map(Path, paths):
            for found, name in self._search(path) if path.is_dir() else [(path, path.name)]:
                self.names.setdefault(found, name)

    def _search(self, folder: Path) -> list[tuple[Path, str]]:
        found = find_audio(folder)
        if not found.names and not found.problems:
            raise UserError(f"{folder}: no audio; looked for the extensions {' '.join(AUDIO_EXTENSIONS)}")
        self.skipped.update({str(folder / name): reason for name, reason in found.problems.items()})
        return [(folder / name, name) for name in found.names]

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[tuple[Path, Tensor]]:
        return self.map(lambda waveforms: waveforms)

    def map(self, function: Callable[[Iterator[Tensor]], Iterator[Result]]) -> Iterator[tuple[Path, Result]]:
        """Yield the path of each usable file and its result.

        Args:
            function: function from an iterator over waveforms to one over their results, in the same order; it may read
                ahead to form batches.
        """
        taken: deque[Path] = deque()
        with tqdm(total=len(self), desc=self._progress, unit="clip", disable=self._progress is None) as bar:

            def waveforms() -> Iterator[Tensor]:
                for path, waveform in self._usable(bar):
                    taken.append(path)
                    yield waveform

            for result in function(waveforms()):
                yield taken.popleft(), result
                bar.update()

    def _usable(self, bar: tqdm) -> Iterator[tuple[Path, Tensor]]:
        paths = list(self.names)
        loader = torch.utils.data.DataLoader(
            _Waveforms(paths, self._features), batch_size=None, num_workers=max(0, min(self._workers, len(paths) - 1))
        )
        for path, waveform in zip(paths, loader):
            if isinstance(waveform, Tensor):
                yield path, waveform
            else:
                self.skipped[str(path)] = waveform.reason or str(waveform)
                bar.update()


class _Waveforms(torch.utils.data.Dataset):
    """Waveforms of files, or errors, which are returned because exceptions of workers arrive with tracebacks."""

    def __init__(self, paths: list[Path], features: FrontEnd):
        self.paths = paths
        self.features = features

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor | AudioError:
        try:
            return load_waveform(self.paths[index], features=self.features)
        except AudioError as error:
            return error
