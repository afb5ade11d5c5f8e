"""How a clip of any length is heard by an encoder of one length: as overlapping windows on one grid of time steps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """The windows of a clip, which begin and end at its time steps, the columns of tokens.

    Letters in shapes: N windows, W steps of a window, T steps of the clip.

    Attributes:
        steps: T; where they are fewer than W, padding follows the clip in its only window.
        width: W.
        starts: (N,) first step of each window.
    """

    steps: int
    width: int
    starts: tuple[int, ...]

    @classmethod
    def cover(cls, steps: int, width: int) -> Windows:
        """Windows that start half a width apart; the last one ends where the clip ends, so it may start earlier."""
        last = max(0, steps - width)
        return cls(steps, width, (*range(0, last, max(1, width // 2)), last))

    @cached_property
    def counts(self) -> Tensor:
        """(T,) float32, how many windows hear each step."""
        counts = torch.zeros(self.steps)
        for start in self.starts:
            counts[start : start + self.width] += 1
        return counts

    @cached_property
    def weights(self) -> Tensor:
        """(N,) float32, of a mean over the windows in which every step of the clip counts alike; 1 together."""
        shares = 1 / (self.counts * self.steps)
        return torch.stack([shares[start : start + self.width].sum() for start in self.starts])

    def merge(self, values: Tensor) -> Tensor:
        """One value a step of the clip, the mean of those that its windows gave: (N, ..., W, D) to (..., T, D)."""
        total = values.new_zeros(*values.shape[1:-2], self.steps, values.shape[-1])
        for window, start in zip(values, self.starts):
            total[..., start : start + self.width, :] += window[..., : self.steps - start, :]
        return total / self.counts.to(total.device)[:, None]

    def mean(self, values: Tensor) -> Tensor:
        """Weighted mean of what the windows gave as a whole: (N, K) to (K,)."""
        return (self.weights.to(values)[:, None] * values).sum(dim=0)
