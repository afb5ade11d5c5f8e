"""How far hidden parts of a spectrogram were guessed from what was there, band by band."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amae_plugin.data.log_mel import DB_PER_NEPER


@dataclass(frozen=True)
class BandErrors:
    """Squared errors of hidden values, summed by mel band; of several clips, those of all hidden values together.

    Attributes:
        squares: (F,) float64, sums of squared errors in dB squared.
        counts: (F,) int64, hidden values of the bands.
    """

    squares: Tensor
    counts: Tensor

    @classmethod
    def of(cls, original: Tensor, guessed: Tensor, hidden: Tensor) -> BandErrors:
        """Errors of a guess (T, F) where something was hidden (T, F); log-mel values as natural logarithms."""
        errors = (guessed.double() - original.double()) * DB_PER_NEPER
        return cls((errors.square() * hidden).sum(0), hidden.sum(0))

    def __add__(self, other: BandErrors) -> BandErrors:
        return BandErrors(self.squares + other.squares, self.counts + other.counts)

    def rms(self) -> Tensor:
        """Root mean squared error of each band in dB: (F,), NaN in bands of which nothing was hidden."""
        return (self.squares / self.counts).sqrt()

    def range_rms(self, first: int, end: int) -> float:
        """Root mean squared error of the bands from the first to before the end in dB; NaN if nothing was hidden."""
        return float((self.squares[first:end].sum() / self.counts[first:end].sum()).sqrt())

    @property
    def total_rms(self) -> float:
        """Root mean squared error of all hidden values in dB; NaN if nothing was hidden."""
        return self.range_rms(0, len(self.counts))


def join_visible(log_mel: Tensor, hidden: Tensor) -> Tensor:
    """Hidden values (T, F) as straight lines between the nearest visible frames of their band: what needs no model.

    Before the first and after the last of them the line is level; a band that is hidden throughout gets the mean of all
    that is visible.
    """
    frames = torch.arange(len(log_mel), device=log_mel.device)[:, None].expand_as(hidden)
    before = frames.masked_fill(hidden, -1).cummax(dim=0).values
    after = frames.masked_fill(hidden, len(log_mel)).flip(0).cummin(dim=0).values.flip(0)
    first, last = before.clamp(min=0), after.clamp(max=len(log_mel) - 1)
    first, last = torch.where(before < 0, last, first), torch.where(after == len(log_mel), first, last)
    share = (frames - first).to(log_mel.dtype) / (last - first).clamp(min=1)
    line = torch.lerp(log_mel.gather(0, first), log_mel.gather(0, last), share)
    return torch.where(hidden.all(dim=0), log_mel[~hidden].mean(), line)
