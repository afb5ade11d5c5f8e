"""Augmentations of training clips: classes by name, whose fields are the parameters that a recipe may set."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Union

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Base of the augmentations, one of which overrides the method of each stage at which it acts.

    The methods are listed in the order of the stages. They draw everything random from the generator that they are
    given, return the shape that they are given in float32, and never change their input.
    """

    @property
    def keeps_order(self) -> bool:
        """Whether the clip says the same in the same order afterwards, as its transcript needs it."""
        return True

    def waveform(self, samples: Tensor, rng: np.random.Generator) -> Tensor:
        """Change the decoded clip (samples,)."""
        return samples

    def draw_weight(self, rng: np.random.Generator) -> float:
        """Draw the weight of a clip in a mixture with another clip, in [0, 1]; at 1 there is no mixture."""
        return 1.0

    def mix(self, samples: Tensor, partner: Tensor, weight: float) -> Tensor:
        """Mix a clip (samples,) of that weight with its partner (any number,)."""
        return samples

    def log_mel(self, spectrogram: Tensor, rng: np.random.Generator) -> Tensor:
        """Change the padded log-mel spectrogram (frames, bins) before it is normalised."""
        return spectrogram

    def normalized(self, spectrogram: Tensor, rng: np.random.Generator) -> Tensor:
        """Change the normalised spectrogram (frames, bins)."""
        return spectrogram


@dataclass(frozen=True)
class Roll(Augmentation):
    """Cyclic shift of the waveform by a uniform offset (Audio-MAE, pretraining and fine-tuning recipes)."""

    keeps_order = False

    def waveform(self, samples: Tensor, rng: np.random.Generator) -> Tensor:
        """Shift (samples,)."""
        return torch.roll(samples, int(rng.integers(len(samples))))


@dataclass(frozen=True)
class Magnitude(Augmentation):
    """Multiplication of the waveform by Beta(*alpha*, *alpha*) + 0.5, so by 0.5 to 1.5 (Audio-MAE: alpha 10)."""

    alpha: float = 10.0

    def __post_init__(self) -> None:
        _require(self.alpha > 0, f"alpha={self.alpha} must be above 0")

    def waveform(self, samples: Tensor, rng: np.random.Generator) -> Tensor:
        """Scale (samples,)."""
        return samples * (rng.beta(self.alpha, self.alpha) + 0.5)


@dataclass(frozen=True)
class Mixup(Augmentation):
    """Mixture of the waveforms and the targets of two clips (Tokozume et al. 2018, as AST and Audio-MAE do it).

    Attributes:
        share: share of the clips that are mixed with another one.
        alpha: the weight of a mixed clip is drawn from Beta(*alpha*, *alpha*).
    """

    share: float = 0.5
    alpha: float = 10.0
    keeps_order = False

    def __post_init__(self) -> None:
        _require(0 <= self.share <= 1, f"share={self.share} must be a share of the clips, from 0 to 1")
        _require(self.alpha > 0, f"alpha={self.alpha} must be above 0")

    def draw_weight(self, rng: np.random.Generator) -> float:
        """Draw a weight, which is 1 for the clips that are not in the share."""
        return rng.beta(self.alpha, self.alpha) if rng.random() < self.share else 1.0

    def mix(self, samples: Tensor, partner: Tensor, weight: float) -> Tensor:
        """Return the weighted sum of both, each without its mean; the partner is cut or continued with zeros."""
        partner = _centre(partner)[: len(samples)]
        partner = F.pad(partner, (0, len(samples) - len(partner)))
        return weight * _centre(samples) + (1 - weight) * partner


@dataclass(frozen=True)
class SpecAugment(Augmentation):
    """One band of frequencies and one stretch of time set to 0 (Park et al. 2019; AST and Audio-MAE fine-tuning).

    The widths are uniform in 0 to *frequency* - 1 bins and 0 to *time* - 1 frames, the places uniform over those where
    they fit.

    Attributes:
        frequency: bins (Audio-MAE: 48; 24 for ESC-50), or, below 1, a share of all bins (EAT: 0.2).
        time: frames (Audio-MAE: 192; 96 for ESC-50, 48 for Speech Commands), or a share of all frames.
        after_normalization: act after normalisation, where 0 is the corpus's mean (EAT). Before it, 0 is loud, about
            one standard deviation above AudioSet's mean (AST, Audio-MAE).
    """

    frequency: float = 48
    time: float = 192
    after_normalization: bool = False

    def __post_init__(self) -> None:
        for name in ("frequency", "time"):
            width = getattr(self, name)
            whole = width >= 1 and float(width).is_integer()
            _require(width >= 0, f"{name}={width} must be 0 or more")
            _require(whole or width < 1, f"{name}={width} must be a whole number, or a share below 1")

    def log_mel(self, spectrogram: Tensor, rng: np.random.Generator) -> Tensor:
        """Mask (frames, bins) before normalisation."""
        return spectrogram if self.after_normalization else self._mask(spectrogram, rng)

    def normalized(self, spectrogram: Tensor, rng: np.random.Generator) -> Tensor:
        """Mask (frames, bins) after normalisation."""
        return self._mask(spectrogram, rng) if self.after_normalization else spectrogram

    def _mask(self, spectrogram: Tensor, rng: np.random.Generator) -> Tensor:
        masked = spectrogram.clone()
        masked[:, _stretch(masked.shape[1], self.frequency, rng)] = 0.0
        masked[_stretch(len(masked), self.time, rng)] = 0.0
        return masked


@dataclass(frozen=True)
class Noise(Augmentation):
    """Noise on the normalised spectrogram and a cyclic shift of its frames (Audio-MAE on Speech Commands, VoxCeleb).

    Attributes:
        amplitude: the noise is uniform in 0 to a level that is uniform in 0 to this.
        frames: the shift is uniform in up to this many frames either way.
    """

    amplitude: float = 0.1
    frames: int = 10

    def __post_init__(self) -> None:
        _require(0 <= self.amplitude < math.inf, f"amplitude={self.amplitude} must be 0 or more, and finite")
        whole = float(self.frames).is_integer()
        _require(whole and self.frames >= 0, f"frames={self.frames} must be a whole number, 0 or more")

    @property
    def keeps_order(self) -> bool:
        """Whether there is no shift."""
        return not self.frames

    def normalized(self, spectrogram: Tensor, rng: np.random.Generator) -> Tensor:
        """Add noise to (frames, bins) and shift them in time."""
        noise = torch.from_numpy(rng.random(spectrogram.shape, dtype=np.float32)).to(spectrogram.device)
        noisy = spectrogram + noise * (rng.random() * self.amplitude)
        return torch.roll(noisy, int(rng.integers(-self.frames, self.frames, endpoint=True)), dims=0)


@dataclass(frozen=True)
class ResizedCrop(Augmentation):
    """Random piece of the normalised spectrogram, resized to its size (BYOL-A, Niizumi et al. 2021; M2D's fine-tuning).

    The spectrogram lies in the middle of a longer one that is 0, the corpus's mean, elsewhere. The sides of the piece
    are uniform between two shares of the spectrogram's, the place uniform over those where it fits.

    Attributes:
        smallest: smallest share of the frames and of the bins.
        largest: largest share; above 1 a piece includes silence around the clip, or all bins.
        length: frames of the longer spectrogram, as a multiple of the clip's.
    """

    smallest: float = 0.6
    largest: float = 1.5
    length: float = 1.5

    def __post_init__(self) -> None:
        shares = f"smallest={self.smallest} and largest={self.largest}"
        _require(0 < self.smallest <= self.largest < math.inf, f"{shares} must be above 0 and in this order")
        _require(1 <= self.length < math.inf, f"length={self.length} must be 1 or more")

    def normalized(self, spectrogram: Tensor, rng: np.random.Generator) -> Tensor:
        """Crop and resize (frames, bins) by bicubic interpolation."""
        frames, bins = spectrogram.shape
        canvas = spectrogram.new_zeros(int(frames * self.length), bins)
        start = (len(canvas) - frames) // 2
        canvas[start : start + frames] = spectrogram
        piece = canvas[self._part(frames, len(canvas), rng), self._part(bins, bins, rng)]
        return F.interpolate(piece[None, None], (frames, bins), mode="bicubic", align_corners=True)[0, 0]

    def _part(self, size: int, limit: int, rng: np.random.Generator) -> slice:
        width = min(max(int(rng.uniform(self.smallest, self.largest) * size), 1), limit)
        start = int(rng.integers(limit - width, endpoint=True))
        return slice(start, start + width)


AUGMENTATIONS: dict[str, type[Augmentation]] = {
    "roll": Roll,
    "magnitude": Magnitude,
    "mixup": Mixup,
    "spec_augment": SpecAugment,
    "noise": Noise,
    "resized_crop": ResizedCrop,
}
"""Augmentations by name."""

Parameters = Mapping[str, Any]
Choice = Union[None, str, Sequence[Union[str, Mapping[str, Parameters]]], Mapping[str, Parameters]]
"""Augmentations as a recipe names them, see :func:`read_choice`."""
_FORM = "as in {roll: {}, mixup: {share: 0.5}}"


def read_choice(choice: Choice) -> dict[str, dict[str, Any]]:
    """Read the augmentations that a recipe names: the parameters of each, by name and in order.

    Args:
        choice: ``{roll: {}, magnitude: {alpha: 5}}``, where null stands for no parameters; a list of names, or of
            such mappings; names separated by commas; or None for no augmentation.

    Raises:
        ValueError: it is nothing of this.
    """
    if isinstance(choice, str):
        choice = choice.replace(" ", "").split(",")
    entries = choice if isinstance(choice, Sequence) else [choice or {}]
    read: dict[str, dict[str, Any]] = {}
    for entry in entries:
        named = {entry: {}} if isinstance(entry, str) else entry
        if not isinstance(named, Mapping):
            raise ValueError(f"{entry} is neither a name nor names with parameters, {_FORM}")
        for name, parameters in named.items():
            if not isinstance(parameters, (Mapping, type(None))):
                raise ValueError(f"{name}: {parameters} must be parameters by name, {_FORM}")
            read[name] = dict(parameters or {})
    return read


def build_augmentations(choice: Mapping[str, Parameters]) -> tuple[Augmentation, ...]:
    """Build augmentations from their parameters, by name and in order.

    Raises:
        ValueError: there is no augmentation or parameter of that name, or a parameter is out of range.
    """
    augmentations = []
    for name, parameters in choice.items():
        if name not in AUGMENTATIONS:
            raise ValueError(f"no {name}; there are {', '.join(AUGMENTATIONS)}")
        known = [field.name for field in fields(AUGMENTATIONS[name])]
        for unknown in parameters.keys() - known:
            raise ValueError(f"{name} has no parameter {unknown}; it has {', '.join(known) or 'none'}")
        try:
            augmentations.append(AUGMENTATIONS[name](**parameters))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: {error}") from None
    return tuple(augmentations)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _centre(waveform: Tensor) -> Tensor:
    # Not torch's mean, whose last bit depends on the number of threads, so on whether a worker computes it.
    return waveform - float(waveform.numpy().mean())


def _stretch(size: int, widest: float, rng: np.random.Generator) -> slice:
    limit = math.ceil(widest * size) if widest < 1 else min(int(widest), size)
    width = int(rng.integers(limit)) if limit else 0
    start = int(rng.integers(size - width, endpoint=True))
    return slice(start, start + width)
