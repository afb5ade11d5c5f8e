"""From the waveforms of a batch to what a model takes: on the CPU clip by clip, or on any device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amae_plugin.data.augment import Augmentation
from amae_plugin.data.log_mel import ModelInput, fit_length

FEATURES = ("workers", "device")
"""Places where log-mel spectrograms are computed: in the processes that decode, or where the model is."""

BATCH_LENGTHS = ("fixed", "longest", "shortest")

# Clips whose spectrograms a GPU computes at a time, which bounds the memory. A processor takes one: a clip's spectrum
# stays in its cache, and more take three times as long.
_CLIPS = 32


@dataclass(frozen=True)
class Pending:
    """What a batch of waveforms needs on its way to the model, in numbers that stay on the host.

    Attributes:
        lengths: frames of each clip before it is padded or cropped to the batch's length.
        frames: frames of the batch.
        positions: place of the piece that is kept of a clip that is longer than the batch, in [0, 1].
        generators: states of the random generators of the clips in training, None otherwise.
    """

    lengths: Sequence[int]
    frames: int
    positions: Sequence[float]
    generators: Sequence[Mapping[str, Any] | None]


@dataclass(frozen=True)
class Features:
    """Function from log-mel spectrograms to a model's input: length, augmentation, normalisation.

    Attributes:
        input: the model's input.
        augmentations: augmentations of training clips, in order.
        batch_length: one of :data:`BATCH_LENGTHS`.
    """

    input: ModelInput
    augmentations: Sequence[Augmentation]
    batch_length: str

    def source(self, log_mel: Tensor, rng: np.random.Generator | None) -> Tensor:
        """Map a clip's log-mel spectrogram (frames, bins) to the model's input.

        Args:
            log_mel: all frames of the clip.
            rng: generator of the clip's augmentations; None for no augmentation.

        Returns:
            (frames, bins), of target_length frames with a fixed length of batches, and otherwise at most as many.
        """
        target = self.input.target_length
        source = fit_length(log_mel, target if self.batch_length == "fixed" else min(len(log_mel), target))
        if rng is None:
            return self.input.normalize(source)
        for augmentation in self.augmentations:
            source = augmentation.log_mel(source, rng)
        source = self.input.normalize(source)
        for augmentation in self.augmentations:
            source = augmentation.normalized(source, rng)
        return source

    def fit(self, source: Tensor, frames: int, position: float) -> Tensor:
        """Crop or pad a clip's input to the length of its batch."""
        return source if len(source) == frames else fit_length(source, frames, position, self.input.silence)

    def batch(self, waveforms: Tensor, samples: Tensor, pending: Pending) -> Tensor:
        """Map a batch of waveforms to the input of a model, (B, frames, bins), on their device.

        Its numbers are those that :meth:`source` and :meth:`fit` give clip by clip, to rounding; random ones are drawn
        from the same generators.

        Args:
            waveforms: (B, S) float32, padded.
            samples: (B,) int64, samples of each clip, on the same device.
            pending: what is left to do.
        """
        count = 1 if waveforms.device.type == "cpu" else _CLIPS
        pieces = zip(waveforms.split(count), samples.split(count))
        log_mels = [log_mel for piece, counts in pieces for log_mel in self.input.front_end.batch(piece, counts)]
        clips = zip(log_mels, pending.lengths, pending.generators, pending.positions)
        return torch.stack(
            [
                self.fit(self.source(log_mel[:length], _restore(state)), pending.frames, position)
                for log_mel, length, state, position in clips
            ]
        )


def _restore(state: Mapping[str, Any] | None) -> np.random.Generator | None:
    if state is None:
        return None
    bits = np.random.PCG64(0)
    bits.state = dict(state)  # type: ignore[assignment]
    return np.random.Generator(bits)
