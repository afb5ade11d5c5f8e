"""Waveform to log-mel spectrogram, and what a model takes: its length, its normalisation, the image beside it."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from amae_plugin.data.images import ImageInput

_EPSILON = torch.finfo(torch.float32).eps  # Kaldi's floor under the logarithm
_SLANEY = math.log(6.4)  # in 27 mels of Slaney's scale
_PIECE_FRAMES = 4096  # computed at a time
_LEAST_STD = 1e-6  # below it, normalised values outgrow what a model can compute with
PREEMPHASIS = 0.97
"""Share of the previous sample that is subtracted from each sample (Kaldi's default)."""

LOW_HZ = 20.0
"""Lower end of the lowest mel band (Kaldi's default)."""

FLOOR = math.log(_EPSILON)
"""Log-mel value of digital silence."""

DB_PER_NEPER = 10 / math.log(10)
"""Decibels in a unit of log-mel values, which are natural logarithms of a power."""

WINDOWS: dict[str, Callable[[int], Tensor]] = {
    "hanning": functools.partial(torch.hann_window, periodic=False),
    "povey": lambda size: torch.hann_window(size, periodic=False).pow(0.85),
}
"""Analysis windows by name: functions of their length in samples."""

_IMAGE_KEYS = {
    "image_size": "size",
    "image_crop": "training_crop",
    "image_flip": "training_flip",
    "image_frames": "training_frames",
}
"""Settings of the task section, and the fields of the image that they set."""

NORMALIZATIONS: dict[str, float | None] = {"two_std": 2.0, "one_std": 1.0, "model": None}
"""Normalisations by name: the number of standard deviations that become 1; None leaves the values as they are.

``two_std`` is AST's and Audio-MAE's, ``one_std`` that of M2D and CAV-MAE. With ``model`` the model normalises its input
itself, as MAE-AST does.
"""


@dataclass(frozen=True)
class FrontEnd(ABC):
    """Function from a waveform to its log-mel spectrogram.

    Attributes:
        name: name in :data:`FRONT_ENDS`.
        windows: analysis windows by name, functions of their length in samples.
        low_hz: lower end of the lowest mel band; the highest one ends at half the sample rate.
        streams: whether a frame depends on its window alone, so that pieces of a waveform that overlap by
            a window less a shift give the frames of the whole.
        sample_rate: sample rate of the waveform, in Hz.
        num_mel_bins: number of mel bands.
        window_type: analysis window, one of ``windows``.
        window_ms: length of the analysis window.
        shift_ms: time from one frame to the next.

    Raises:
        ValueError: there is no such window.
    """

    name: ClassVar[str]
    windows: ClassVar[Mapping[str, Callable[[int], Tensor]]] = WINDOWS
    low_hz: ClassVar[float] = LOW_HZ
    streams: ClassVar[bool] = True
    sample_rate: int = 16_000
    num_mel_bins: int = 128
    window_type: str = "hanning"
    window_ms: float = 25.0
    shift_ms: float = 10.0

    def __post_init__(self) -> None:
        if self.window_type not in self.windows:
            raise ValueError(f"window_type is '{self.window_type}', must be one of {', '.join(sorted(self.windows))}")

    @abstractmethod
    def __call__(self, waveform: Tensor) -> Tensor:
        """Map (samples,) float32 on the CPU to (frames, num_mel_bins), natural logarithms of a power."""

    def batch(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Map a batch of padded waveforms to spectrograms on the same device.

        Args:
            waveforms: (B, samples) float32.
            lengths: (B,) int64, samples of each clip; what follows them has no influence on the clip's frames.

        Returns:
            (B, frames, num_mel_bins). The first frames of a clip, as many as :meth:`frames_in` says, are those that
            :meth:`__call__` gives for the clip alone. The others mean nothing.
        """
        spectrograms = [self(clip[:length].cpu()) for clip, length in zip(waveforms, lengths.tolist())]
        return torch.nn.utils.rnn.pad_sequence(spectrograms, batch_first=True).to(waveforms.device)

    @property
    def window_samples(self) -> int:
        """Samples in an analysis window."""
        return int(self.sample_rate * self.window_ms / 1000)

    @property
    def shift_samples(self) -> int:
        """Samples from one frame to the next."""
        return int(self.sample_rate * self.shift_ms / 1000)

    @functools.cached_property
    def window(self) -> Tensor:
        """Analysis window: (window_samples,)."""
        return self.windows[self.window_type](self.window_samples)

    def samples_for(self, frames: int) -> int:
        """Count the samples of the shortest waveform that gives this many frames."""
        return self.window_samples + (frames - 1) * self.shift_samples

    def frames_in(self, samples: np.ndarray) -> np.ndarray:
        """Count the frames of waveforms with these numbers of samples."""
        return (1 + (samples - self.window_samples) // self.shift_samples).clip(min=1)

    @property
    def band_edges(self) -> np.ndarray:
        """The F + 1 frequencies in Hz between neighbouring mel bands, the outer ends included."""
        low, high = self._mel_of_hz(np.array([self.low_hz, self.sample_rate / 2]))
        # The bands' centres are F points at equal distances between the two ends; the edges lie half way between them.
        return self._hz_of_mel(np.linspace(low, high, 2 * self.num_mel_bins + 3)[1::2])

    def _mel_of_hz(self, hz: np.ndarray) -> np.ndarray:
        """Map frequencies to the mel scale, which is Kaldi's unless a front end has another."""
        return 1127 * np.log1p(hz / 700)

    def _hz_of_mel(self, mel: np.ndarray) -> np.ndarray:
        return 700 * np.expm1(mel / 1127)

    def _in_pieces(self, waveform: Tensor, log_mel: Callable[[Tensor], Tensor]) -> Tensor:
        """Map waveforms of at least one window to their frames, piece by piece, which bounds the memory.

        Args:
            waveform: (..., samples), of which windows start at multiples of the shift.
            log_mel: function from samples to the frames whose windows they hold.
        """
        frames = 1 + (waveform.shape[-1] - self.window_samples) // self.shift_samples
        starts = range(0, frames * self.shift_samples, _PIECE_FRAMES * self.shift_samples)
        samples = self.window_samples + (_PIECE_FRAMES - 1) * self.shift_samples
        return torch.cat([log_mel(waveform[..., start : start + samples]) for start in starts], dim=-2)


@dataclass(frozen=True)
class LogMel(FrontEnd):
    """Kaldi's log-mel filter bank without dither; the defaults are Audio-MAE's (section 4.1).

    The same function as ``torchaudio.compliance.kaldi.fbank``, which builds its window and mel filters anew on every
    call; here they are made once. Kaldi's ``htk_compat`` has no counterpart, as it only orders an energy column that
    no system uses. MAE-AST's front end is ``LogMel(window_type="povey")``, with the window that is Kaldi's default.
    The mel bands lie between 20 Hz and half the sample rate.
    """

    name = "kaldi"

    @property
    def fft_size(self) -> int:
        """Samples of the Fourier transform: a window, filled up with zeros to a power of two."""
        return 1 << math.ceil(math.log2(self.window_samples))

    @functools.cached_property
    def mel_filters(self) -> Tensor:
        """Weights of the power spectrum's bins in the bands: (fft_size // 2 + 1, num_mel_bins)."""
        # Models describe their input by this module, and do without torchaudio.
        from amae_plugin.data._torchaudio import kaldi

        rate = float(self.sample_rate)
        filters, _ = kaldi.get_mel_banks(self.num_mel_bins, self.fft_size, rate, LOW_HZ, 0.0, 100.0, -500.0, 1.0)
        return torch.nn.functional.pad(filters, (0, 1)).T.contiguous()  # Kaldi gives the Nyquist bin no weight

    def __call__(self, waveform: Tensor) -> Tensor:
        """Map (samples,) float32 on the CPU to (frames, num_mel_bins), natural logarithms of the power.

        There are ``1 + (samples - window_samples) // shift_samples`` frames: windows that do not fit are dropped. A
        waveform shorter than one window is continued with zeros to one window and gives one frame. Every frame loses
        its own mean, so a constant added to the waveform changes nothing.
        """
        return self._in_pieces(_fill(waveform, self.window_samples), self._log_mel)

    @override
    def batch(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        return self(without_padding(waveforms, lengths))

    def _log_mel(self, waveform: Tensor) -> Tensor:
        frames = waveform.unfold(-1, self.window_samples, self.shift_samples)
        frames = frames - frames.mean(dim=-1, keepdim=True)
        emphasised = frames.clone()
        emphasised[..., 1:].sub_(frames[..., :-1], alpha=PREEMPHASIS)
        emphasised[..., 0].mul_(1 - PREEMPHASIS)  # Kaldi takes a frame's first sample for the one before it
        window, mel_filters = _constants(self, waveform.device)
        emphasised.mul_(window)
        spectrum = torch.fft.rfft(emphasised, n=self.fft_size)
        power = spectrum.real.square().add_(spectrum.imag.square())
        # The last bit of a one-row product depends on the number of threads; that of two rows does not.
        count = power.shape[-2]
        rows = power if count > 1 else power.expand(*power.shape[:-2], 2, -1)
        mel = rows @ mel_filters
        return mel[..., :count, :].clamp_(min=_EPSILON).log_()


@dataclass(frozen=True)
class SlaneyLogMel(FrontEnd):
    """M2D's log-mel filter bank, torchaudio's ``MelSpectrogram`` (Niizumi et al. 2023, section IV.A).

    80 mel bands from 50 Hz to half the sample rate, on Slaney's scale and each divided by its width; Hann windows of
    25 ms, centred on their frames. The waveform is mirrored at its ends, also where a clip was cut, and keeps its mean.
    """

    name = "slaney"
    windows: ClassVar[Mapping[str, Callable[[int], Tensor]]] = {"hann": torch.hann_window}
    low_hz: ClassVar[float] = 50.0
    streams: ClassVar[bool] = False
    num_mel_bins: int = 80
    window_type: str = "hann"

    def __call__(self, waveform: Tensor) -> Tensor:
        """Map (samples,) float32 on the CPU to (frames, num_mel_bins), natural logarithms of the power.

        There are ``1 + samples // shift_samples`` frames. A waveform shorter than one window is continued with zeros to
        one window.
        """
        half = self.window_samples // 2
        filled = _fill(waveform, self.window_samples)
        mirrored = torch.nn.functional.pad(filled[None], (half, half), mode="reflect")[0]
        return self._in_pieces(mirrored, self._log_mel)

    @override
    def batch(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        half = self.window_samples // 2
        filled = _fill(without_padding(waveforms, lengths), self.window_samples)
        last = lengths.clamp(min=self.window_samples)[:, None] - 1
        places = torch.arange(-half, filled.shape[1] + half, device=filled.device).abs()
        mirrored = torch.where(places > last, 2 * last - places, places).clamp(min=0)
        return self._in_pieces(filled.gather(1, mirrored), self._log_mel)

    def _log_mel(self, waveform: Tensor) -> Tensor:
        power = _mel_spectrogram(self, waveform.device)(waveform)
        return (power.transpose(-1, -2) + _EPSILON).log_()

    def mel_spectrogram(self) -> torch.nn.Module:
        """Make the function from samples (..., samples) to the power in the bands, (..., num_mel_bins, frames)."""
        from amae_plugin.data._torchaudio import torchaudio

        return torchaudio.transforms.MelSpectrogram(
            self.sample_rate,
            n_fft=self.window_samples,
            hop_length=self.shift_samples,
            f_min=self.low_hz,
            n_mels=self.num_mel_bins,
            window_fn=lambda size: self.window,
            center=False,
            norm="slaney",
            mel_scale="slaney",
        )

    @override
    def samples_for(self, frames: int) -> int:
        return (frames - 1) * self.shift_samples

    @override
    def frames_in(self, samples: np.ndarray) -> np.ndarray:
        return 1 + samples.clip(min=self.window_samples) // self.shift_samples

    @override
    def _mel_of_hz(self, hz: np.ndarray) -> np.ndarray:
        # Linear up to 1000 Hz, and from there 27 mels for each factor of 6.4.
        return np.where(hz < 1000, hz * 3 / 200, 15 + 27 / _SLANEY * np.log(np.maximum(hz, 1000) / 1000))

    @override
    def _hz_of_mel(self, mel: np.ndarray) -> np.ndarray:
        return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp(_SLANEY / 27 * np.maximum(mel - 15, 0)))


@functools.cache
def _constants(front_end: LogMel, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return window and filters on a device, to which they are copied once."""
    return front_end.window.to(device), front_end.mel_filters.to(device)


@functools.cache
def _mel_spectrogram(front_end: SlaneyLogMel, device: torch.device) -> torch.nn.Module:
    return front_end.mel_spectrogram().to(device)


FRONT_ENDS: dict[str, type[FrontEnd]] = {LogMel.name: LogMel, SlaneyLogMel.name: SlaneyLogMel}
"""Front ends by name."""


@dataclass(frozen=True)
class ModelInput:
    """Input of a model: how a waveform becomes the spectrogram that it takes, and a picture the image.

    Attributes:
        front_end: function from the waveform to log-mel values.
        target_length: frames of a spectrogram, at most.
        mean: mean of the corpus's log-mel values (``amae stats``); the default is AudioSet's, as Audio-MAE gives it.
        std: their standard deviation.
        normalization: use of *mean* and *std*, one of :data:`NORMALIZATIONS`.
        image: the image; None for a model of sound alone.

    Raises:
        ValueError: there is no such normalisation, or *mean* or *std* is none that values could have.
    """

    front_end: FrontEnd = LogMel()
    target_length: int = 1024
    mean: float = -4.2677393
    std: float = 4.5689974
    normalization: str = "two_std"
    image: ImageInput | None = None

    def __post_init__(self) -> None:
        if self.normalization not in NORMALIZATIONS:
            raise ValueError(f"normalization is '{self.normalization}', must be one of {', '.join(NORMALIZATIONS)}")
        if not math.isfinite(self.mean):
            raise ValueError(f"mean is {self.mean}, must be a finite number, as amae stats prints it")
        if not _LEAST_STD <= self.std < math.inf:
            raise ValueError(f"std is {self.std}, must be above 0 and finite, as amae stats prints it")

    @classmethod
    def from_settings(cls, task: Mapping[str, Any], default: ModelInput) -> ModelInput:
        """Read the input from the task section of a recipe or a checkpoint.

        Args:
            task: settings; of the keys of :meth:`settings`, those that are missing or null are taken from *default*.
                ``modalities`` tells whether there is an image, as in *default* if it is missing or null.
            default: input of the model's system, with the model's number of bands.

        Raises:
            ValueError: a setting that no system decides is missing, or one cannot be used.
        """
        keys = replace(default, image=None).settings()
        given = {key: task[key] for key in keys if task.get(key) is not None}
        given.setdefault("num_mel_bins", default.num_mel_bins)  # the model's, with another front end as well
        needed = ["target_length"]
        if NORMALIZATIONS.get(given.get("normalization", default.normalization)) is not None:
            needed += ["mean", "std"]
        missing = [f"task.{key}" for key in needed if key not in given]
        if missing:
            raise ValueError(f"its settings lack {', '.join(missing)}")
        name = given.pop("front_end", default.front_end.name)
        if name not in {default.front_end.name, *FRONT_ENDS}:
            raise ValueError(f"front_end is '{name}', must be one of {', '.join(FRONT_ENDS)}")
        front_end = default.front_end if name == default.front_end.name else FRONT_ENDS[name]()
        own = {key: given.pop(key) for key in ("num_mel_bins", "window_type") if key in given}
        image = _read_image(task, default.image)
        return replace(default, front_end=replace(front_end, **own), image=image, **given)

    def settings(self) -> dict[str, str | int | float | list[str]]:
        """Describe the input by plain values, under their names in the task section."""
        front_end = {key: getattr(self.front_end, key) for key in ("num_mel_bins", "window_type")}
        others = {key: value for key, value in vars(self).items() if key not in ("front_end", "image")}
        settings = {"front_end": self.front_end.name, **front_end, **others}
        if self.image is not None:
            settings["modalities"] = ["audio", "image"]
            settings |= {key: getattr(self.image, name) for key, name in _IMAGE_KEYS.items()}
        return settings

    @property
    def sample_rate(self) -> int:
        """Sample rate of the waveform, in Hz."""
        return self.front_end.sample_rate

    @property
    def num_mel_bins(self) -> int:
        """Number of mel bands, F."""
        return self.front_end.num_mel_bins

    @property
    def samples(self) -> int:
        """Samples of the shortest waveform that fills the input."""
        return self.front_end.samples_for(self.target_length)

    @property
    def silence(self) -> float:
        """Normalised value of padding, which is 0 before normalisation (AST, Audio-MAE)."""
        shift, scale = self.shift_and_scale
        return -shift / scale

    @property
    def shift_and_scale(self) -> tuple[float, float]:
        """Value that becomes 0, and how far above it lies the value that becomes 1."""
        deviations = NORMALIZATIONS[self.normalization]
        return (0.0, 1.0) if deviations is None else (self.mean, deviations * self.std)

    def normalize(self, log_mel: Tensor) -> Tensor:
        """Map log-mel values of any shape to the values that the model takes."""
        shift, scale = self.shift_and_scale
        return (log_mel - shift) / scale

    def denormalize(self, values: Tensor) -> Tensor:
        """Undo :meth:`normalize`."""
        shift, scale = self.shift_and_scale
        return values * scale + shift

    def spectrogram(self, waveform: Tensor) -> Tensor:
        """Map (samples,) float32 on the CPU to (target_length, F): the centre of a longer clip, or a padded one."""
        return self.normalize(fit_length(self.front_end(waveform), self.target_length))


def _read_image(task: Mapping[str, Any], default: ImageInput | None) -> ImageInput | None:
    """Read the image from the task section; None for sound alone."""
    if (modalities := task.get("modalities")) is not None:
        default = (default or ImageInput()) if "image" in modalities else None
    if default is None:
        return None
    return replace(default, **{name: task[key] for key, name in _IMAGE_KEYS.items() if task.get(key) is not None})


def _fill(waveform: Tensor, samples: int) -> Tensor:
    """Continue waveforms (..., samples) that are shorter than this with zeros."""
    return torch.nn.functional.pad(waveform, (0, max(0, samples - waveform.shape[-1])))


def without_padding(waveforms: Tensor, lengths: Tensor) -> Tensor:
    """Return waveforms (B, samples) with zeros beyond their lengths (B,)."""
    return waveforms.masked_fill(torch.arange(waveforms.shape[1], device=waveforms.device) >= lengths[:, None], 0.0)


def fit_length(spectrogram: Tensor, target_length: int, position: float = 0.5, padding: float = 0.0) -> Tensor:
    """Crop or pad a spectrogram to a length in frames.

    Args:
        spectrogram: (frames, num_mel_bins).
        target_length: frames of the result.
        position: place of the piece that is kept of a longer clip, in [0, 1]: 0 its beginning, 0.5 its centre, 1 its
            end.
        padding: value that follows a shorter clip. Audio-MAE's code pads with 0 before it normalises, so padding is
            not 0 afterwards.

    Returns:
        (target_length, num_mel_bins).
    """
    spare = len(spectrogram) - target_length
    if spare > 0:
        start = min(int(position * (spare + 1)), spare)
        return spectrogram[start : start + target_length]
    return torch.nn.functional.pad(spectrogram, (0, 0, 0, -spare), value=padding)
