"""Errors of reconstructed spectrograms, mel band by mel band."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from amae_plugin.data.log_mel import DB_PER_NEPER


@dataclass(frozen=True)
class BandErrors:
    """Squared errors of hidden values, summed by mel band.

    Attributes:
        squares: (F,) float64, sums of squared errors in dB squared.
        counts: (F,) int64, numbers of hidden values.
    """

    squares: Tensor
    counts: Tensor

    @classmethod
    def of(cls, original: Tensor, guess: Tensor, hidden: Tensor) -> BandErrors:
        """Measure a guess (T, F) where values are hidden (T, F); log-mel values are natural logarithms."""
        errors = (guess.double() - original.double()) * DB_PER_NEPER
        return cls((errors.square() * hidden).sum(0), hidden.sum(0))

    @classmethod
    def pool(cls, errors: Iterable[BandErrors]) -> BandErrors:
        """Add up the errors of one or more clips, in which every hidden value counts the same."""
        squares, counts = zip(*((one.squares, one.counts) for one in errors))
        return cls(torch.stack(squares).sum(0), torch.stack(counts).sum(0))

    def rms(self) -> Tensor:
        """Return the root mean squared error of each band in dB: (F,), NaN in bands without hidden values."""
        return (self.squares / self.counts).sqrt()

    def range_rms(self, first: int, end: int) -> float:
        """Return the root mean squared error of bands *first* to *end* - 1 in dB; NaN without hidden values."""
        return float((self.squares[first:end].sum() / self.counts[first:end].sum()).sqrt())

    @property
    def total_rms(self) -> float:
        """Root mean squared error of all hidden values in dB; NaN if nothing is hidden."""
        return self.range_rms(0, len(self.counts))


def join_visible(log_mel: Tensor, hidden: Tensor) -> Tensor:
    """Fill the hidden part of a log-mel spectrogram on the CPU with straight lines between visible frames.

    A model's errors are compared with those of these lines, which need no model. A line is level before the first
    visible frame of its band and after the last. A band that is hidden throughout gets the mean of everything visible.

    Args:
        log_mel: (T, F).
        hidden: (T, F) bool.
    """
    lines = torch.full_like(log_mel, float(log_mel[~hidden].mean())).numpy()
    values, visible = log_mel.numpy(), ~hidden.numpy()
    for band in np.flatnonzero(visible.any(axis=0)):
        frames = np.flatnonzero(visible[:, band])
        lines[:, band] = np.interp(np.arange(len(lines)), frames, values[frames, band])
    return torch.from_numpy(lines)
