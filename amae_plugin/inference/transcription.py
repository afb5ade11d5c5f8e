"""Texts of clips with the places of their words, and one path of units from the windows of a long clip."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from amae_plugin.data.transcripts import Units, collapse
from amae_plugin.inference.windows import Windows


class TimedWord(NamedTuple):
    """Word with its place in a clip, in seconds.

    CTC puts a unit where it is sure of it, not where its sound begins.
    """

    word: str
    start: float
    end: float


class Transcription(NamedTuple):
    """What is said in a clip.

    Attributes:
        text: the words with single blanks between them; empty if there are none.
        words: the words with their places.
    """

    text: str
    words: list[TimedWord]

    @classmethod
    def of_path(cls, path: np.ndarray, units: Units, step_seconds: float, seconds: float) -> Transcription:
        """Spell a path.

        Args:
            path: the most probable unit of each step, (T,).
            units: the units.
            step_seconds: length of a step.
            seconds: length of the clip, beyond which no word lies, though padding may fill the last steps.
        """
        words = [
            TimedWord(word.text, *(min(step * step_seconds, seconds) for step in (word.begin, word.end)))
            for word in units.words(collapse(path.tolist(), units.blank))
        ]
        return cls(" ".join(word.word for word in words), words)


def join_paths(paths: Iterable[np.ndarray], windows: Windows, sub_steps: int = 1) -> np.ndarray:
    """Join the paths of the windows of a clip: (T,).

    Two windows may place a unit a few steps apart, so a seam at a fixed step would write some units twice and lose
    others. A seam therefore lies in the middle of the longest run of steps on which both windows agree, within the
    inner half of their overlap, where both hear what comes before and after.

    Args:
        paths: for each window, the most probable unit of each of its steps; steps beyond the clip are left out.
        windows: the windows, in columns of *sub_steps* steps.
        sub_steps: steps of a column.
    """
    joined = np.zeros(windows.steps * sub_steps, np.int64)
    end = 0
    for column, path in zip(windows.starts, paths, strict=True):
        start = column * sub_steps
        seam = start + _seam(joined[start:end], path[: end - start]) if end > start else start
        end = min(start + len(path), len(joined))
        joined[seam:end] = path[seam - start : end - start]
    return joined


def _seam(before: np.ndarray, after: np.ndarray) -> int:
    """Find the step of an overlap of two paths, (t,) both, from which on the second one is taken."""
    margin, middle = len(before) // 4, len(before) / 2
    inner = slice(margin, len(before) - margin)
    edges = margin + np.flatnonzero(np.diff(before[inner] == after[inner], prepend=False, append=False))
    runs = edges.reshape(-1, 2)  # the first step of each run, and the one after its last
    if not len(runs):
        return int(middle)
    begin, end = max(runs.tolist(), key=lambda run: (run[1] - run[0], -abs(sum(run) / 2 - middle)))
    return (begin + end) // 2
