"""Windows: pieces of a clip of any length, each as long as a model's input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

CENTRE = 0.5
"""Position of the single piece of a longer clip, between 0, its beginning, and 1, its end."""


def piece_positions(pieces: int) -> list[float]:
    """Space positions of pieces evenly from a clip's beginning to its end; a single piece is the centre."""
    return [CENTRE] if pieces == 1 else np.linspace(0, 1, pieces).tolist()


def frame_positions(frames: int) -> list[float]:
    """Space positions of frames evenly from a video's beginning on, as CAV-MAE does; a single one is the middle."""
    return [CENTRE] if frames == 1 else [frame / frames for frame in range(frames)]


@dataclass(frozen=True)
class Windows:
    """Windows that cover a clip.

    Letters in shapes: N windows, W steps of a window, T steps of the clip. A step is a frame or a column of tokens.

    Attributes:
        steps: T; if T < W, padding follows the clip in its only window.
        width: W.
        starts: (N,) first step of each window.
    """

    steps: int
    width: int
    starts: tuple[int, ...]

    @classmethod
    def cover(cls, steps: int, width: int, hop: int) -> Windows:
        """Let windows start *hop* steps apart; the last one ends with the clip, so it may start earlier."""
        last = max(0, steps - width)
        return cls(steps, width, (*range(0, last, hop), last))

    @cached_property
    def counts(self) -> Tensor:
        """Number of windows that contain each step, (T,) float32."""
        counts = torch.zeros(self.steps)
        for start in self.starts:
            counts[start : start + self.width] += 1
        return counts

    @cached_property
    def weights(self) -> Tensor:
        """Weights (N,) float32 of a mean over windows in which every step of the clip counts alike; their sum is 1."""
        shares = 1 / (self.counts * self.steps)
        return torch.stack([shares[start : start + self.width].sum() for start in self.starts])

    def merge(self, values: Iterable[Tensor]) -> Tensor:
        """Average each step over the windows that contain it: N of (..., W, D) to (..., T, D)."""
        return torch.cat(list(self.merge_in_pieces(values)), dim=-2)

    def merge_in_pieces(self, values: Iterable[Tensor]) -> Iterator[Tensor]:
        """Give the steps of :meth:`merge` in pieces (..., t, D), each as soon as no later window contains it.

        Windows are taken one at a time, so the memory does not depend on the length of the clip.
        """
        total: Tensor | float = 0.0
        for window, start, end in zip(values, self.starts, (*self.starts[1:], self.steps), strict=True):
            total = total + window
            final, rest = total[..., : end - start, :], total[..., end - start :, :]
            yield final / self.counts[start:end, None].to(final.device)
            total = torch.nn.functional.pad(rest, (0, 0, 0, window.shape[-2] - rest.shape[-2]))

    def mean(self, values: Tensor) -> Tensor:
        """Average values of whole windows with :attr:`weights`: (N, K) to (K,)."""
        return (self.weights.to(values)[:, None] * values).sum(dim=0)

    def first(self, values: Tensor) -> Tensor:
        """Take each step from the first window that contains it: (N, W, F) to (T, F)."""
        ends = [0, *(start + self.width for start in self.starts)]
        pieces = [window[end - start :] for window, start, end in zip(values, self.starts, ends)]
        return torch.cat(pieces)[: self.steps]
